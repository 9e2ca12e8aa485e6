"""Columns of SDSS's tables that the mock fills, with the types and units of the DR17 files.

`NAME:type` or `NAME:type:unit`. Spellings and text widths as in the SPECOBJ table of DR17's spec files.
"""

from __future__ import annotations

from skycairn.mocksky.fitsfile import TableColumn

SPECOBJ = """
SURVEY:char[6] INSTRUMENT:char[4] CHUNK:char[16] PROGRAMNAME:char[23] PLATERUN:char[16] PLATEQUALITY:char[8]
PLATESN2:f4 LAMBDA_EFF:f4:Angstrom SPECPRIMARY:u1 SPECLEGACY:u1 SPECSEGUE:u1 SPECBOSS:u1 SPECOBJID:char[22]
FLUXOBJID:char[19] BESTOBJID:char[19] TARGETOBJID:char[22] PLATEID:char[20] NSPECOBS:i2 RUN2D:char[7] RUN1D:char[7]
SOURCETYPE:char[19] TARGETTYPE:char[8] PLATE:i4 MJD:i4:d FIBERID:i4 PLUG_RA:f8:deg PLUG_DEC:f8:deg CLASS:char[6]
SUBCLASS:char[21] Z:f4 Z_ERR:f4 RCHI2:f4 DOF:i4 RCHI2DIFF:f4 VDISP:f4:km/s VDISP_ERR:f4:km/s WAVEMIN:f4:Angstrom
WAVEMAX:f4:Angstrom ZWARNING:i4 SN_MEDIAN_ALL:f4 SN_MEDIAN:f4[5] SPECTROFLUX:f4[5]:nanomaggy
SPECTROFLUX_IVAR:f4[5]:nanomaggy^-2 SPECTROSYNFLUX:f4[5]:nanomaggy SPECTROSYNFLUX_IVAR:f4[5]:nanomaggy^-2
ANYANDMASK:i4 ANYORMASK:i4 Z_NOQSO:f4 Z_ERR_NOQSO:f4 ZWARNING_NOQSO:i4 THING_ID:i4
"""
PLUGMAP = "OBJTYPE:char[16] RA:f8:deg DEC:f8:deg MAG:f4[5]:mag SPECTROGRAPHID:i4 FIBERID:i4"
COADD = "flux:f4 loglam:f4 ivar:f4 and_mask:i4 or_mask:i4 wdisp:f4 sky:f4 model:f4"


def columns(text: str) -> list[TableColumn]:
    """The columns of a table above."""
    return [TableColumn(*c.split(":")) for c in text.split()]
