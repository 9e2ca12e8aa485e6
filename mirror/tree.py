"""A folder's files as an archive gives them: whole, in part, or not at all when the client has them already."""

from __future__ import annotations

import html
import os
import re
import stat
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from skycairn.mirror.wire import Reply, Request

TYPES = {
    ".csv": "text/csv",
    ".fits": "application/fits",
    ".fz": "application/fits",
    ".gz": "application/gzip",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".sha1sum": "text/plain",
    ".sha256sum": "text/plain",
    ".txt": "text/plain",
}
"""By the end of a file's name. A .gz is a file of its own, never a Content-Encoding."""


def reply_of(folder: Path, below: PurePosixPath, request: Request) -> Reply | None:
    """What there is at `below` in the folder: a file, or the index of a folder; None where there is neither.

    Links are followed within the folder alone.
    """
    root = os.path.realpath(folder)
    path = Path(os.path.realpath(folder / below))
    if not path.is_relative_to(root):
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    slash = request.path.endswith("/")
    if stat.S_ISDIR(found.st_mode):
        if slash:
            return _index(path, request.path, Path(root))
        return Reply(301, b"", {"Location": f"{request.base}{quoted(request.path)}/"})
    if not stat.S_ISREG(found.st_mode) or slash:
        return None
    headers = {
        "Content-Type": TYPES.get(path.suffix, "application/octet-stream"),
        "ETag": f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"',
        "Last-Modified": formatdate(int(found.st_mtime), usegmt=True),
        "Accept-Ranges": "bytes",
    }
    return Reply(200, path, headers, (0, found.st_size))


def as_asked(request: Request, reply: Reply) -> Reply:
    """The reply after the request's conditions and its range, where it says `Accept-Ranges: bytes`."""
    told = reply.headers
    if reply.status != 200 or request.method not in ("GET", "HEAD") or told.get("Accept-Ranges") != "bytes":
        return reply
    if _client_has_it(request, reply):
        return Reply(304, b"", {k: v for k, v in told.items() if k in ("ETag", "Last-Modified")})
    wanted = re.fullmatch(r"bytes=([0-9]*)-([0-9]*)", request.headers.get("range", ""))
    # several ranges, or none that can be read, ask for the whole: a server may say so
    if wanted is None or wanted[0] == "bytes=-" or request.method == "HEAD" or not _still_the_same(request, reply):
        return reply
    size = reply.span()[1]
    first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
    last = min(int(wanted[2]) if wanted[1] and wanted[2] else size - 1, size - 1)
    if wanted[1] and wanted[2] and int(wanted[2]) < first:
        return reply
    if first >= size:
        return Reply(416, b"no such range\n", {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"})
    headers = {**told, "Content-Range": f"bytes {first}-{last}/{size}"}
    return Reply(206, reply.body, headers, (first, last - first + 1))


def quoted(path: str) -> str:
    """A decoded path as it stands in an address."""
    return quote(path.encode(errors="surrogateescape"), safe="/,:=+~!$&'()*@")


def _client_has_it(request: Request, reply: Reply) -> bool:
    if (tags := request.headers.get("if-none-match")) is not None:
        known = [tag.strip().removeprefix("W/") for tag in tags.split(",")]
        return "*" in known or reply.headers.get("ETag") in known
    since, changed = (_time(h.get(n)) for h, n in ((request.headers, "if-modified-since"), (reply.headers, _CHANGED)))
    return since is not None and changed is not None and changed <= since


def _still_the_same(request: Request, reply: Reply) -> bool:
    """Whether a range may be given: If-Range names this very file, or is not there."""
    return request.headers.get("if-range") in (None, reply.headers.get("ETag"), reply.headers.get(_CHANGED))


_CHANGED = "Last-Modified"


def _time(text: str | None) -> datetime | None:
    try:
        at = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _index(folder: Path, path: str, root: Path) -> Reply:
    """A page of links, as web servers make of a folder."""
    title = html.escape(f"Index of {path}".encode(errors="replace").decode())
    rows = [] if folder == root else ['<a href="../">../</a>']
    for name in sorted(os.listdir(folder)):
        there = Path(os.path.realpath(folder / name))
        try:
            found = there.stat()
        except OSError:  # gone meanwhile, or a link to nowhere
            continue
        is_folder = stat.S_ISDIR(found.st_mode)
        if not there.is_relative_to(root) or not (is_folder or stat.S_ISREG(found.st_mode)):
            continue
        name, size = (f"{name}/", "-") if is_folder else (name, str(found.st_size))
        when = datetime.fromtimestamp(found.st_mtime, UTC).strftime("%Y-%m-%d %H:%M")
        shown = html.escape(name.encode(errors="replace").decode())
        # `./`, or a name such as `a:b` would be taken for an address
        rows.append(f'<a href="./{html.escape(quoted(name))}">{shown}</a>  {when}  {size}')
    page = f"<html><head><title>{title}</title></head><body><h1>{title}</h1><pre>\n"
    page += "\n".join(rows) + "\n</pre></body></html>\n"
    return Reply(200, page.encode(), {"Content-Type": "text/html; charset=utf-8"})
