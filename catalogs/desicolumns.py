"""DESI's own columns, as they are kept in the pile (https://desidatamodel.readthedocs.io, zall-pix)."""

from __future__ import annotations

import pyarrow as pa

from skycairn.catalogs.survey import Column


def _columns() -> tuple[Column, ...]:
    f4, f8, i4, i8, text, flag = pa.float32(), pa.float64(), pa.int32(), pa.int64(), pa.string(), pa.bool_()
    out = [
        Column("targetid", i8, required=True),
        Column("survey", text, required=True),
        Column("program", text, required=True),
        Column("healpix", i4),
        Column("z", f8, required=True),
        Column("zerr", f8),
        Column("zwarn", i8, required=True),
        Column("chi2", f8),
        Column("deltachi2", f8, required=True),
        Column("spectype", text),
        Column("subtype", text),
        Column("coadd_fiberstatus", i4, required=True),
        Column("objtype", text, required=True),
        Column("ref_epoch", f4, "yr", zero_is_null=True),
        Column("release", pa.int16()),
        Column("brickid", i4),
        Column("brickname", text),
        Column("brick_objid", i4),
        Column("morphtype", text),
        Column("ebv", f4, "mag"),
    ]
    for band in ("g", "r", "z", "w1", "w2"):
        # an exact 0 stands for the photometry of targets that the imaging does not have
        out.append(Column(f"flux_{band}", f4, "nanomaggy", zero_is_null=True))
        out.append(Column(f"flux_ivar_{band}", f4, "nanomaggy^-2"))
    out += [
        Column("maskbits", pa.int16()),
        Column("ref_id", i8, zero_is_null=True),
        Column("ref_cat", text),
        Column("photsys", text),
        Column("coadd_exptime", f4, "s"),
        Column("tsnr2_lrg", f4),
        Column("min_mjd", f8, "d"),
        Column("max_mjd", f8, "d"),
        Column("mean_mjd", f8, "d"),
        Column("mean_fiber_ra", f8, "deg"),
        Column("mean_fiber_dec", f8, "deg"),
        Column("sv_nspec", pa.int16()),
        Column("sv_primary", flag),
        Column("main_nspec", pa.int16()),
        Column("main_primary", flag),
        Column("zcat_nspec", pa.int16()),
        Column("zcat_primary", flag),
        Column("good_z", flag),
        Column("z_good", f8),
    ]
    return tuple(out)


COLUMNS = _columns()
