"""The Multimodal Universe's Gaia DR3: the sources that have XP spectra; see multimodal.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from skycairn.catalogs import multimodalfile as hdf5
from skycairn.catalogs.columns import Fetch
from skycairn.catalogs.gaia import N_COEFFICIENTS, SOURCE_COLUMNS, XP_COLUMNS, Gaia
from skycairn.catalogs.multimodal import Imported


class MultimodalGaia(Imported, Gaia):
    """Gaia DR3, sources with XP spectra, as MMU has it; root: the folder that holds `gaia`.

    Rows of zeros, which MMU's joining of files left between them, have no source_id and are dropped by the cut of that
    name. A band whose coefficients are all zero, or not finite, has none (null).
    """

    releases = ("mmu-dr3",)
    original, folder, sets = "dr3", "gaia", ("gaia",)
    settings = ()
    rounded = True
    given: ClassVar[Mapping[str, Any]] = {"has_xp_continuous": True}

    def n_rows(self, path: Path) -> None:  # type: ignore[override]
        """A file of Gaia's is read whole."""
        return None

    def mend(self, found: dict[str, Fetch], n: int, where: str) -> None:
        """Identifiers that became text, or are called object_id."""
        if (identifiers := found.get("source_id", found.get("object_id"))) is not None:
            found["source_id"] = lambda: hdf5.whole_numbers(identifiers(), where)

    def _source_table(self, path: Path) -> pa.Table:
        found, n, _ = self._stored(path, None)
        taken = {name: found[name]() for name in SOURCE_COLUMNS if name in found}
        empty = taken["source_id"] == 0 if "source_id" in taken else np.zeros(n, bool)
        columns, fields = [], []
        for name, values in taken.items():
            kind = SOURCE_COLUMNS[name].type
            missing = empty if name != "source_id" else np.zeros(n, bool)
            if values.dtype.kind == "f":
                missing = missing | ~np.isfinite(values)
            if pa.types.is_boolean(kind):
                values = values != 0
            native = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("="), copy=False)
            try:
                columns.append(pa.array(native, mask=missing).cast(kind))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise ValueError(f"{path}: column {name!r} holds {values.dtype}, wanted {kind}: {error}") from error
            fields.append(pa.field(name, kind))
        return pa.Table.from_arrays(columns, schema=pa.schema(fields))

    def _spectra(self, path: Path, xp: Path | None, source_id: pa.Array) -> dict[str, pa.Array]:
        """Coefficients out of `coeff` and `coeff_error`, BP's 55 before RP's."""
        n = len(source_id)
        out = {c.name: pa.nulls(n, c.type) for c in XP_COLUMNS}
        held = np.zeros(n, bool)
        if not hdf5.has(path, "coeff"):
            return {**out, "held": pa.array(held)}
        values, errors = (hdf5.payload(path, (name,), np.arange(n)) for name in ("coeff", "coeff_error"))
        for array, name in ((values, "coeff"), (errors, "coeff_error")):
            if array.shape != (n, 2 * N_COEFFICIENTS):
                raise ValueError(f"{path}: {name} has shape {array.shape}, wanted {(n, 2 * N_COEFFICIENTS)}")
        for k, band in enumerate(("bp", "rp")):
            part = slice(k * N_COEFFICIENTS, (k + 1) * N_COEFFICIENTS)
            there = np.isfinite(values[:, part]).all(axis=1) & (values[:, part] != 0).any(axis=1)
            held |= there
            out[f"{band}_coefficients"] = _lists(values[:, part], there)
            known = there & np.isfinite(errors[:, part]).all(axis=1)
            out[f"{band}_coefficient_errors"] = _lists(errors[:, part], known)
        return {**out, "held": pa.array(held)}


def _lists(values: NDArray[Any], there: NDArray[np.bool_]) -> pa.Array:
    flat = np.where(there[:, None], values, 0).astype(np.float32).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), N_COEFFICIENTS, mask=pa.array(~there))
