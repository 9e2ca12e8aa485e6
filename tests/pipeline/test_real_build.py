"""The whole way on real survey files, laid out as their archives lay them."""

import csv
import gzip
import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import healpy
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table

from skycairn.pile.shards import ShardReader
from skycairn.pile.store import Pile
from skycairn.pipeline import run
from skycairn.pipeline.recipe import parse
from skycairn.pipeline.report import Report
from tests.conftest import once

BRICK = "1054p567"
N_SOURCES = 30
XP_PRODUCTS = "gaia/xp-continuous"


def checksums(folder: Path, name: str, algorithm: str) -> None:
    lines = [f"{hashlib.new(algorithm, p.read_bytes()).hexdigest()}  {p.name}\n" for p in sorted(folder.iterdir())]
    (folder / name).write_text("".join(lines))


def lay_legacysurvey(real: Path, root: Path) -> None:
    source = real / "legacysurvey/tractor-dr9/north/tractor/105" / f"tractor-{BRICK}.fits"
    folder = root / "north/tractor/105"
    folder.mkdir(parents=True)
    shutil.copyfile(source, folder / source.name)
    checksums(folder, "legacysurvey_dr9_north_tractor_105.sha256sum", "sha256")
    with fits.open(source) as hdus:
        row = hdus[1].data[0]
        ra, dec = float(row["RA"]), float(row["DEC"])
        brickid = int(row["BRICKID"])
    # the tables of bricks are 10 MB and not among the real files; this is their row of the brick
    limits = {"ra1": [ra - 0.2], "ra2": [ra + 0.2], "dec1": [dec - 0.125], "dec2": [dec + 0.125]}
    name = {"brickname": [BRICK], "ra": [ra], "dec": [dec], "brickid": [brickid], **limits}
    Table(name).write(root / "survey-bricks.fits.gz")
    exposures = {f"nexp_{band}": np.array([3], np.int16) for band in "grz"}
    Table({**name, **exposures}).write(root / "north/survey-bricks-dr9-north.fits.gz")


def lay_desi(real: Path, root: Path) -> int:
    source = real / "desi/coadd-redrock-iron"
    with fits.open(source / "redrock-4-80613-thru20210324.fits") as hdus:
        row = hdus["FIBERMAP"].data[0]
        cell = int(healpy.ang2pix(64, row["TARGET_RA"], row["TARGET_DEC"], nest=True, lonlat=True))
    folder = root / f"healpix/sv1/bright/{cell // 100}/{cell}"
    folder.mkdir(parents=True)
    for kind in ("coadd", "redrock"):
        shutil.copyfile(source / f"{kind}-4-80613-thru20210324.fits", folder / f"{kind}-sv1-bright-{cell}.fits")
    checksums(folder, f"redux_iron_healpix_sv1_bright_{cell // 100}_{cell}.sha256sum", "sha256")
    return cell


def lay_gaia(real: Path, root: Path) -> tuple[set[int], set[int]]:
    """Real gaia_source rows, and the real XP spectra.

    No real gaia_source row of a source with a real XP product is at hand: those sources get a row of the id and the
    position that their XP product comes with, and nothing else.
    """
    sources = Table.read(real / "gaia/archive-gaia_source/gdr3_sm.fits", unit_parse_strict="silent")
    names = [n.lower() for n in sources.colnames]
    csv.field_size_limit(1 << 30)
    spectra: dict[int, dict[str, str]] = {}
    for file in ("XP_CONTINUOUS_RAW.csv", "XP_CONTINUOUS_RAW_missing_BP_dr3int6.csv"):
        with (real / XP_PRODUCTS / file).open() as stream:
            spectra |= {int(row["source_id"]): row for row in csv.DictReader(stream)}
    where = {}
    for source_id in spectra:
        # the centre of the level-12 pixel of the id, for their products carry no position
        ra, dec = healpy.pix2ang(4096, source_id >> 35, nest=True, lonlat=True)
        where[source_id] = (float(ra), float(dec))

    def text(value: object) -> str:
        if np.ma.is_masked(value) or (isinstance(value, (float, np.floating)) and not np.isfinite(value)):
            return "null"
        value = value.item() if isinstance(value, np.generic) else value
        return value.decode().strip() if isinstance(value, bytes) else str(value)

    folder = root / "gaia_source"
    folder.mkdir(parents=True)
    with gzip.open(folder / "GaiaSource_000000-786431.csv.gz", "wt", newline="") as stream:
        stream.write("# %ECSV 1.0\n# ---\n# delimiter: ','\n")
        writer = csv.writer(stream)
        writer.writerow(names)
        for row in sources:
            writer.writerow([text(v) for v in row])
        for source_id, (ra, dec) in where.items():
            known = {"source_id": str(source_id), "ra": repr(ra), "dec": repr(dec), "ref_epoch": "2016.0"}
            known |= {"has_xp_continuous": "True"}
            writer.writerow([known.get(n, "null") for n in names])
    checksums(folder, "_MD5SUM.txt", "md5")
    folder = root / "Spectroscopy/xp_continuous_mean_spectrum"
    folder.mkdir(parents=True)
    with gzip.open(folder / "XpContinuousMeanSpectrum_000000-786431.csv.gz", "wt", newline="") as stream:
        dict_writer = csv.DictWriter(stream, list(next(iter(spectra.values()))))
        dict_writer.writeheader()
        dict_writer.writerows(spectra.values())
    checksums(folder, "_MD5SUM.txt", "md5")
    # the file holds a random thousand of the whole sky, each in a cell of its own: some of them are enough
    some = sources[:N_SOURCES]
    ra, dec = [*some["ra"], *(r for r, _ in where.values())], [*some["dec"], *(d for _, d in where.values())]
    cells = healpy.ang2pix(64, np.array(ra), np.array(dec), nest=True, lonlat=True)
    return {int(c) for c in cells}, set(spectra)


@pytest.fixture(scope="module")
def built(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Pile, set[int]]:
    def make(out: Path) -> None:
        root = out / "archives"
        lay_legacysurvey(real_data, root / "legacysurvey")
        cell = lay_desi(real_data, root / "desi")
        cells, with_xp = lay_gaia(real_data, root / "gaia")
        recipe = parse(
            {
                "region": {"kind": "cells", "order": 6, "cells": sorted({*cells, cell})},
                "surveys": {
                    "legacysurvey": {"release": "dr9-north", "profile": "all", "catalog": "tractor"},
                    "desi": {"release": "dr1", "profile": "all", "catalog": "redrock"},
                    "gaia": {"release": "dr3", "profile": "all"},
                },
                "split": {"least": 0.0},
                "codecs": {"fit_on": "any"},
            },
            "test",
        ).at(root)
        done = run.build(recipe, out / "pile")
        assert done.snapshot.number == 1
        (out / "told.json").write_text(json.dumps([asdict(done.report), sorted(with_xp)]))

    out = once(tmp_path_factory, "real", make)
    report, with_xp = json.loads((out / "told.json").read_text())
    return Report(**report), Pile.open(out / "pile"), set(with_xp)


def objects(pile: Pile) -> pa.Table:
    head = pile.snapshot()
    tables = [pile.read_table(e.part) for e in head.entries("objects")]
    return pa.concat_tables([t.cast(tables[0].schema) for t in tables])


def tokens_of(pile: Pile, object_id: str) -> dict[str, int]:
    for entry in pile.snapshot().entries("shards"):
        with ShardReader(pile.path(entry.part)) as shard:
            for group in range(len(shard.row_groups)):
                ids = shard.objects(group, ["object_id"]).column("object_id").to_pylist()
                if object_id in ids:
                    tokens = shard.tokens(group)
                    return {m: int(t.length[ids.index(object_id)]) for m, t in tokens.items()}
    raise AssertionError(f"{object_id} is in no shard")


def test_the_desi_target_and_its_legacy_row_are_one_object_with_tokens(
    built: tuple[Report, Pile, set[int]],
) -> None:
    _, pile, _ = built
    rows = [r for r in objects(pile).to_pylist() if r["key.desi"] is not None]
    assert len(rows) == 1
    row = rows[0]
    assert row["object_id"].startswith("legacysurvey:")
    assert row["separation_arcsec.desi"] < 0.1
    assert row["status.desi.spectrum"] == "present" and row["status.desi.z"] == "present"
    assert row["status.legacysurvey.image"] == "file absent"
    assert row["status.legacysurvey.flux_i"] == "not measured"
    assert row["status.gaia"] == "not detected"
    tokens = tokens_of(pile, row["object_id"])
    assert tokens["desi.spectrum"] == 273 and tokens["desi.z"] == 1
    assert tokens["legacysurvey.flux_g"] == 1


def test_the_gaia_rows_with_xp_have_tokens_and_the_others_a_status(built: tuple[Report, Pile, set[int]]) -> None:
    _, pile, with_xp = built
    rows = {r["key.gaia"]: r for r in objects(pile).to_pylist() if r["key.gaia"] is not None}
    assert len(rows) >= N_SOURCES + len(with_xp)
    assert with_xp <= set(rows)
    for key in with_xp:
        assert rows[key]["status.gaia.xp_rp"] == "present"
        assert tokens_of(pile, rows[key]["object_id"])["gaia.xp_rp"] == 55
    missing_bp = rows[5405570973190252288]
    assert missing_bp["status.gaia.xp_bp"] == "not measured"
    assert missing_bp["status.gaia.parallax"] == "not measured"
    flagged = [r["status.gaia.xp_bp"] for k, r in rows.items() if k not in with_xp]
    assert set(flagged) == {"not measured", "file absent"}


def test_sums_close(built: tuple[Report, Pile, set[int]]) -> None:
    report = built[0]
    for counts in report.surveys.values():
        assert counts["rows"] == counts["kept"] + sum(v for k, v in counts.items() if k.startswith("dropped:"))
        assert counts["valid"] == counts["members"] + counts.get("anchored outside region", 0)
    assert report.objects == sum(report.strata.values()) == sum(report.splits.values())


def test_building_again_does_nothing(built: tuple[Report, Pile, set[int]], real_data: Path) -> None:
    _, pile, _ = built
    assert pile.snapshot().number == 1
    assert not pile.verify(deep=True).problems
