"""What is kept in memory is what the archives hold, read by the surveys' own readers."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from skycairn.catalogs import held
from skycairn.catalogs.registry import survey
from skycairn.catalogs.survey import Survey
from skycairn.mocksky.patches import TIERS
from skycairn.mocksky.replica import replica, seed_of
from skycairn.mocksky.unwritten import Sky, View, observe
from skycairn.pipeline.mockpatch import payload
from skycairn.pipeline.recipe import MOCK

CENTRES = ((200.0, 10.0),)


@pytest.fixture(scope="module")
def sky() -> Sky:
    return observe(TIERS["tiny"], 0)


def surveys() -> list[Survey]:
    return [survey(name, chosen["release"]) for name, chosen in MOCK["surveys"].items()]


def of_archive(s: Survey, root: Path) -> pa.Table:
    pattern = {"legacysurvey": "south/sweep/*/*.fits", "hsc": "**/forced-*.fits", "gaia": "gaia_source/*.csv.gz"}
    pattern |= {"desi": "zcatalog/*/zall*.fits", "sdss": "**/specObj-*.fits"}
    tables = []
    for path in sorted((root / s.name).glob(pattern[s.name])):
        xp = path.parents[1] / "Spectroscopy/xp_continuous_mean_spectrum" / path.name.replace("Gaia", "XpContinuous")
        xp = xp.with_name(xp.name.replace("XpContinuousSource", "XpContinuousMeanSpectrum"))
        companions = {"xp": xp if xp.exists() else None} if s.name == "gaia" else None
        tables.append(s.read(path, None, companions))
    return in_order(pa.concat_tables(tables))


def in_order(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_valid(table["key"])).sort_by([("key", "ascending"), ("ra", "ascending")])


@pytest.mark.parametrize("s", surveys(), ids=lambda s: s.name)
def test_catalogues_are_those_of_the_archive(s: Survey, sky: Sky, tiny_sky: Path) -> None:
    ours, theirs = in_order(held.read(s, sky.columns[s.name])), of_archive(s, tiny_sky)
    assert ours.schema == theirs.schema and ours.num_rows == theirs.num_rows > 10
    # which file and row, and what SDSS counts in its spectra, is of the files
    for name in set(ours.column_names) - {"row", "anyandmask"}:
        # as text, in which NaN is itself
        assert str(ours[name].to_pylist()) == str(theirs[name].to_pylist()), name


@pytest.mark.parametrize("name", ["desi.spectrum", "sdss.spectrum", "legacysurvey.image", "hsc.image"])
def test_pixels_and_spectra_are_those_of_the_archive(name: str, sky: Sky, tiny_sky: Path) -> None:
    s = next(s for s in surveys() if name.startswith(s.name))
    view = View(sky, 0)
    raw = held.read(s, view.columns(s.name))
    wanted = raw.filter(pc.is_valid(raw["key"])).slice(0, 12).combine_chunks()
    ours = pa.concat_tables(list(payload(view, s, s.modality(name), wanted, raw)), promote_options="permissive")
    root = tiny_sky / s.name
    compared = 0
    reference = {role: root / file.path for role, file in s.reference_files().items()}
    for group in s.payload_groups(wanted, name, reference):
        asked = wanted.take(pa.array(group.rows))
        files = {role: root / f.path for role, f in group.files.items() if (root / f.path).exists()}
        lost = frozenset({"coadd", "image-z"} & set(group.files) - set(files))
        theirs = s.extract(name, asked, files, lost)
        same = ours.take(pc.index_in(theirs["key"], ours["key"].combine_chunks()))
        assert same["status"].to_pylist() == theirs["status"].to_pylist()
        for a, b in zip(same.to_pylist(), theirs.to_pylist(), strict=True):
            if a["status"] is None:
                ivar, flux = np.array(b["ivar"]), np.abs(np.array(a["flux"]) - np.array(b["flux"]))
                steps = 0.0 if "spectrum" in name else 1 / 16
                # HSC's rims of patches may be of the neighbour
                assert np.mean(flux * np.sqrt(ivar) > steps * 1.01) < (0.06 if s.name == "hsc" else 1e-9)
                assert np.mean(np.array(a["mask"]) != np.array(b["mask"])) < (0.06 if s.name == "hsc" else 1e-9)
                compared += 1
    assert compared > 3


def test_replicas_share_no_key(sky: Sky) -> None:
    """Where they look at the same place, too."""
    tier = TIERS["tiny"]
    here = ((tier.patches[0].ra, tier.patches[0].dec),)
    skies = [sky]
    for seed, number in ((0, 1), (0, 2), (1, 1)):
        # the same stars, so that only the numbering keeps them apart; two of one seed never lie in one pixel
        centres = here if number == 1 else CENTRES
        skies.append(observe(replica(tier, number, centres, seed), 0))
    assert len({seed_of(s, n) for s in (0, 1) for n in (1, 2)}) == 4
    for s in surveys():
        # sky fibres and stuck ones have no key
        keys = [set(held.read(s, sky.columns[s.name])["key"].drop_null().to_pylist()) for sky in skies]
        assert min(map(len, keys)) > 5 and sum(map(len, keys)) == len(set().union(*keys)), s.name


def test_a_replica_loses_no_xp_file() -> None:
    """Of two patches far apart, so that there are two files."""
    patch = TIERS["tiny"].patches[0]
    tier = dataclasses.replace(TIERS["tiny"], patches=(patch, dataclasses.replace(patch, number=1, ra=90.0)))
    gaia = observe(replica(tier, 1, ((200.0, 10.0), (20.0, 10.0))), 0).columns["gaia"]
    assert gaia["has_xp_continuous"].sum() > 5 and (gaia["held"] == gaia["has_xp_continuous"]).all()
    gaia = observe(tier, 0).columns["gaia"]
    assert (gaia["held"] < gaia["has_xp_continuous"]).any()


def test_a_replica_near_a_pole_is_refused() -> None:
    with pytest.raises(ValueError, match="off 0"):
        replica(TIERS["tiny"], 1, ((0.0, 80.0),))
    with pytest.raises(ValueError, match="wanted as many"):
        replica(TIERS["tiny"], 1, ())
    with pytest.raises(ValueError, match="wanted 1 to"):
        replica(TIERS["tiny"], 0, CENTRES)
