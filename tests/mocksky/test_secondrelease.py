import hashlib
import json
import shutil

import healpy
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from skycairn.catalogs.legacycolumns import unpack_key
from skycairn.catalogs.registry import SURVEYS
from skycairn.mocksky import sdss, tableedits
from skycairn.mocksky.build import build
from skycairn.mocksky.fitsfile import TableColumn, write_checksums, write_table
from skycairn.mocksky.patches import TIERS
from skycairn.mocksky.releasetables import Edition, read_fits, read_gaia
from skycairn.mocksky.secondrelease import EDITIONS, rewrite
from tests.conftest import mock_once

RELEASES = {"legacysurvey": "dr10", "gaia": "dr3", "desi": "dr1", "hsc": "pdr3-wide", "sdss": "dr17"}
FILES = {
    "hsc": "sql/pdr3_wide/forced-*.fits",
    "sdss": "sdss/spectro/redux/specObj-dr17.fits",
    "legacysurvey": "south/sweep/10.1/sweep-*.fits",
    "gaia": "gaia_source/GaiaSource_*.csv.gz",
    "desi": "zcatalog/v1/zall-pix-iron.fits",
}
SPECOBJ = "sdss/spectro/redux/specObj-dr17.fits"
SDSS_KEY = ("RUN2D", "PLATE", "MJD", "FIBERID")
SURVEY = pytest.mark.parametrize("name", RELEASES)


def digests(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def separation(a, b):
    east = ((a["ra"] - b["ra"] + 180) % 360 - 180) * np.cos(np.radians(a["dec"]))
    return 3600 * np.hypot(east, a["dec"] - b["dec"])


@pytest.fixture(scope="module")
def releases(tmp_path_factory, tiny_fifth):
    second = mock_once(tmp_path_factory, "fifth-second", seed=5, release=2, first=tiny_fifth.root)
    return tiny_fifth.root, second.root, second.summary


def rows(out, name):
    survey = SURVEYS[name](RELEASES[name])
    table = pa.concat_tables([survey.read(p) for p in sorted((out / name).glob(FILES[name]))])
    for c in ("ra", "dec"):  # Arrow holds NaN to be unequal to itself
        known = pa.array(table[c].to_numpy(), from_pandas=True)
        table = table.set_column(table.column_names.index(c), c, known)
    return table


def lineage(out, name):
    return pq.read_table(out / "truth" / f"lineage-{name}.parquet")


@SURVEY
def test_every_row_of_both_releases_is_in_the_lineage_once(releases, name):
    first, second, summary = releases
    line, old, new = lineage(second, name), rows(first, name), rows(second, name)
    for side, table in (("key_1", old), ("key_2", new)):
        said, held = line[side].drop_null().to_pylist(), table["key"].drop_null().to_pylist()
        assert len(said) == len(set(said)) and sorted(said) == sorted(held)
    # sky and stuck fibres have no key, and stay
    assert old["key"].null_count == new["key"].null_count
    what = np.array(line["what"].to_pylist())
    born, left = (what == w for w in ("added", "gone"))
    extra = (what == "split") & line["key_1"].is_null().to_numpy()
    ended = (what == "split") & line["key_2"].is_null().to_numpy()
    assert new.num_rows == old.num_rows - left.sum() - ended.sum() + born.sum() + extra.sum()
    kinds = {"same", "gone", "moved", "changed"}
    if name != "sdss":  # a new fibre would want a plate of its own
        kinds.add("added")
    kinds |= {"legacysurvey": {"split", "renumbered"}, "gaia": {"split"}, "hsc": {"split"}}.get(name, set())
    assert set(what.tolist()) == kinds
    counts = json.loads((second / "mock.json").read_text())
    assert counts["release"] == summary.release == 2
    assert summary.counts[name] - json.loads((first / "mock.json").read_text())["counts"][name] == (
        new.num_rows - old.num_rows
    )


@SURVEY
def test_rows_are_edited_as_the_lineage_says_and_no_others(releases, name):
    first, second, _ = releases
    line, old, new = lineage(second, name), rows(first, name), rows(second, name)
    both = line.filter(pc.and_(line["key_1"].is_valid(), line["key_2"].is_valid()))
    place = {k: i for i, k in enumerate(old["key"].to_pylist()) if k is not None}
    a = old.take([place[k] for k in both["key_1"].to_pylist()])
    place = {k: i for i, k in enumerate(new["key"].to_pylist()) if k is not None}
    b = new.take([place[k] for k in both["key_2"].to_pylist()])
    what = np.array(both["what"].to_pylist())
    for kind in ("same", "renumbered"):
        mine = pa.array(what == kind)
        left, right = (t.filter(mine).drop_columns(["row"]) for t in (a, b))
        if kind == "renumbered":
            left, right = (
                t.drop_columns([c for c in ("key", "release") if c in t.column_names]) for t in (left, right)
            )
        assert left.equals(right)
    far = separation({c: a[c].to_numpy() for c in ("ra", "dec")}, {c: b[c].to_numpy() for c in ("ra", "dec")})
    moved = far[what == "moved"]
    if name == "gaia":
        error = 1.01 * a["ra_error"].to_numpy()[what == "moved"]
        assert (moved > 0).all() and (moved < error).all()
    else:
        assert ((moved > 0.049) & (moved < 0.301)).all()
    assert not np.nan_to_num(far[(what != "moved") & (what != "split")]).any()
    changed = pa.array(what == "changed")
    if name in ("desi", "sdss"):
        primary = {"desi": "zcat_primary", "sdss": "specprimary"}[name]
        differ = pc.or_(pc.not_equal(a["z"], b["z"]), pc.not_equal(a[primary], b[primary]))
        assert pc.all(differ.filter(changed)).as_py()
    else:
        flux = {"legacysurvey": "flux_z", "gaia": "phot_g_mean_flux", "hsc": "flux_i"}[name]
        ratio = b[flux].filter(changed).to_numpy() / a[flux].filter(changed).to_numpy()
        assert ((np.abs(ratio - 1) > 0.0199) & (np.abs(ratio - 1) < 0.0601)).all()


@SURVEY
def test_native_columns_are_added_renamed_and_widened_and_the_others_keep_their_values(releases, name):
    first, second, _ = releases
    read = read_gaia if name == "gaia" else read_fits
    old, new = (read(sorted((out / name).glob(FILES[name]))) for out in (first, second))
    before, after = ({c.name: c.type for c in t.columns} for t in (old, new))
    gone, come = set(before) - set(after), set(after) - set(before)
    assert len(gone) == (1 if name == "hsc" else 2) and len(come) == len(gone) + 1
    added = next(c for c in come if c.lower() == "since_release")
    # one of the two only changes its case, and the reader knows it still
    assert len({c.lower() for c in gone} & {c.lower() for c in come}) == 1
    assert sum(before[c] != after[c] for c in set(before) & set(after)) == 1
    since = new.rows[added].astype(int)
    line = lineage(second, name)
    what = np.array(line["what"].to_pylist())
    fresh = line["key_1"].is_null().to_numpy() | (what == "renumbered")
    assert (since == 2).sum() == fresh.sum() and set(since.tolist()) == ({1, 2} if fresh.any() else {1})


@SURVEY
def test_truth_names_the_rows_of_the_second_release(releases, name):
    first, second, _ = releases
    old, truth = (pq.read_table(out / "truth" / f"{name}.parquet") for out in (first, second))
    assert truth.schema.equals(old.schema)
    keys = rows(second, name)["key"].drop_null().to_pylist()
    assert set(truth["key"].drop_null().to_pylist()) == set(keys)
    assert all((k is None) or o for k, o in zip(truth["key"].to_pylist(), truth["observed"].to_pylist(), strict=True))
    why = dict(zip(truth["uid"].to_pylist(), truth["why_not"].to_pylist(), strict=True))
    line = lineage(second, name)
    lost = line.filter(pc.equal(line["what"], "gone"))
    shown = set(truth.filter(truth["observed"])["uid"].to_pylist())
    for uid in lost["uid"].to_pylist():
        assert uid in shown or why[uid] == "gone in release 2"
    assert set(truth["uid"].to_pylist()) - {0} == set(old["uid"].to_pylist()) - {0}
    of_key = {k: u for k, u in zip(truth["key"].to_pylist(), truth["uid"].to_pylist(), strict=True) if k is not None}
    born = line.filter(pc.equal(line["what"], "added"))
    assert all(of_key[k] == u for k, u in zip(born["key_2"].to_pylist(), born["uid"].to_pylist(), strict=True))


def test_a_blend_is_resolved_into_its_members(releases):
    first, second, _ = releases
    line, sources = lineage(second, "legacysurvey"), pq.read_table(second / "truth" / "sources.parquet")
    old = pq.read_table(first / "truth" / "legacysurvey.parquet")
    truth = pq.read_table(second / "truth" / "legacysurvey.parquet")
    new = rows(second, "legacysurvey")
    split = line.filter(pc.equal(line["what"], "split"))
    parents = {p for p in split["parent"].to_pylist() if p is not None}
    assert parents == set(split["key_1"].drop_null().to_pylist())
    for parent in parents:
        uids = set(old.filter(pc.equal(old["key"], parent))["uid"].to_pylist())
        assert len(uids) > 1
        mine = truth.filter(pc.is_in(truth["uid"], pa.array(sorted(uids))))
        assert len(set(mine["key"].to_pylist())) == 2 and not any("blend" in d for d in mine["dirt"].to_pylist())
        for uid, key in zip(mine["uid"].to_pylist(), mine["key"].to_pylist(), strict=True):
            row = new.filter(pc.equal(new["key"], key)).to_pylist()[0]
            true = sources.filter(pc.equal(sources["uid"], uid)).to_pylist()[0]
            assert row["ra"] == pytest.approx(true["ra"], abs=1e-9) and row["dec"] == pytest.approx(true["dec"])
            if true["flux_r"] > 1:
                assert row["flux_r"] == pytest.approx(true["flux_r"], rel=0.2)


def test_renumbered_bricks_change_their_release_alone_and_new_rows_do_not_take_an_old_number(releases):
    _, second, _ = releases
    line = lineage(second, "legacysurvey")
    both = line.filter(pc.equal(line["what"], "renumbered"))
    a, b = (np.array(unpack_key(both[c].to_numpy())) for c in ("key_1", "key_2"))
    assert (a[0] == 10000).all() and (b[0] == 10002).all() and (a[1:] == b[1:]).all()
    bricks = set(a[1].tolist())
    every = unpack_key(line["key_1"].drop_null().to_numpy())[1]
    assert 0 < len(bricks) < 4 and np.isin(every, list(bricks)).sum() == both.num_rows
    assert not set(line["key_1"].drop_null().to_pylist()) & set(
        line.filter(line["key_1"].is_null())["key_2"].to_pylist()
    )
    with fits.open(second / "legacysurvey" / "south" / "survey-bricks-dr10-south.fits.gz") as hdus:
        table = hdus[1].data
        assert int(table["nobjs"].sum()) == line["key_2"].drop_null().length()
        assert np.array_equal(sum(table[f"n{t}"] for t in ("psf", "rex", "exp", "dev", "ser", "dup")), table["nobjs"])


def test_gaia_gives_the_parts_of_a_split_new_ids_in_their_own_files_and_no_spectrum(releases):
    first, second, _ = releases
    line = lineage(second, "gaia")
    split = line.filter(pc.equal(line["what"], "split"))
    ended = split.filter(split["key_1"].is_valid())
    assert ended["key_2"].null_count == ended.num_rows and split.num_rows == 3 * ended.num_rows
    new = rows(second, "gaia")
    fresh = new.filter(pc.is_in(new["source_id"], split["key_2"].drop_null()))
    assert fresh.num_rows == 2 * ended.num_rows and not pc.any(fresh["has_xp_continuous"]).as_py()
    old = rows(first, "gaia")
    whole = old.filter(pc.is_in(old["source_id"], ended["key_1"]))
    assert pc.sum(fresh["phot_g_mean_flux"]).as_py() == pytest.approx(pc.sum(whole["phot_g_mean_flux"]).as_py())
    zero = fresh["phot_g_mean_mag"].to_numpy() + 2.5 * np.log10(fresh["phot_g_mean_flux"].to_numpy())
    assert np.allclose(zero, whole["phot_g_mean_mag"].to_numpy() + 2.5 * np.log10(whole["phot_g_mean_flux"].to_numpy()))
    for path in (second / "gaia" / "gaia_source").glob("GaiaSource_*"):
        a, b = (int(v) for v in path.name.split("_")[1].split(".")[0].split("-"))
        ids = SURVEYS["gaia"]("dr3").read(path)["source_id"].to_numpy()
        assert ((ids >> 43 >= a) & (ids >> 43 <= b)).all() and (np.diff(ids) > 0).all()


def test_an_added_spectrum_lies_in_a_new_file_and_reads(releases):
    first, second, _ = releases
    line = lineage(second, "desi")
    born = line.filter(pc.equal(line["what"], "added"))
    new = rows(second, "desi")
    mine = new.filter(pc.is_in(new["key"], born["key_2"]))
    assert set(mine["survey"].to_pylist()) == {"special"} and pc.all(mine["zcat_primary"]).as_py()
    survey = SURVEYS["desi"]("dr1")
    for group in survey.payload_groups(mine, "desi.spectrum", {}):
        path = group.files["coadd"].path
        assert not (first / "desi" / path).exists()
        some = mine.take(pa.array(group.rows))
        table = survey.extract("desi.spectrum", some, {"coadd": second / "desi" / path}, frozenset())
        assert table["status"].null_count == some.num_rows
    ra, dec = (mine[c].to_numpy() for c in ("ra", "dec"))
    assert healpy.ang2pix(64, ra, dec, nest=True, lonlat=True).tolist() == mine["healpix"].to_pylist()
    # a target has one primary
    primary = new.filter(pc.and_(new["zcat_primary"], pc.equal(new["objtype"], "TGT")))["targetid"].to_pylist()
    assert len(primary) == len(set(primary))


def test_sdss_loses_moves_and_changes_spectra_and_leaves_sky_alone(releases):
    first, second, _ = releases
    line = lineage(second, "sdss")
    old, new = (read_fits([out / "sdss" / SPECOBJ]).rows for out in (first, second))
    keys = [
        [sdss.pack_key(r.decode(), *k) for r, *k in zip(*(t[c].tolist() for c in SDSS_KEY), strict=True)]
        for t in (old, new)
    ]
    for side, held in zip(("key_1", "key_2"), keys, strict=True):
        assert sorted(line[side].drop_null().to_pylist()) == sorted(held)
    what = np.array(line["what"].to_pylist())
    assert set(what.tolist()) == {"same", "gone", "moved", "changed"}
    assert len(keys[1]) == len(keys[0]) - (what == "gone").sum()
    at = [{k: i for i, k in enumerate(held)} for held in keys]
    names = {"SN_MEDIAN_ALL": "sn_median_all", "PLATERUN": "PLATE_RUN"}
    for entry in line.filter(pa.array(what != "gone")).to_pylist():
        i, j = at[0][entry["key_1"]], at[1][entry["key_2"]]
        differ = {c for c in old if c != "_file" and not np.array_equal(old[c][i], new[names.get(c, c)][j])}
        differ -= {c for c in ("Z", "Z_NOQSO") if np.isnan(old[c][i])}
        if entry["what"] == "same" or old["TARGETTYPE"][i] == b"SKY":
            assert not differ
        elif entry["what"] == "moved":
            assert differ == {"PLUG_RA", "PLUG_DEC"}
        else:
            assert differ and differ <= {"Z", "SPECPRIMARY", "SPECLEGACY"}
    # every thing that had a primary spectrum has one, unless its only row is gone
    shown = {k: u for k, u in zip(line["key_1"].to_pylist(), line["uid"].to_pylist(), strict=True)}
    primaries = [
        [shown[k] for k, p in zip(h, t["SPECPRIMARY"], strict=True) if p] for h, t in zip(keys, (old, new), strict=True)
    ]
    lost = set(line.filter(pa.array(what == "gone"))["uid"].to_pylist())
    assert set(primaries[0]) - set(primaries[1]) == lost and len(primaries[1]) == len(set(primaries[1]))
    truth = pq.read_table(second / "truth" / "sdss.parquet")
    assert sorted(truth["key"].drop_null().to_pylist()) == sorted(keys[1])


def test_lists_hold_and_what_was_not_edited_is_the_same_bytes(releases):
    first, second, _ = releases
    wrong, lost, listed = [], [], 0
    for path in sorted(p for p in second.rglob("*") if "sum" in p.name.lower()):
        for line in path.read_text().splitlines():
            digest, name = line.split("  ")
            listed += 1
            if not (path.parent / name).exists():
                lost.append(name)
                continue
            kind = {32: "md5", 64: "sha256"}[len(digest)]
            if hashlib.new(kind, (path.parent / name).read_bytes()).hexdigest() != digest:
                wrong.append(name)
    # the files that the first release lists and lacks: an image, a coadd, perhaps spectra of Gaia's
    assert not wrong and listed > 50 and 1 < len(lost) < 4
    old, new = digests(first), digests(second)
    assert set(old) <= set(new)
    changed = {n for n in old if old[n] != new[n]}
    edited = FILES | {"sdss": SPECOBJ, "hsc": "sql/pdr3_wide/forced-*.fits"}
    tables = {f"{s}/{p.relative_to(first / s)}" for s, g in edited.items() for p in (first / s).glob(g)}
    lists = {n for n in changed if "sum" in n.lower()}
    truth = {f"truth/{s}.parquet" for s in edited if (first / s).exists()}
    bricks = {"legacysurvey/south/survey-bricks-dr10-south.fits.gz"}
    assert changed == tables | lists | truth | bricks | {"mock.json"} and len(lists) >= 3
    assert {n.split("/")[0] for n in set(new) - set(old)} == {"truth", "desi"}


def test_same_bytes_with_or_without_a_first_release_to_copy(releases, tmp_path):
    _, second, _ = releases
    build("tiny", tmp_path / "again", seed=5, workers=1, release=2)
    assert digests(tmp_path / "again") == digests(second)


def test_releases_are_told_apart(releases, tmp_path):
    first, second, summary = releases
    assert build("tiny", second, seed=5, release=2) == summary
    with pytest.raises(ValueError, match="holds release 1 of the mock; wanted release 2"):
        build("tiny", first, seed=5, release=2)
    with pytest.raises(ValueError, match="there is no release 3"):
        build("tiny", tmp_path / "x", seed=5, release=3)
    with pytest.raises(ValueError, match="holds no complete first release"):
        build("tiny", tmp_path / "x", seed=5, release=2, first=tmp_path / "nothing")
    with pytest.raises(ValueError, match="wanted 2, elsewhere"):
        build("tiny", tmp_path / "x", seed=5, release=1, first=first)
    # one of another seed
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    with pytest.raises(ValueError, match="wanted tier tiny, seed 6"):
        build("tiny", tmp_path / "x", seed=6, release=2, first=first)


COLUMNS = [
    TableColumn(*c) for c in (("object_id", "i8"), ("ra", "f8"), ("dec", "f8"), ("flux", "f4"), ("good", "bool"))
]


def hand_made(folder, n=300):
    """A small table with what is unpleasant: ids near 2^63, a NaN position, RA 0, a pole, negative and zero flux."""
    rng = np.random.default_rng(1)
    values = {
        "object_id": np.iinfo(np.int64).max - 1000 + np.arange(n),
        "ra": rng.uniform(0, 360, n),
        "dec": rng.uniform(-90, 90, n),
        "flux": rng.normal(1, 2, n),
        "good": rng.random(n) < 0.5,
    }
    values["ra"][:3], values["dec"][:5] = (0.0, 359.9999999, np.nan), (0.0, 0.0, 0.0, 90.0, -90.0)
    values["flux"][5:7] = 0.0, np.nan
    path = folder / "sub" / "table.fits"
    write_table(path, COLUMNS, values, n, {"EXTNAME": "FORCED"})
    write_checksums(path.parent / "sha256sum.txt", [path])
    return values


def test_a_table_of_any_survey(tmp_path):
    values = hand_made(tmp_path)
    truth = pa.table(
        {
            "uid": np.arange(1, 301),
            "key": values["object_id"],
            "dirt": [""] * 300,
            "observed": [True] * 300,
            "why_not": [""] * 300,
        }
    )

    def number(rows, fresh):
        fresh["object_id"][:] = rows["object_id"].max() + 1 + np.arange(len(fresh["object_id"]))

    form = tableedits.Form("any", lambda rows: rows["object_id"], "ra", "dec", number, flux=("flux",))
    edition = Edition(form, "sub/*.fits", (), {"good": "fine"}, {"flux": "f8"})
    grown, line, after = rewrite(edition, tmp_path, 7, truth, {"uid": np.arange(1, 301)})
    table = read_fits([tmp_path / "sub" / "table.fits"])
    assert table.cards == [{"EXTNAME": "FORCED"}]
    assert [(c.name, c.type) for c in table.columns] == [
        *(("object_id", "i8"), ("ra", "f8"), ("dec", "f8"), ("flux", "f8"), ("fine", "bool"), ("SINCE_RELEASE", "i2"))
    ]
    what = np.array(line["what"].to_pylist())
    assert (what == "moved").sum() == 9 and (what == "gone").sum() == 3 and grown == len(table.rows["ra"]) - 300 == 0
    old = {k: i for i, k in enumerate(values["object_id"].tolist())}
    new = {k: i for i, k in enumerate(table.rows["object_id"].tolist())}
    for entry in line.to_pylist():
        i, j = old.get(entry["key_1"]), new.get(entry["key_2"])
        if entry["what"] == "same":
            for a, b in (("ra", "ra"), ("dec", "dec"), ("flux", "flux"), ("good", "fine")):
                x, y = np.asarray(values[a])[i], table.rows[b][j]
                assert (np.float32(x) == np.float32(y)) or (np.isnan(x) and np.isnan(y))
        if entry["what"] == "moved":
            a, b = ({c: v[c][k] for c in ("ra", "dec")} for v, k in ((values, i), (table.rows, j)))
            assert 0.049 < separation(a, b) < 0.301
    # rows without a position or a flux are left alone
    for i in (2, 6):
        assert what[line["key_1"].to_pylist().index(int(values["object_id"][i]))] == "same"
    digest, name = (tmp_path / "sub" / "sha256sum.txt").read_text().split()
    assert hashlib.sha256((tmp_path / "sub" / name).read_bytes()).hexdigest() == digest
    assert set(after["key"].drop_null().to_pylist()) == set(new)


def test_which_rows_are_edited_hangs_on_keys_and_seed_alone():
    keys = np.array([5, 1 << 62, 7, 2**63 - 1])
    odds = tableedits.chance(3, "any", keys)
    assert np.array_equal(tableedits.chance(3, "any", keys[::-1])[::-1], odds)
    assert ((odds >= 0) & (odds < 1)).all() and len(set(odds.tolist())) == 4
    assert not np.array_equal(tableedits.chance(4, "any", keys), odds)


def test_a_survey_without_its_tables_is_refused(tmp_path):
    form = tableedits.Form("any", lambda rows: rows["id"], "ra", "dec", lambda a, b: None)
    with pytest.raises(ValueError, match=r"has no sub/\*.fits: wanted the tables of a first release of any"):
        rewrite(Edition(form, "sub/*.fits", (), {}, {}), tmp_path, 0, pa.table({}), {})
    assert set(RELEASES) <= set(EDITIONS)


def test_another_spectrum_of_a_target_becomes_the_primary():
    n = 12
    table = {
        "TARGETID": np.array([9, 9, 8, 8, 8, 7, -3, -3, 6, 5, 4, 3], dtype=np.int64),
        "SURVEY": np.array([b"main"] * n, dtype="S7"),
        "PROGRAM": np.array([b"bright", b"dark"] * (n // 2), dtype="S6"),
        "ZCAT_NSPEC": np.array([2, 2, 3, 3, 3, 1, 2, 2, 1, 1, 1, 1], dtype=np.int16),
        "ZCAT_PRIMARY": np.array([1, 0, 0, 1, 0, 1, 1, 0, 1, 1, 1, 1], dtype=bool),
    }
    table |= {"MAIN_PRIMARY": table["ZCAT_PRIMARY"].copy(), "SV_PRIMARY": np.zeros(n, dtype=bool)}
    table["PROGRAM"][4] = b"other"
    before = table["ZCAT_PRIMARY"].copy()
    form = EDITIONS["desi"](TIERS["tiny"], None, 0, None, {}, None).form
    what = form.first(table, np.zeros(n))
    flipped = np.flatnonzero(table["ZCAT_PRIMARY"] != before)
    assert len(flipped) == 2 and len(set(table["TARGETID"][flipped].tolist())) == 1
    assert np.array_equal(np.flatnonzero(what == "changed"), flipped)
    assert np.array_equal(table["MAIN_PRIMARY"], table["ZCAT_PRIMARY"])
    # stuck fibres are no target; the lonely are left to the other edits
    assert (what[5:] == "").all() and (what[:5] != "").all()


def test_rows_that_share_a_key_or_shine_not_at_all_keep_their_values():
    rng = np.random.default_rng(0)
    table = {"id": np.arange(100), "ra": rng.uniform(0, 9, 100), "dec": rng.uniform(0, 9, 100), "f": np.ones(100)}
    table["id"][:90] = 7
    table["f"][90:95] = 0
    table["f"][95] = np.nan

    def number(rows, fresh):
        fresh["id"][:] = 1000 + np.arange(len(fresh["id"]))

    form = tableedits.Form("any", lambda rows: rows["id"], "ra", "dec", number, flux=("f",))
    what, _ = tableedits.choose(table, form, table["id"], np.zeros(100, dtype=bool), 0)
    assert (what[:90] == "same").all() and np.isin(what[90:96], ("same", "gone", "moved")).all()
    assert {"split", "changed"} <= set(what[96:].tolist())


def test_a_table_of_hsc(tmp_path):
    n, rng = 250, np.random.default_rng(2)
    folder = tmp_path / "hsc" / "sql" / "pdr3_wide"
    sources = {
        "uid": np.arange(1, n + 1),
        "ra": rng.uniform(150, 151, n),
        "dec": rng.uniform(2, 3, n),
        "flux_r": rng.uniform(1, 9, n),
        "kind": np.repeat(["galaxy"], n),
    }
    held = n - 10
    flux = sources["flux_r"][:held] * 3630.7805
    values = {
        "object_id": np.iinfo(np.int64).max - held + np.arange(held),
        "isprimary": rng.random(held) < 0.9,
        "ra": sources["ra"][:held],
        "dec": sources["dec"][:held],
        **{f"{b}_cmodel_flux": flux for b in "gr"},
        **{f"{b}_cmodel_fluxerr": flux / 50 for b in "gr"},
        **{f"{b}_cmodel_mag": 31.4 - 2.5 * np.log10(flux) for b in "gr"},
    }
    values["g_cmodel_flux"] = np.where(np.arange(held) < 3, np.nan, flux)
    kinds = {"object_id": "i8", "isprimary": "bool", "ra": "f8", "dec": "f8"}
    columns = [TableColumn(c, kinds.get(c, "f4")) for c in (*values, "a_g", "a_r")]
    write_table(folder / "forced-9570.fits", columns, values, held)
    write_checksums(folder / "sha256sum.txt", [folder / "forced-9570.fits"])
    truth = pa.table(
        {
            "uid": sources["uid"],
            "key": pa.array([*values["object_id"].tolist(), *[None] * 10], pa.int64()),
            "dirt": [""] * n,
            "observed": [True] * held + [False] * 10,
            "why_not": [""] * held + ["too faint"] * 10,
        }
    )
    edition = EDITIONS["hsc"](TIERS["tiny"], tmp_path / "hsc", 1, truth, sources, None)
    grown, line, after = rewrite(edition, tmp_path / "hsc", 1, truth, sources)
    rows = read_fits([folder / "forced-9570.fits"]).rows
    what = np.array(line["what"].to_pylist())
    ended = line["key_2"].null_count
    assert len(rows["ra"]) == held + grown == held - ended + line["key_1"].null_count
    # no id overflows, though the first release ends at the largest there is
    assert (rows["object_id"] > 0).all() and len(set(rows["object_id"].tolist())) == len(rows["ra"])
    # flux and magnitude still say the same, and the true flux where a row was added
    lit = np.isfinite(rows["r_cmodel_flux"])
    assert np.allclose(rows["r_cmodel_mag"][lit], 31.4 - 2.5 * np.log10(rows["r_cmodel_flux"][lit]), atol=1e-4)
    born = line.filter(pc.equal(line["what"], "added"))
    assert born.num_rows == 2 and set(born["uid"].to_pylist()) <= set(range(held + 1, n + 1))
    for key, uid in zip(born["key_2"].to_pylist(), born["uid"].to_pylist(), strict=True):
        j = rows["object_id"].tolist().index(key)
        assert rows["r_cmodel_flux"][j] == pytest.approx(sources["flux_r"][uid - 1] * 3630.7805, rel=1e-5)
        assert rows["ra"][j] == sources["ra"][uid - 1]
    old = {k: i for i, k in enumerate(values["object_id"].tolist())}
    for entry in line.filter(pa.array(what == "changed")).to_pylist():
        i, j = old[entry["key_1"]], rows["object_id"].tolist().index(entry["key_2"])
        assert rows["r_cmodel_flux"][j] / rows["r_cmodel_fluxerr"][j] == pytest.approx(50, rel=1e-5)
        assert 0.019 < abs(rows["r_cmodel_flux"][j] / flux[i] - 1) < 0.061
    assert {"A_R", "a_g", "since_release"} <= set(rows) and rows["a_g"].dtype == np.float64
    assert set(after["key"].drop_null().to_pylist()) == set(rows["object_id"].tolist())
