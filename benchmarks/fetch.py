"""How fast files are fetched from loopback, verified, into the cache, beside curl and sha256sum: in one run.

    python benchmarks/fetch.py [--scale 1] [--repeats 3] [--only 20kB] [--folder work/fetch]

A server in a process of its own holds small files in memory and sends large ones by sendfile. Ours is what
`skycairn fetch` does: threads, cache, list of digests, SHA-256 of each file; theirs is `curl --parallel` with as many
connections, then `sha256sum -c`. The two take turns. `bare` is the server alone: sockets that read and forget. The
names have no ending that a structure is known of, since curl looks at none. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from skycairn.catalogs.survey import RemoteFile
from skycairn.pile.store import Pile
from skycairn.pipeline import listing
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.downloads import AT_ONCE

SURVEY = "gaia"
LIST = "sha256sum.txt"
MOST_IN_MEMORY = 1 << 20
SETTINGS = {
    "name": "fetch",
    "region": {"kind": "cone", "ra": 0.0, "dec": 0.0, "radius_deg": 0.5},
    "surveys": {SURVEY: {"release": "dr3", "profile": "strict", "source": "archive"}},
}


class Load(NamedTuple):
    name: str
    n_files: int
    n_bytes: int
    "of each"


LOADS = (Load("20kB", 2000, 20_000), Load("200kB", 500, 200_000), Load("400MB", 3, 400_000_000))


@dataclass
class Times:
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    "of the client, the server's not among it"


# --- the server ---------------------------------------------------------------------------------------------------


def serve(root: Path) -> None:
    """Files below the root, for ever, each connection by a thread; the port is printed."""
    ready: dict[bytes, tuple[bytes, Path | None]] = {}
    for path in root.rglob("*"):
        if path.is_file():
            size = path.stat().st_size
            head = f'HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: "{size:x}"\r\nServer: fetch\r\n\r\n'.encode()
            small = size <= MOST_IN_MEMORY
            name = f"/{path.relative_to(root)}".encode()
            ready[name] = (head + path.read_bytes(), None) if small else (head, path)
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=answer, args=(connection, ready), daemon=True).start()


def answer(connection: socket.socket, ready: dict[bytes, tuple[bytes, Path | None]]) -> None:
    missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", None
    said = b""
    with connection:
        while block := connection.recv(1 << 16):
            said += block
            while b"\r\n\r\n" in said:
                asked, _, said = said.partition(b"\r\n\r\n")
                head, large = ready.get(asked.split(b" ", 2)[1], missing)
                connection.sendall(head)
                if large is not None:
                    with large.open("rb") as file:
                        connection.sendfile(file)


@contextmanager
def served(root: Path) -> Iterator[str]:
    command = [sys.executable, __file__, "--serve", str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


# --- three who fetch ----------------------------------------------------------------------------------------------


def ours(url: str, files: list[RemoteFile], folder: Path) -> None:
    download = {"cache": str(folder / "cache"), "mirror": url, "limit_bytes": 10**12}
    recipe = recipes.parse({**SETTINGS, "download": download}, "fetch")
    Pile.create(folder / "pile")
    came, _ = listing.bring(recipe, folder / "pile", {SURVEY: files})
    found = came[SURVEY]
    # the list is a file too
    if found.files != len(files) + 1 or found.failed:
        raise SystemExit(f"of {len(files):,} files {found.files - 1:,} came; {found.failed}")


def curls(base: str, files: list[RemoteFile], folder: Path) -> None:
    asked = "".join(f'url = "{base}/{f.path}"\noutput = "{folder}/{Path(f.path).name}"\n' for f in files)
    asked += f'url = "{base}/{Path(files[0].path).parent}/{LIST}"\noutput = "{folder}/{LIST}"\n'
    command = ["curl", "--no-progress-meter", "--fail", "--parallel", "--parallel-max", str(AT_ONCE), "--config", "-"]
    subprocess.run(command, input=asked.encode(), check=True)
    subprocess.run(["sha256sum", "--check", "--strict", "--quiet", LIST], cwd=folder, check=True)


def bare(base: str, files: list[RemoteFile], folder: Path) -> None:
    parts, left = urlsplit(base), list(reversed(files))

    def read() -> None:
        buffer = bytearray(1 << 18)
        with socket.create_connection((str(parts.hostname), int(parts.port or 0))) as connection:
            while left:
                connection.sendall(f"GET {parts.path}/{left.pop().path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                n = connection.recv_into(buffer)
                head, _, start = bytes(buffer[:n]).partition(b"\r\n\r\n")
                to_come = int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0]) - len(start)
                while to_come:
                    to_come -= connection.recv_into(buffer)

    threads = [threading.Thread(target=read) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- the run ------------------------------------------------------------------------------------------------------


def written(load: Load, folder: Path) -> list[RemoteFile]:
    """Files of random bytes, no two the same, and the list of their digests."""
    folder.mkdir(parents=True)
    block, lines, files = os.urandom(load.n_bytes), [], []
    for i in range(load.n_files):
        name, data = f"{i:05}.dat", i.to_bytes(8, "big") + block[8:]
        (folder / name).write_bytes(data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
        files.append(RemoteFile(f"{load.name}/{name}", f"{load.name}/{LIST}", "sha256"))
    (folder / LIST).write_text("".join(lines))
    return files


def timed(times: Times, work: Path, fetch: Callable[[Path], None]) -> None:
    # what others wrote before is not to be waited for
    os.sync()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        cpu, began = cpu_s(), time.perf_counter()
        fetch(Path(folder))
        times.wall_s.append(time.perf_counter() - began)
        times.cpu_s.append(cpu_s() - cpu)


def cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def run(load: Load, work: Path, repeats: int) -> dict[str, Times]:
    recipe = recipes.parse(SETTINGS, "fetch")
    parts = urlsplit(recipe.choice(SURVEY).survey().url)
    root = work / "served"
    files = written(load, root / parts.netloc / parts.path.strip("/") / load.name)
    times = {name: Times() for name in ("ours", "curl", "bare")}
    with served(root) as url:
        base = f"{url}/{parts.netloc}{parts.path}".rstrip("/")
        for _ in range(repeats):
            timed(times["ours"], work, lambda folder: ours(url, files, folder))
            timed(times["curl"], work, lambda folder: curls(base, files, folder))
            timed(times["bare"], work, lambda folder: bare(base, files, folder))
    shutil.rmtree(root)
    return times


def report(load: Load, times: dict[str, Times]) -> None:
    for name, found in times.items():
        cells = [f"{load.n_files:,} x {load.name}", name]
        for wall_s in (min(found.wall_s), statistics.median(found.wall_s)):
            cells += [f"{load.n_files / wall_s:,.1f}", f"{load.n_files * load.n_bytes / wall_s / 1e6:,.0f}"]
        cells.append(f"{1e3 * min(found.cpu_s) / load.n_files:,.2f}")
        for best in (min, statistics.median):
            ratio = best(times["curl"].wall_s) / best(found.wall_s)
            cells.append(f"{ratio:.2f}" if name == "ours" else "")
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of files")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=[load.name for load in LOADS])
    parser.add_argument("--folder", type=Path, default=Path("work/fetch"), help="where all is written, and removed")
    told = parser.parse_args()
    if told.serve:
        serve(told.serve)
    told.folder.mkdir(parents=True, exist_ok=True)
    print("| load | who | files/s, best | MB/s | files/s, median | MB/s | CPU ms/file | ours/curl, best | median |")
    print("|---|---|---|---|---|---|---|---|---|")
    for load in LOADS:
        if told.only in (None, load.name):
            some = load._replace(n_files=max(1, round(load.n_files * told.scale)))
            with tempfile.TemporaryDirectory(dir=told.folder) as work:
                report(some, run(some, Path(work).absolute(), told.repeats))


if __name__ == "__main__":
    main()
