"""SDSS's own columns and the cuts, each with its reason.

Columns: data.sdss.org/datamodel, specObj. `aion` are the cuts of MultimodalUniverse, which AION-1 drew on.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from skycairn.catalogs.survey import Column, Cut

F4, I4, TEXT = pa.float32(), pa.int32(), pa.string()
UGRIZ = pa.list_(pa.float32(), 5)
COLUMNS = (
    Column("run2d", TEXT, required=True),
    Column("plate", I4, required=True),
    Column("mjd", I4, required=True),
    Column("fiberid", I4, required=True),
    Column("survey", TEXT),
    Column("programname", TEXT),
    Column("platequality", TEXT),
    Column("targettype", TEXT),
    Column("specprimary", pa.bool_()),
    Column("specobjid", TEXT),
    Column("bestobjid", TEXT),
    Column("fluxobjid", TEXT),
    Column("class", TEXT),
    Column("subclass", TEXT),
    Column("z", pa.float64()),
    Column("z_err", F4),
    Column("zwarning", I4),
    Column("z_noqso", pa.float64()),
    Column("z_err_noqso", F4),
    Column("zwarning_noqso", I4),
    Column("z_good", pa.float64()),
    Column("z_good_err", F4),
    Column("sn_median_all", F4),
    Column("vdisp", F4, "km/s"),
    Column("spectroflux", UGRIZ, "nanomaggy"),
    Column("spectroflux_ivar", UGRIZ, "1/nanomaggy^2"),
    Column("anyandmask", I4),
)
DERIVED = ("z_good", "z_good_err")

NOT_LIGHT = (1 << 0) | (1 << 7) | (1 << 9)
"""ZWARNING's SKY, UNPLUGGED and NODATA (www.sdss4.org/dr17/algorithms/bitmasks, ZWARNING)."""

VALID = (
    Cut(
        "position",
        ("ra", "dec"),
        lambda v: (v["ra"] >= 0) & (v["ra"] < 360) & (np.abs(v["dec"]) <= 90),
        "a source lies somewhere on the sky",
    ),
    Cut("key", ("key",), lambda v: np.ones(len(v["key"]), dtype=bool), "a spectrum has a run, plate, night and fibre"),
    Cut(
        "targettype",
        ("targettype",),
        lambda v: v["targettype"] != "SKY",
        "light of a thing: science targets and standards, no sky fibre",
        null="passes",
    ),
    Cut(
        "zwarning_fibre",
        ("zwarning",),
        lambda v: (v["zwarning"] & NOT_LIGHT) == 0,
        "the fibre was plugged, was no sky fibre and gave data",
        null="passes",
    ),
)
PRIMARY = Cut("specprimary", ("specprimary",), lambda v: v["specprimary"], "the best of a thing's spectra")
SCIENCE = Cut("science", ("targettype",), lambda v: v["targettype"] == "SCIENCE", "a science target, no standard star")
QUALITY = Cut("platequality", ("platequality",), lambda v: v["platequality"] == "good", "the plate was observed well")
SELECT: Mapping[str, tuple[Cut, ...]] = {
    "aion": (PRIMARY, SCIENCE, QUALITY),
    "strict": (
        PRIMARY,
        SCIENCE,
        QUALITY,
        Cut(
            "good_z", ("z_good",), lambda v: np.isfinite(v["z_good"]), "ZWARNING 0, of the fit without quasars for BOSS"
        ),
        Cut("sn", ("sn_median_all",), lambda v: v["sn_median_all"] > 1, "some light in every pixel"),
    ),
    "all": (),
}
