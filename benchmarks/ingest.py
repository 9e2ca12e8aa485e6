"""What it costs to bring a pile up to date, beside building it anew: wall time and tasks, in one run, on the mock sky.

python benchmarks/ingest.py work/mocksky work/mocksky2 work/bench [docs/ingestion.md]

The second folder is the mock's second release. The third is made anew.
"""

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc

from skycairn.match.sky import rings
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline import recipe as recipes
from skycairn.pipeline.lineage import Gone, successors
from skycairn.pipeline.parent import Parent
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import Built, build

WORKERS = 2
SCANS = ("fetch", "fetch payload", "read", "gather")
OWN = ("want", "extract", "encode", "encode payload")


def timed(recipe: Recipe, pile: Path) -> tuple[Built, float]:
    began = time.monotonic()
    built = build(recipe, pile, workers=WORKERS)
    return built, time.monotonic() - began


def copied(pile: Path, to: Path) -> Path:
    """A copy that shares the immutable files."""
    shutil.copytree(pile, to, copy_function=os.link)
    shutil.rmtree(to / "journal")
    shutil.copytree(pile / "journal", to / "journal")
    return to


def at(recipe: Recipe, sky: Path) -> Recipe:
    return replace(recipe, surveys=tuple(replace(c, root=str(sky / c.name)) for c in recipe.surveys))


def locked(recipe: Recipe, pile: Path) -> Recipe:
    return replace(recipe, codecs=replace(recipe.codecs, lock=str(pile)))


def change_one_row(sky: Path) -> Path:
    """Another G flux in one row of one Gaia file, and its digest in the list; the file."""
    path = sorted((sky / "gaia").rglob("GaiaSource*.csv.gz"))[-1]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    first = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    names, values = lines[first].split(","), lines[first + 1].split(",")
    at = names.index("phot_g_mean_flux")
    values[at] = repr(float(values[at]) * 1.5)
    lines[first + 1] = ",".join(values)
    path.unlink()
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    sums = path.parent / "_MD5SUM.txt"
    digest = hashlib.md5(path.read_bytes()).hexdigest()
    told = [f"{digest}  {path.name}" if x.endswith(path.name) else x for x in sums.read_text().splitlines()]
    sums.unlink()
    sums.write_text("\n".join(told) + "\n")
    return path


def cells_that_changed(old: Snapshot, new: Snapshot) -> set[int]:
    """Cells in which a source of any survey is another, or new, or gone."""
    out: set[int] = set()
    for name in {*old.tables, *new.tables}:
        if name.endswith((".slim", ".wide", ".selection")):
            a, b = ({e.labels["cell"]: e.part.content_id for e in s.tables.get(name, ())} for s in (old, new))
            out |= {int(c) for c in {*a, *b} if a.get(c) != b.get(c)}
    return out


def outside(pile: Path, old: int, new: int) -> Mapping[str, int]:
    """Tasks that were done for cells which nothing touched, by step."""
    opened = Pile.open(pile)
    before, now = (Parent(opened, opened.snapshot(n)) for n in (old, new))
    assert before.snapshot and now.snapshot
    own = cells_that_changed(before.snapshot, now.snapshot)
    near = set(rings(6, np.array(sorted(own)), 1).tolist())
    known = set(before.keys.values())
    found: Counter[str] = Counter()
    for label, key in now.keys.items():
        receipt = opened.receipt(key)
        if receipt is None or key in known or " cell " not in label or receipt.step in SCANS:
            continue
        cell = int(label.split(" cell ")[1].split(" ")[0])
        if receipt.step in (*OWN, "match", "objects") and cell not in (own if receipt.step in OWN else near):
            found[receipt.step] += 1
    return found


def leaks(pile: Path, old: int, new: int) -> tuple[int, int]:
    """Objects of the old snapshot that are followed, and those that left their split for another than guard."""
    opened = Pile.open(pile)
    a, b = (
        {
            i: s
            for e in opened.snapshot(n).entries("objects")
            for i, s in zip(*(opened.read_table(e.part)[c].to_pylist() for c in ("object_id", "split")), strict=True)
        }
        for n in (old, new)
    )
    listed = {
        x
        for e in opened.snapshot(new).aside.get("lineage", ())
        for x in pc.drop_null(opened.read_table(e.part)["old_id"]).to_pylist()
    }
    n_leaks = 0
    for name, split in a.items():
        try:
            now = {b[i] for i in (successors(opened, opened.snapshot(new), name) if name in listed else [name])}
        except Gone:
            continue
        n_leaks += split != "guard" and not now <= {split, "guard"}
    return len(a), n_leaks


def steps(built: Built) -> str:
    return ", ".join(f"{step} {n}" for step, n in built.done.items())


def main(first: Path, second: Path, work: Path, out: Path | None) -> None:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    recipe = recipes.load("mock").at(first.resolve())
    rows: list[tuple[str, float, Built, str]] = []
    whole, full_s = timed(recipe, work / "whole")
    rows.append(("all five surveys, from nothing", full_s, whole, ""))

    quick = []
    for _ in range(3):
        began = time.monotonic()
        command = [sys.executable, "-c", "from skycairn.cli.main import app; app()", "build", "mock", "--root"]
        done = subprocess.run([*command, str(first), "--pile", str(work / "whole")], check=True, capture_output=True)
        quick.append(time.monotonic() - began)
        assert b"0 tasks: nothing had changed" in done.stdout

    four = replace(recipe, surveys=tuple(c for c in recipe.surveys if c.name != "hsc"))
    four_built, four_s = timed(locked(four, work / "whole"), work / "four")
    rows.append(("four surveys, from nothing, codecs given", four_s, four_built, ""))
    built, seconds = timed(recipe, work / "four")
    assert built.snapshot.content_id == whole.snapshot.content_id
    rows.append(("HSC added to the four", seconds, built, "the same content id as all at once"))

    sky = Path(shutil.copytree(first, work / "sky", copy_function=os.link))
    changed = change_one_row(sky)
    grown = copied(work / "whole", work / "one")
    built, seconds = timed(at(recipe, sky), grown)
    n_files = sum(1 for p in sky.rglob("*") if p.is_file())
    rows.append((f"one file of {n_files:,} changed ({changed.name}, one row)", seconds, built, ""))

    grown = copied(work / "whole", work / "grown")
    built, seconds = timed(at(recipe, second.resolve()), grown)
    strange = outside(grown, 1, 2)
    rows.append(("second release of all five ingested", seconds, built, f"tasks for untouched cells: {dict(strange)}"))
    anew, anew_s = timed(locked(at(recipe, second.resolve()), work / "whole"), work / "anew")
    assert anew.snapshot.content_id == built.snapshot.content_id
    rows.append(("second release, from nothing, codecs given", anew_s, anew, "the same content id as ingested"))
    n, n_leaks = leaks(grown, 1, 2)
    opened = Pile.open(grown)
    made = {
        step: tuple(
            sum(
                r.counts.get(c, 0)
                for k in Parent(opened, opened.snapshot()).keys.values()
                if (r := opened.receipt(k)) and r.step == step
            )
            for c in ("sources", count)
        )
        for step, count in (("extract", "extracted"), ("encode", "encoded"), ("encode payload", "encoded"))
    }

    text = ["| what | seconds | of from nothing | tasks | |", "|---|---|---|---|---|"]
    text += [f"| {what} | {s:.1f} | {s / full_s:.3f} | {b.n_tasks} | {note} |" for what, s, b, note in rows]
    text += [
        "",
        f"A build that finds nothing changed: 0 tasks, {min(quick):.2f} to {max(quick):.2f} s (three whole commands).",
        "",
        *(f"* {what}: {steps(b)}" for what, _, b, _ in rows),
        "",
        f"Objects after the second release: {built.snapshot.stats['lineage']}. Of {n} objects before, followed by "
        f"their ids, {n_leaks} left their split for another (guard apart).",
        "",
        "Of the sources behind the second release's snapshot, those that were really worked on, in tasks that were new "
        "or not: " + ", ".join(f"{step} {b} of {a}" for step, (a, b) in made.items()) + ".",
    ]
    print("\n".join(text))
    if out is not None:
        head = out.read_text().split("<!-- measured -->")[0]
        out.write_text(head + "<!-- measured -->\n\n" + "\n".join(text) + "\n")


if __name__ == "__main__":
    paths = [Path(a) for a in sys.argv[1:]]
    main(paths[0], paths[1], paths[2], paths[3] if len(paths) > 3 else None)
