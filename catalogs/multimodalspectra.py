"""The Multimodal Universe's DESI EDR and SDSS DR17, spectra and catalogues; see multimodal.py."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.catalogs import desikey, sdsskey, sdssspectra
from skycairn.catalogs import multimodalfile as hdf5
from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.desi import Desi
from skycairn.catalogs.desicoadd import N_PIXELS, WAVELENGTH_START, WAVELENGTH_STEP, wavelength
from skycairn.catalogs.multimodal import Imported
from skycairn.catalogs.sdss import Sdss
from skycairn.catalogs.survey import MissingColumn

SOMETHING_WRONG = 1 << 30
"""Put for ZWARN or ZWARNING where a boolean says that the redshift is bad, and not why: a bit that no survey uses."""
WAVELENGTH_TOLERANCE = 0.01
"""Angstrom; float32 rounds these wavelengths by up to 0.0005."""
I64 = NDArray[np.int64]


def read_arrays(path: Path, rows: I64) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Flux, inverse variance and mask (True = bad) of these rows, (n, pixel), as they are stored."""
    flux, ivar = (hdf5.payload(path, (name,), rows) for name in ("spectrum_flux", "spectrum_ivar"))
    mask = np.zeros(flux.shape, bool)
    if hdf5.has(path, "spectrum_mask"):
        mask = hdf5.payload(path, ("spectrum_mask",), rows) != 0
    if flux.ndim != 2 or ivar.shape != flux.shape or mask.shape != flux.shape:
        raise ValueError(
            f"{path}: spectrum_flux has shape {flux.shape}, spectrum_ivar {ivar.shape}, spectrum_mask {mask.shape}; "
            "wanted (n, pixel) all"
        )
    return flux, ivar, mask


def spectra_table(
    keys: pa.Array, why: str, arrays: Mapping[str, NDArray[Any]], gone: NDArray[np.bool_], metadata: Mapping[str, str]
) -> pa.Table:
    """key, status, flux, ivar, mask, lsf_sigma: null in rows that are `gone`, for the reason `why`."""
    columns = {"key": keys, "status": pa.array(np.where(gone, why, ""), pa.string(), mask=~gone)}
    for name, kind in (
        ("flux", pa.float32()),
        ("ivar", pa.float32()),
        ("mask", pa.bool_()),
        ("lsf_sigma", pa.float32()),
    ):
        values = arrays.get(name, np.full((len(gone), 1), np.nan, np.float32))
        null = gone | np.isnan(values).any(axis=1) if name == "lsf_sigma" else gone
        offsets = np.concatenate([[0], np.cumsum(np.where(null, 0, values.shape[1]))]).astype(np.int32)
        flat = pa.array(values[~null].reshape(-1), kind)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), flat, mask=pa.array(null))
    return pa.table(columns).replace_schema_metadata(dict(metadata))


def as_bits(fetch: Fetch, good: bool) -> Fetch:
    """A column of warnings: what is a boolean, and `good` where there is none, becomes bits."""

    def bits() -> NDArray[Any]:
        values = fetch()
        return np.where(values == good, 0, SOMETHING_WRONG).astype(np.int32) if values.dtype == np.bool_ else values

    return bits


class MultimodalDesi(Imported, Desi):
    """DESI EDR, SV3's primary spectra of targets, as MMU has it; root: the folder that holds `edr_sv3`.

    Options: `epoch_range`, as of the survey's own releases.
    """

    releases = ("mmu-edr-sv3",)
    original, folder, sets = "edr", "desi", ("edr_sv3",)
    settings = ("epoch_range",)
    position = ("target_ra", "target_dec")
    given: ClassVar[Mapping[str, Any]] = {"survey": "sv3", "sv_primary": True, "objtype": "TGT", "coadd_fiberstatus": 0}

    def own_table(self, path: Path, rows: tuple[int, int] | None, needed: Iterable[str]) -> pa.Table:
        """The survey's own table, out of these columns."""
        found, n, units = self._stored(path, rows)
        start = rows[0] if rows is not None else 0
        where, reason = f"desi {self.release}: {path}", "is it a file of the Multimodal Universe's DESI?"
        return self._table(dict(found), units, (start, n), None, needed, where, reason)

    def mend(self, found: dict[str, Fetch], n: int, where: str) -> None:
        """Identifiers that became text, and the polarity of ZWARN."""
        if (identifiers := found.get("targetid", found.get("object_id"))) is not None:
            found["targetid"] = lambda: hdf5.whole_numbers(identifiers(), where)
        if "zwarn" in found:
            found["zwarn"] = as_bits(found["zwarn"], good=True)

    def keys_of(self, found: Mapping[str, Fetch]) -> I64:
        """Key of each row."""
        survey, program = (hdf5.text(found[c]()) for c in ("survey", "program"))
        key, packed, _ = desikey.pack_key(found["targetid"](), survey, program)
        return np.where(packed, key, -1)

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Spectra on the survey's own grid: key, status, flux, ivar, mask; lsf_sigma is null throughout."""
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        keys = sources.column("key").combine_chunks()
        flux, ivar = (np.zeros((len(keys), N_PIXELS), np.float32) for _ in range(2))
        mask = np.ones(flux.shape, bool)
        for path, row in self.rows_in(files, keys.to_numpy(zero_copy_only=False)):
            at = np.flatnonzero(row >= 0)
            if not len(at):
                continue
            stored, weight, bad = read_arrays(path, row[at])
            _check_wavelength(path, row[at], stored.shape[1])
            with np.errstate(all="ignore"):
                stored, weight = stored.astype(np.float32), weight.astype(np.float32)
                bad |= ~(np.isfinite(stored) & np.isfinite(weight) & (weight > 0) & (weight < np.finfo(np.float32).max))
            flux[at], ivar[at], mask[at] = np.where(bad, 0, stored), np.where(bad, 0, weight), bad
        why = "file_absent" if lost or not files else "not_measured"
        metadata = {"wavelength_start": str(WAVELENGTH_START), "wavelength_step": str(WAVELENGTH_STEP)}
        return spectra_table(
            keys, why, {"flux": flux, "ivar": ivar, "mask": mask}, np.asarray(mask.all(axis=1)), metadata
        )


def _check_wavelength(path: Path, rows: I64, n_pixels: int) -> None:
    grid = wavelength()
    ends: NDArray[Any] = grid[None, [0, -1]]
    if hdf5.has(path, "spectrum_lambda"):
        held = hdf5.payload(path, ("spectrum_lambda",), rows).astype(np.float64)
        right = held.shape[1] == N_PIXELS and bool(np.abs(held - grid).max(initial=0) < WAVELENGTH_TOLERANCE)
        ends = held[:, [0, -1]] if held.size else ends
    elif hdf5.has(path, "spectrum_lambda_min"):
        limits = [hdf5.payload(path, (f"spectrum_lambda_{e}",), rows).astype(np.float64) for e in ("min", "max")]
        ends = np.stack(limits, axis=1)
        right = bool(np.abs(ends - grid[[0, -1]]).max(initial=0) < WAVELENGTH_TOLERANCE)
    else:
        raise MissingColumn(f"{path}: holds no 'spectrum_lambda', so that its pixels have no wavelengths")
    if not right or n_pixels != N_PIXELS:
        raise ValueError(
            f"{path}: its spectra have {n_pixels} pixels, {ends[0, 0]:.2f} to {ends[0, 1]:.2f} Angstrom; wanted "
            f"{N_PIXELS}, {grid[0]} to {grid[-1]} in steps of {WAVELENGTH_STEP}"
        )


class MultimodalSdss(Imported, Sdss):
    """SDSS DR17, primary spectra of science targets on good plates, as MMU has it.

    Root: the folder that holds `sdss`, `segue1`, `segue2`, `boss` and `eboss`, or some of them. Options: `epoch_range`,
    as of the survey's own release. A pixel is masked where `and_mask` has any bit, where the survey's own spectra are
    masked for lack of data alone.
    """

    releases = ("mmu",)
    original, folder, sets = "dr17", "sdss", ("sdss", "segue1", "segue2", "boss", "eboss")
    settings = ("epoch_range",)
    position = ("plug_ra", "plug_dec")
    given: ClassVar[Mapping[str, Any]] = {"specprimary": True, "targettype": "SCIENCE", "platequality": "good"}

    def mend(self, found: dict[str, Fetch], n: int, where: str) -> None:
        """The polarity of ZWARNING, and SPECOBJID where it is called object_id."""
        if "zwarning" in found:
            found["zwarning"] = as_bits(found["zwarning"], good=False)
        if "specobjid" not in found and "object_id" in found:
            found["specobjid"] = found["object_id"]

    def keys_of(self, found: Mapping[str, Fetch]) -> I64:
        """Key of each row."""
        run2d = hdf5.text(found["run2d"]())
        key, packed = sdsskey.pack_key(run2d, *(found[c]().astype(np.int64) for c in ("plate", "mjd", "fiberid")))
        return np.where(packed, key, -1)

    def extract(self, modality: str, sources: pa.Table, files: Mapping[str, Path], lost: frozenset[str]) -> pa.Table:
        """Spectra on the grid that all of SDSS shares: key, status, flux, ivar, mask, lsf_sigma."""
        if not self.modality(modality).payload:
            return super().extract(modality, sources, files, lost)
        keys = sources.column("key").combine_chunks()
        out = _nothing(len(keys))
        for path, row in self.rows_in(files, keys.to_numpy(zero_copy_only=False)):
            at = np.flatnonzero((row >= 0) & ~self._of_two_nights(path)[np.maximum(row, 0)])
            if len(at):
                for into, values in zip(out, _on_grid(path, row[at]), strict=True):
                    into[at] = values
        why = "file_absent" if lost or not files else "not_measured"
        metadata = {"loglam_start": str(sdssspectra.LOGLAM_START), "loglam_step": str(sdssspectra.LOGLAM_STEP)}
        return spectra_table(keys, why, out._asdict(), np.asarray(out.mask.all(axis=1)), metadata)

    def _of_two_nights(self, path: Path) -> NDArray[np.bool_]:
        """Rows of plates that have several MJD in the file, so that any of their spectra may be another fibre's."""
        found, n, _ = self._stored(path, None)
        if not n:
            return np.zeros(1, bool)
        plate, mjd = (found[c]().astype(np.int64) for c in ("plate", "mjd"))
        pairs = np.unique(np.stack([plate, mjd], axis=1), axis=0)
        plates, nights = np.unique(pairs[:, 0], return_counts=True)
        return np.isin(plate, plates[nights > 1])


def _nothing(n: int) -> sdssspectra.Spectra:
    """No pixel of n spectra on the shared grid."""
    zero = np.zeros((n, sdssspectra.N_PIXELS), np.float32)
    return sdssspectra.Spectra(zero, zero.copy(), np.ones(zero.shape, bool), np.full_like(zero, np.nan))


def _on_grid(path: Path, rows: I64) -> sdssspectra.Spectra:
    """Rows of one file, less their padding."""
    flux, ivar, bad = read_arrays(path, rows)
    lam = hdf5.payload(path, ("spectrum_lambda",), rows).astype(np.float64)
    wide = hdf5.payload(path, ("spectrum_lsf_sigma",), rows) if hdf5.has(path, "spectrum_lsf_sigma") else None
    if lam.shape != flux.shape:
        raise ValueError(f"{path}: spectrum_lambda has shape {lam.shape}, wanted {flux.shape}, as spectrum_flux has")
    if wide is not None and wide.shape != flux.shape:
        wide = None
    real = np.isfinite(lam) & (lam > 0)
    first = np.where(real.any(axis=1), real.argmax(axis=1), 0)
    start = lam[np.arange(len(lam)), first]
    scales, which = np.unique(np.stack([start, first, real.sum(axis=1)], axis=1), axis=0, return_inverse=True)
    pieces = []
    for k in range(len(scales)):
        mine = np.flatnonzero(which.reshape(-1) == k)
        use = real[mine[0]]
        if not use.any():
            continue
        if (real[mine] != use).any() or (lam[mine][:, use] != lam[mine[0], use]).any():
            raise ValueError(f"{path}: spectra that begin alike have unlike wavelengths; is it damaged?")
        with np.errstate(over="ignore"):
            weight = ivar[mine][:, use].astype(np.float32)
        # masked by whatever bit: MMU kept that there was one, not which; and what a division by zero became
        no_data = (bad[mine][:, use] | (weight >= np.finfo(np.float32).max)) * sdssspectra.NODATA
        width = None if wide is None else wide[mine][:, use]
        made = sdssspectra.on_grid(flux[mine][:, use], weight, no_data, width, np.log10(lam[mine[0], use]), str(path))
        pieces.append((mine, made))
    out = _nothing(len(rows))
    for mine, made in pieces:
        for into, values in zip(out, made, strict=True):
            into[mine] = values
    return out
