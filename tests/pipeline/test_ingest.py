"""A pile that grows: what is added or changed is done, nothing else, and the end is that of a build from scratch."""

import contextlib
import gzip
import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from skycairn.catalogs.gaia import Gaia
from skycairn.cli.objectview import ObjectReader
from skycairn.pile.receipt import Receipt
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline import run
from skycairn.pipeline.journal import Journal
from skycairn.pipeline.lineage import Gone, compare, successors
from skycairn.pipeline.parent import Parent
from skycairn.pipeline.recipe import Recipe, with_survey
from skycairn.pipeline.region import Cone
from skycairn.pipeline.run import BuildError, build, dry_run
from skycairn.pipeline.task import Context
from tests.conftest import once

EXPENSIVE = ("match", "extract", "encode", "encode payload")


def only(recipe: Recipe, *names: str) -> Recipe:
    return replace(recipe, surveys=tuple(c for c in recipe.surveys if c.name in names))


def locked(recipe: Recipe, pile: Path) -> Recipe:
    return replace(recipe, codecs=replace(recipe.codecs, lock=str(pile)))


def at(recipe: Recipe, sky: Path) -> Recipe:
    return replace(recipe, surveys=tuple(replace(c, root=str(sky / c.name)) for c in recipe.surveys))


def contents(snapshot: Snapshot) -> dict[str, list[str]]:
    return {name: sorted(e.part.content_id for e in snapshot.entries(name)) for name in snapshot.tables}


def table(pile: Path, name: str, number: int | None = None) -> pa.Table:
    opened = Pile.open(pile)
    pieces = [opened.read_table(e.part) for e in opened.snapshot(number).entries(name)]
    return pa.concat_tables(pieces, promote_options="permissive")


def fresh(pile: Path, build_it: Callable[[], object]) -> list[Receipt]:
    opened = Pile.open(pile)
    before = {r.key for r in opened.receipts()}
    build_it()
    return [r for r in opened.receipts() if r.key not in before]


def by_step(receipts: Iterable[Receipt], count: str = "") -> Counter[str]:
    out: Counter[str] = Counter()
    for r in receipts:
        out[r.step] += r.counts.get(count, 0) if count else 1
    return out


@pytest.fixture
def copy(tiny_pile: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_pile, tmp_path / "pile"))


@pytest.fixture(scope="module")
def grown(tiny_pile: Path, tiny_recipe: Recipe, tiny_second: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pile with the second release ingested into it."""

    def make(out: Path) -> None:
        shutil.copytree(tiny_pile, out)
        build(at(tiny_recipe, tiny_second), out)

    return once(tmp_path_factory, "grown", make)


ORDERS = [
    ("sdss", "gaia", "legacysurvey", "desi", "hsc"),
    pytest.param(("hsc", "desi", "sdss", "legacysurvey", "gaia"), marks=pytest.mark.slow),
    pytest.param(("legacysurvey", "hsc", "gaia", "desi", "sdss"), marks=pytest.mark.slow),
    pytest.param(("desi", "legacysurvey", "hsc", "gaia", "sdss"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("order", ORDERS)
def test_surveys_one_by_one_end_as_all_at_once(
    tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path, order: tuple[str, ...]
) -> None:
    pile = tmp_path / "pile"
    recipe = locked(only(tiny_recipe, order[0]), tiny_pile)
    build(recipe, pile)
    for name in order[1:]:
        chosen = tiny_recipe.choice(name)
        recipe = with_survey(recipe, name, chosen.release, chosen.profile, Path(chosen.root).parent)
        receipts = fresh(pile, lambda recipe=recipe: build(recipe, pile))
        others = [r.label for r in receipts if r.step in EXPENSIVE[1:] and name not in r.label]
        assert others == [], "adding a survey encodes nothing of another"
    end, at_once = Pile.open(pile).snapshot(), Pile.open(tiny_pile).snapshot()
    assert contents(end) == contents(at_once)
    assert end.content_id == at_once.content_id
    assert end.number == 5


def test_a_second_release_ends_as_a_build_of_it(
    tiny_recipe: Recipe, tiny_second: Path, tiny_pile: Path, grown: Path, tmp_path: Path
) -> None:
    anew = build(locked(at(tiny_recipe, tiny_second), tiny_pile), tmp_path / "anew").snapshot
    end = Pile.open(grown).snapshot()
    assert contents(end) == contents(anew)
    assert end.content_id == anew.content_id != Pile.open(tiny_pile).snapshot().content_id


def test_sources_that_did_not_change_are_taken_over(grown: Path) -> None:
    """Wanted sources whose row is bit for bit as before, and whose files are, are neither cut out nor encoded."""
    opened = Pile.open(grown)
    before, now = (Parent(opened, opened.snapshot(n)) for n in (1, 2))
    n_same = 0
    for label, key in now.keys.items():
        receipt = opened.receipt(key)
        assert receipt is not None
        if receipt.step != "encode" or before.keys.get(label) == key:
            continue
        want = label.replace("encode ", "want ").replace(" columns", "")
        old_want, new_want = (p.receipt(want) for p in (before, now))
        if old_want is None or before.receipt(label) is None:
            continue
        assert new_want is not None
        rows = [[str(r) for r in opened.read_table(w.outputs["wanted"]).to_pylist()] for w in (old_want, new_want)]
        plain = [{r.split("'group.")[0] for r in some} for some in rows]
        same = len(plain[0] & plain[1])
        n_same += same
        assert receipt.counts["encoded"] == len(plain[1]) - same, label
    assert n_same > 5


def test_one_changed_row_costs_one_source(tiny_sky: Path, tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    pile, sky = tmp_path / "pile", Path(shutil.copytree(tiny_sky, tmp_path / "sky"))
    recipe = locked(at(tiny_recipe, sky), tiny_pile)
    build(recipe, pile)
    selected = table(pile, "gaia.selection").filter(pc.is_null(table(pile, "gaia.selection")["failed_cut"]))
    source = selected["key"][0].as_py()
    where = table(pile, "gaia.provenance")
    where = where.filter(pc.equal(where["key"], source)).to_pylist()[0]
    home = next(
        e.labels["cell"]
        for e in Pile.open(pile).snapshot().entries("gaia.slim")
        if source in Pile.open(pile).read_table(e.part)["key"].to_pylist()
    )
    path = sky / "gaia" / where["file"]
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    names = next(line for line in lines if not line.startswith("#")).split(",")
    (number,) = [i for i, line in enumerate(lines) if f",{source}," in f",{line},"]
    values = lines[number].split(",")
    flux = names.index("phot_g_mean_flux")
    values[flux] = repr(float(values[flux]) * 1.5)
    lines[number] = ",".join(values)
    path.write_bytes(gzip.compress("\n".join(lines).encode() + b"\n", mtime=0))
    sums = path.parent / "_MD5SUM.txt"
    told = [
        f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}" if line.endswith(path.name) else line
        for line in sums.read_text().splitlines()
    ]
    sums.write_text("\n".join(told) + "\n")

    receipts = fresh(pile, lambda: build(recipe, pile))
    steps = by_step(receipts)
    assert steps["fetch"] == steps["read"] == 1
    assert not steps["match"] and not steps["extract"] and not steps["encode payload"]
    assert [r.label for r in receipts if r.step == "encode"] == [f"encode gaia columns cell {home}"]
    assert by_step(receipts, "encoded")["encode"] == 1
    changed = table(pile, "lineage")
    member = table(pile, "members")
    member = member.filter(pc.and_(pc.equal(member["survey"], "gaia"), pc.equal(member["key"], source)))
    assert changed.to_pylist() == [
        {"old_id": member["object_id"][0].as_py(), "new_id": member["object_id"][0].as_py(), "what": "changed"}
    ]


def test_a_larger_region_ends_as_a_build_of_it(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    small = replace(locked(only(tiny_recipe, "gaia", "desi"), tiny_pile), region=Cone(0.0, -1.2, 0.01))
    large = replace(small, region=tiny_recipe.region)
    pile = tmp_path / "pile"
    n = build(small, pile).report.objects
    grown = build(large, pile)
    anew = build(large, tmp_path / "anew")
    assert grown.report.objects > n > 0
    assert grown.snapshot.content_id == anew.snapshot.content_id
    assert grown.snapshot.stats["lineage"]["new"] == grown.report.objects - n


def test_what_became_of_objects_is_told(grown: Path, tiny_second: Path) -> None:
    """Every old object is followed to the end, and the mock's own word of what it did with each row agrees."""
    opened = Pile.open(grown)
    old, new = opened.snapshot(1), opened.snapshot(2)
    rows = table(grown, "lineage").to_pylist()
    old_ids = set(table(grown, "objects", 1)["object_id"].to_pylist())
    new_ids = set(table(grown, "objects", 2)["object_id"].to_pylist())
    by_old: dict[str, list[dict[str, str]]] = {}
    for r in rows:
        by_old.setdefault(r["old_id"], []).append(r)
        assert r["old_id"] is None or r["old_id"] in old_ids
        assert r["new_id"] is None or r["new_id"] in new_ids
    for name in old_ids - set(by_old):
        assert name in new_ids, "an object of which nothing is told is what it was"
    assert new_ids <= {r["new_id"] for r in rows} | old_ids
    holder = {(m["survey"], m["key"]): m["object_id"] for m in table(grown, "members", 2).to_pylist()}
    checked: Counter[str] = Counter()
    for survey in ("legacysurvey", "gaia", "hsc", "desi", "sdss"):
        truth = pq.read_table(tiny_second / "truth" / f"lineage-{survey}.parquet").to_pylist()
        own = {m["key"]: m["object_id"] for m in table(grown, "members", 1).to_pylist() if m["survey"] == survey}
        for t in truth:
            if t["key_1"] not in own or (survey, t["key_2"]) not in holder:
                continue
            found = successors(opened, new, own[t["key_1"]])
            assert holder[survey, t["key_2"]] in found, (survey, t)
            checked[t["what"]] += 1
    assert checked["same"] and checked["moved"] + checked["changed"] and checked["renumbered"] + checked["split"]
    assert Counter(r["what"] for r in rows) == Counter(
        x for some in compare(opened, old, new) for x in some["what"].to_pylist()
    )


def test_an_id_of_an_object_that_left_is_said_to_be_gone(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    pile = tmp_path / "pile"
    recipe = locked(only(tiny_recipe, "gaia", "desi"), tiny_pile)
    build(recipe, pile)
    lonely = [
        i
        for i, s in zip(*(table(pile, "objects")[n].to_pylist() for n in ("object_id", "stratum")), strict=True)
        if s == "gaia"
    ]
    both = [
        i
        for i, s in zip(*(table(pile, "objects")[n].to_pylist() for n in ("object_id", "stratum")), strict=True)
        if s == "gaia+desi"
    ]
    build(only(recipe, "desi"), pile)
    opened = Pile.open(pile)
    with pytest.raises(Gone, match=f"{lonely[0]} is gone"):
        successors(opened, opened.snapshot(), lonely[0])
    assert successors(opened, opened.snapshot(), both[0])[0].startswith("desi:")
    # and back again: the id that was renamed is the id once more
    build(recipe, pile)
    desi = successors(opened, opened.snapshot(2), both[0])[0]
    assert successors(opened, opened.snapshot(), desi) == [both[0]]


def test_another_division_of_the_sky_is_refused(tiny_recipe: Recipe, copy: Path) -> None:
    other = replace(tiny_recipe, split=replace(tiny_recipe.split, salt="another"))
    with pytest.raises(BuildError, match=r"split.salt is 'another', the pile's is 'skycairn'.*--new-split"):
        build(other, copy)
    assert build(other, copy, new_split=True).snapshot.number == 2


def test_a_dry_run_says_why(
    tiny_sky: Path, tiny_recipe: Recipe, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = dry_run(tiny_recipe, copy)
    assert plan.done
    stricter = replace(
        tiny_recipe,
        surveys=tuple(replace(c, profile="aion" if c.name == "desi" else c.profile) for c in tiny_recipe.surveys),
    )
    plan, parent = dry_run(stricter, copy)
    told = "the cuts need good_z, healpix, main_primary, program, survey: other columns than before"
    assert {(t.step, t.why) for t in plan.todo} == {("read", told)}
    follow = parent.followers([t.label for t in plan.todo])
    assert set(follow) >= {"want", "encode", "objects", "shard"}
    first, *others = Gaia.select["aion"]
    with monkeypatch.context() as patch:
        patch.setitem(Gaia.select, "aion", (replace(first, reason="another"), *others))
        plan, _ = dry_run(tiny_recipe, copy)
        assert {(t.step, t.why) for t in plan.todo} == {("gather", f"cut {first.name} changed")}
    # a state that was built before is all there, and yet another than the head
    plan, parent = dry_run(only(tiny_recipe, "gaia"), copy)
    assert plan.todo or "objects" in parent.differing(plan.tables)
    sky = shutil.copytree(tiny_sky, tmp_path / "sky")
    plan, _ = dry_run(at(tiny_recipe, sky), copy)
    assert {t.why for t in plan.todo} == {"a file was touched or replaced"}
    plan, _ = dry_run(tiny_recipe, copy, refit=["gaia.parallax"])
    assert not plan.todo, "the same sample and the same settings make the same codec"
    other = replace(tiny_recipe, codecs=replace(tiny_recipe.codecs, fit_rows=7))
    (copy / "codecs.lock").unlink()
    plan, _ = dry_run(other, copy)
    assert {t.why for t in plan.todo} == {"setting rows changed from 200000 to 10000"}
    assert Pile.open(copy).snapshots() == [1], "nothing was done"


def test_a_refit_makes_new_codecs_of_what_there_is_now(tiny_recipe: Recipe, tiny_pile: Path, tmp_path: Path) -> None:
    pile = tmp_path / "pile"
    strict, everything = (
        replace(tiny_recipe, surveys=(replace(tiny_recipe.choice("gaia"), profile=p),)) for p in ("strict", "all")
    )
    build(strict, pile)
    build(everything, pile)
    before = Pile.open(pile).snapshot()
    recipe = Journal(Pile.open(pile)).recipe(before)
    assert recipe is not None
    receipts = fresh(pile, lambda: build(recipe, pile, refit=("gaia.parallax",)))
    now = Pile.open(pile).snapshot()
    differing = {m for m, i in now.stats["codecs"].items() if before.stats["codecs"][m] != i}
    assert differing == {"gaia.parallax"}
    assert {r.label for r in receipts if r.step == "fit"} == {"fit gaia.parallax"}
    assert build(recipe, pile).n_tasks == 0
    # and another pile's codecs instead
    build(recipe, pile, codecs_from=tiny_pile)
    theirs = Pile.open(tiny_pile).snapshot().stats["codecs"]
    mine = Pile.open(pile).snapshot().stats["codecs"]
    assert all(theirs[m] == i for m, i in mine.items())
    assert mine != now.stats["codecs"]
    # the older snapshots still have theirs
    assert Pile.open(pile).snapshot(before.number).stats["codecs"] == before.stats["codecs"]


def test_rehash_reads_what_looks_the_same(tiny_sky: Path, tiny_recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    import os

    sky = tmp_path / "sky"
    shutil.copytree(tiny_sky, sky)
    recipe = at(only(tiny_recipe, "gaia"), sky)
    pile = tmp_path / "pile"
    build(recipe, pile)
    path = sorted((sky / "gaia").rglob("Xp*.csv.gz"))[0]
    kept, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert build(recipe, pile).n_tasks == 0, "size, time and inode are what they were"
    found = build(recipe, pile, rehash=True)
    assert found.partial and any(path.name in name for name in found.held_back)
    # and it is not forgotten
    assert build(recipe, pile).partial


def test_what_is_cut_out_of_a_source_hangs_on_it_alone(tiny_recipe: Recipe, tiny_pile: Path) -> None:
    """Row by row as all at once: without this nothing could be taken over from an earlier build."""
    opened = Pile.open(tiny_pile)
    parent = Parent(opened, opened.snapshot())
    ctx = Context(opened, tiny_recipe)
    n = Counter[str]()
    for label in parent.keys:
        receipt = parent.receipt(label)
        if receipt is None or receipt.step != "extract":
            continue
        modality = str(receipt.settings["modality"])
        survey = ctx.survey(modality.split(".")[0])
        wanted = opened.read_table(
            parent.receipt(f"want {survey.name} {label[label.index('cell') :]}").outputs["wanted"]
        )  # type: ignore[union-attr]
        wanted = wanted.filter(pc.equal(wanted["owner"], survey.name))
        for i, states in enumerate(receipt.notes["files"]):
            rows = wanted.filter(pc.equal(wanted[f"group.{modality}"], i)).combine_chunks()
            files = {r: ctx.archive(survey.name).local(p) for r, (p, state, _) in states.items() if state == "there"}
            lost = frozenset(r for r, (_, state, _) in states.items() if state == "lost")
            # forced positions among the others: such rows have no columns of the survey's own
            bare = {
                c: pa.nulls(1, rows.schema.field(c).type)
                for c in rows.column_names
                if c not in ("owner", "key", "ra", "dec")
            }
            forced = pa.table({**{c: rows[c][:1] for c in ("owner", "key", "ra", "dec")}, **bare}).select(
                rows.column_names
            )
            if survey.name in ("hsc", "legacysurvey"):
                rows = pa.concat_tables([rows, forced.cast(rows.schema)]).combine_chunks()
            together = survey.extract(modality, rows, files, lost)
            alone = [survey.extract(modality, rows.slice(k, 1).combine_chunks(), files, lost) for k in range(len(rows))]
            assert together.combine_chunks().equals(pa.concat_tables(alone).combine_chunks()), (label, i)
            n[survey.name] += len(rows)
    assert set(n) == {"legacysurvey", "hsc", "desi", "sdss"} and min(n.values()) > 1


def test_a_lost_lock_is_written_again_from_the_head(tiny_recipe: Recipe, copy: Path) -> None:
    before = Pile.open(copy).snapshot()
    (copy / "codecs.lock").unlink()
    shutil.rmtree(copy / "codecs")
    other = replace(
        tiny_recipe,
        surveys=tuple(replace(c, profile="all" if c.name == "gaia" else c.profile) for c in tiny_recipe.surveys),
    )
    built = build(other, copy)
    assert built.snapshot.stats["codecs"] == before.stats["codecs"], "no codec is fitted anew unasked"
    assert (copy / "codecs.lock").is_file()
    # and what got selected is told of as changed
    assert built.snapshot.stats["lineage"].get("changed", 0) > 0


def test_the_head_says_what_it_is_of_where_the_journal_is_older(tiny_recipe: Recipe, copy: Path) -> None:
    noted = (copy / "journal" / "recipe.json").read_bytes()
    other = with_survey(tiny_recipe, "gaia", "", "all", None)
    build(other, copy)
    (copy / "journal" / "recipe.json").write_bytes(noted)
    opened = Pile.open(copy)
    found = Journal(opened).recipe(opened.head())
    assert found is not None and found.choice("gaia").profile == "all"
    assert found.choice("gaia").root == tiny_recipe.choice("gaia").root


def test_a_head_that_another_made_meanwhile_is_not_overrun(
    tiny_recipe: Recipe, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = only(tiny_recipe, "gaia")
    true = run.report

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(run, "report", true)
        monkeypatch.setattr(run, "builder_lock", lambda *_: contextlib.nullcontext())
        build(rival, copy)
        return true(*args)

    monkeypatch.setattr(run, "report", meanwhile)
    with pytest.raises(BuildError, match="another build made snapshot 2 meanwhile, of another recipe; build again"):
        build(only(tiny_recipe, "gaia", "desi"), copy)
    assert set(Pile.open(copy).snapshot().recipe["surveys"]) == {"gaia"}
    assert build(only(tiny_recipe, "gaia", "desi"), copy).snapshot.number == 3


def test_a_file_that_is_exchanged_while_it_is_read_leaves_no_receipt(
    tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skycairn.catalogs.sdss import Sdss

    sky = Path(shutil.copytree(tiny_sky, tmp_path / "sky"))
    recipe = at(only(tiny_recipe, "sdss", "gaia"), sky)
    true = Sdss.read

    def exchanged(self: Any, path: Path, *args: Any) -> Any:
        kept = path.read_bytes()
        path.write_bytes(kept + bytes(2880))
        try:
            return true(self, path, *args)
        finally:
            monkeypatch.setattr(Sdss, "read", true)

    monkeypatch.setattr(Sdss, "read", exchanged)
    with pytest.raises(BuildError, match="everything is held back"):
        build(only(recipe, "sdss"), tmp_path / "pile")
    assert not [r for r in Pile.open(tmp_path / "pile").receipts() if r.step == "read"]


def test_a_payload_file_that_cannot_be_read_holds_its_cells_back(
    tiny_sky: Path, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    sky, pile = Path(shutil.copytree(tiny_sky, tmp_path / "sky")), tmp_path / "pile"
    recipe = at(only(tiny_recipe, "hsc", "gaia"), sky)
    path = max((sky / "hsc").rglob("calexp-*.fits*"), key=lambda p: p.stat().st_size)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    built = None
    try:
        built = build(recipe, pile)
    except BuildError as error:
        assert "everything is held back" in str(error) and path.name in str(error)
    else:
        assert built.partial and any(path.name in why for why in built.held_back.values())
    path.write_bytes(whole)
    mended = build(recipe, pile)
    assert not mended.partial
    assert mended.snapshot.content_id == build(recipe, tmp_path / "anew").snapshot.content_id
    if built is not None:
        # what was held back and came again is what its id says
        opened = Pile.open(pile)
        for name in table(pile, "objects")["object_id"].to_pylist():
            assert successors(opened, opened.snapshot(), name) == [name]


def test_an_old_id_is_shown_and_explained(grown: Path) -> None:
    old = [r for r in table(grown, "lineage").to_pylist() if r["what"] == "changed" and r["old_id"] != r["new_id"]]
    assert old
    opened = Pile.open(grown)
    for r in old:
        assert ObjectReader(opened, opened.snapshot()).find(r["old_id"]) == r["new_id"]


def test_a_moved_pile_asks_where_the_files_are(tiny_recipe: Recipe, copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(copy / "journal")
    opened = Pile.open(copy)
    recipe = Journal(opened).recipe(opened.head())
    assert recipe is not None
    with pytest.raises(ValueError, match=r"where the files of .*gaia.* lie is not known here; give --root"):
        with_survey(recipe, "gaia", "", "", None)
    found = with_survey(recipe, "gaia", "", "", Path(tiny_recipe.choice("gaia").root).parent)
    assert build(found, copy).snapshot.content_id == opened.snapshot().content_id
