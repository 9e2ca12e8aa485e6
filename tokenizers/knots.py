"""AION-1's scalar codecs: a number to the interval between two knots of a fitted distribution that it falls in.

Tokens are those of `polymathic-aion`; what is decoded is the middle of the interval, not its upper end. With
`compat="aion"` decoding is the peer's too, and so is what it does with NaN, with infinity and beyond a grid's ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from skycairn.tokenizers.aion import matched, read_published, write_published
from skycairn.tokenizers.codec import Codec, Layout, Measurement, Tokens
from skycairn.tokenizers.distribution import RESERVOIR, Compression, Knots, Single, narrowed
from skycairn.tokenizers.modalities import MIN_LOG, AionModality, aion_modality
from skycairn.tokenizers.sketch import QuantileSketch
from skycairn.tokenizers.vocabulary import finite_values, from_tokens, to_tokens

Compat = Literal["aion"]
N_KNOTS = 1024


class _OnKnots(Codec):
    """What codecs on knots share: one table of knots for each number of a source."""

    ordered = True
    published: ClassVar[tuple[str, ...]]
    "AION-1's kinds of codec that the class takes over"

    def __init__(self, tables: Sequence[Knots], compat: Compat | None) -> None:
        if compat not in (None, "aion"):
            raise ValueError(f"{self.kind} codec: there is no compat {compat!r}; choose 'aion' or none")
        if len({(len(t.knots), t.compression, t.min_log) for t in tables}) != 1:
            raise ValueError(
                f"{self.kind} codec: {len(tables)} tables of unlike length or compression, wanted them alike"
            )
        self.tables = list(tables)
        self.compat = compat
        self.vocabulary = len(tables[0].knots)

    def encode(self, measurement: Measurement) -> Tokens:
        """Tokens (n, numbers of a source) of `value`, which are taken as float32."""
        x = self._values(measurement)
        self._refuse(x)
        index = np.empty(x.shape, np.int64)
        for k, table in enumerate(self.tables):
            index[:, k] = table.index_by_torch(x[:, k]) if self.compat else table.index(x[:, k])
        return to_tokens(self, index)

    def decode(self, tokens: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """`value` in float64: of each interval the middle as compressed; with compat its upper end."""
        index = from_tokens(self, tokens)
        value = np.empty(index.shape)
        for k, table in enumerate(self.tables):
            value[:, k] = (table.expand(table.knots) if self.compat else table.centres)[index[:, k]]
        return {"value": value if self.layout.shape else value[:, 0]}

    def settings(self) -> dict[str, Any]:
        """Compression and compat."""
        return {"compression": self.tables[0].compression, "min_log": self.tables[0].min_log, "compat": self.compat}

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Knots of the compressed value, and the reservoirs behind them where there are any."""
        found = {"knots": np.stack([t.knots for t in self.tables])}
        kept = [t.reservoir for t in self.tables if t.reservoir is not None]
        if len(kept) == len(self.tables):
            found["reservoir"] = np.stack(kept)
        return found if self.layout.shape else {k: v[0] for k, v in found.items()}

    def _values(self, measurement: Measurement) -> Single:
        """`value` as float32, shape (n, tables); with compat NaN and infinity pass."""
        width = self.layout.shape[0] if self.layout.shape else None
        if not self.compat or "value" not in measurement:
            wide = finite_values(f"{self.kind} codec", measurement, width)
            return narrowed(f"{self.kind} codec", wide).reshape(len(wide), len(self.tables))
        given = np.asarray(measurement["value"])
        finite = np.where(np.isfinite(given), given, 0) if given.dtype.kind == "f" else given
        finite_values(f"{self.kind} codec", {"value": finite}, width)
        with np.errstate(over="ignore"):
            return given.astype(np.float32).reshape(len(given), len(self.tables))

    def _refuse(self, x: Single) -> None:
        """ValueError where a number has no token; by default every number has one."""

    @classmethod
    def _modality(cls, token_key: str) -> AionModality:
        modality = aion_modality(token_key)
        if modality.codec not in cls.published:
            raise ValueError(
                f"{cls.kind} codec: AION-1 codes {token_key} by its {modality.codec!r} codec, wanted "
                f"{' or '.join(cls.published)}"
            )
        return modality

    @classmethod
    def _published(
        cls, source: str | Path, modality: AionModality, known: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Configuration and arrays; older files leave out the first underscore of every name."""
        config, arrays = read_published(source, modality.name)
        said = matched(modality.name, config, {"modality": ..., "codebook_size": ..., **known})
        if said["modality"] != modality.name:
            raise ValueError(
                f"{source}: holds the codec of {said['modality']!r}, wanted {modality.name!r} of {modality.token_key}"
            )
        return said, {f"_{k}" if k.startswith("quantizer") else k: v for k, v in arrays.items()}


def taken(source: object, arrays: Mapping[str, NDArray[Any]], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError where a published file has other arrays than these, or of other shapes."""
    wrong = [k for k in sorted(arrays.keys() | shapes.keys()) if k not in arrays or arrays[k].shape != shapes.get(k)]
    if wrong:
        first = f"{wrong[0]} of shape {arrays[wrong[0]].shape}" if wrong[0] in arrays else f"no {wrong[0]}"
        raise ValueError(
            f"{source}: {len(wrong)} arrays are not as its configuration says: it has {first}, wanted "
            f"{shapes.get(wrong[0], 'none of that name')}; is it of another codec, or of a later release?"
        )


class KnotsCodec(_OnKnots):
    """A number to one token, as AION-1 codes fluxes, magnitudes, shapes, extinctions, positions and parallaxes.

    Numbers beyond the knots take the end tokens. encode(decode(t)) == t for every t that `encode` gives, without
    compat. NaN and infinity are refused; with compat NaN is the last token, as the peer has it.
    """

    kind: ClassVar[str] = "knots"
    published = ("scalar", "log")
    layout = Layout("scalar")

    def __init__(self, knots: Knots, compat: Compat | None = None) -> None:
        super().__init__([knots], compat)

    @classmethod
    def fit(
        cls,
        found: NDArray[Any] | QuantileSketch,
        compression: Compression = "identity",
        min_log: float = MIN_LOG,
        n_knots: int = N_KNOTS,
        reservoir: int = RESERVOIR,
        compat: Compat | None = None,
    ) -> Self:
        """Fit to values (n,) in any order, or to a sketch of them, as AION-1's are: `min_log` is the floor of `log`."""
        floor = min_log if compression == "log" else None
        return cls(Knots.of(found, compression, floor, n_knots, reservoir), compat)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        own = {k: v for k, v in settings.items() if k != "compat"}
        return cls(Knots(arrays["knots"], reservoir=arrays.get("reservoir"), **own), settings["compat"])

    @classmethod
    def from_aion(cls, source: str | Path, token_key: str, compat: Compat | None = None) -> Self:
        """AION-1's codec of the modality of this key, from a folder or a repository; see `read_published`."""
        modality = cls._modality(token_key)
        known: dict[str, Any] = {
            "reservoir_size": ...,
            **({"min_log_value": MIN_LOG} if modality.codec == "log" else {}),
        }
        config, arrays = cls._published(source, modality, known)
        sizes = (config["codebook_size"],), (config["reservoir_size"],)
        taken(source, arrays, dict(zip(("_quantizer._index_to_val", "_quantizer._reservoir"), sizes, strict=True)))
        compression: Compression = "log" if modality.codec == "log" else "identity"
        knots = (arrays["_quantizer._index_to_val"], compression, config.get("min_log_value"))
        return cls(Knots(*knots, arrays["_quantizer._reservoir"]), compat)

    def to_aion(self, folder: Path, token_key: str) -> Path:
        """Write it as the peer loads it, for the modality of this key; gives the codec's own folder."""
        modality, knots = self._modality(token_key), self.tables[0]
        if (modality.codec == "log") != (knots.compression == "log") or knots.compression == "asinh_asinh":
            raise ValueError(
                f"knots codec: AION-1 codes {token_key} by its {modality.codec!r} codec, this one compresses by "
                f"{knots.compression!r}; fit it with compression {'log' if modality.codec == 'log' else 'identity'!r}"
            )
        reservoir = knots.sample()
        config: dict[str, Any] = {"modality": modality.name, "codebook_size": self.vocabulary}
        config["reservoir_size"] = len(reservoir)
        if knots.min_log is not None:
            config["min_log_value"] = int(knots.min_log) if knots.min_log.is_integer() else knots.min_log
        arrays = {"_quantizer._index_to_val": knots.knots, "_quantizer._reservoir": reservoir}
        return write_published(folder, modality.name, config, arrays)


class MultiKnotsCodec(_OnKnots):
    """Numbers of a source to a token each, by tables of their own, as AION-1 codes Gaia's 55 + 55 XP coefficients."""

    kind: ClassVar[str] = "multi_knots"
    published = ("multi",)

    def __init__(self, tables: Sequence[Knots], compat: Compat | None = None) -> None:
        if not tables:
            raise ValueError("multi_knots codec: no table, wanted 1 or more")
        super().__init__(tables, compat)
        self.layout = Layout("line", (len(tables),))

    @classmethod
    def fit(
        cls,
        found: NDArray[Any] | Sequence[QuantileSketch],
        n_knots: int = N_KNOTS,
        reservoir: int = RESERVOIR,
        compat: Compat | None = None,
    ) -> Self:
        """Fit to values (n, m), rows in any order, or to a sketch of each of the m columns."""
        if isinstance(found, np.ndarray) and found.ndim != 2:
            raise ValueError(f"multi_knots codec: values have shape {found.shape}, wanted (n, m)")
        columns: list[Any] = list(found.T if isinstance(found, np.ndarray) else found)
        return cls([Knots.of(c, "asinh_asinh", None, n_knots, reservoir) for c in columns], compat)

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        own = {k: v for k, v in settings.items() if k != "compat"}
        kept = arrays.get("reservoir", [None] * len(arrays["knots"]))
        tables = [Knots(k, reservoir=r, **own) for k, r in zip(arrays["knots"], kept, strict=True)]
        return cls(tables, settings["compat"])

    @classmethod
    def from_aion(cls, source: str | Path, token_key: str, compat: Compat | None = None) -> Self:
        """AION-1's codec of the modality of this key, from a folder or a repository; see `read_published`."""
        known = dict.fromkeys(("compression_fns", "decompression_fns", "reservoir_size", "num_quantizers"), ...)
        config, arrays = cls._published(source, cls._modality(token_key), known)
        functions = config["compression_fns"], config["decompression_fns"]
        if functions != (_DOUBLE["compression_fns"], _DOUBLE["decompression_fns"]):
            raise ValueError(
                f"{source}: it compresses by {functions}, wanted asinh(asinh(x)); is it of a later release?"
            )
        shapes = {}
        for k in range(config["num_quantizers"]):
            shapes[f"_quantizer.quantizers.{k}._index_to_val"] = (config["codebook_size"],)
            shapes[f"_quantizer.quantizers.{k}._reservoir"] = (config["reservoir_size"],)
        taken(source, arrays, shapes)
        pairs = (
            [arrays[f"_quantizer.quantizers.{k}.{name}"] for name in ("_index_to_val", "_reservoir")]
            for k in range(config["num_quantizers"])
        )
        return cls([Knots(knots, "asinh_asinh", None, reservoir) for knots, reservoir in pairs], compat)

    def to_aion(self, folder: Path, token_key: str) -> Path:
        """Write it as the peer loads it, for the modality of this key; gives the codec's own folder."""
        modality = self._modality(token_key)
        if self.tables[0].compression != "asinh_asinh" or len(self.tables) != modality.tokens:
            raise ValueError(
                f"multi_knots codec: {len(self.tables)} tables, compressed by {self.tables[0].compression}; wanted "
                f"{modality.tokens} by asinh_asinh for {token_key}"
            )
        arrays = {}
        for k, table in enumerate(self.tables):
            arrays[f"_quantizer.quantizers.{k}._index_to_val"] = table.knots
            arrays[f"_quantizer.quantizers.{k}._reservoir"] = table.sample()
        config = {"modality": modality.name, "codebook_size": self.vocabulary, **_DOUBLE}
        config |= {"num_quantizers": len(self.tables), "reservoir_size": len(self.tables[0].sample())}
        return write_published(folder, modality.name, config, arrays)


_DOUBLE: dict[str, Any] = {"compression_fns": ["arcsinh", "arcsinh"], "decompression_fns": ["sinh", "sinh"]}


class GridKnotsCodec(_OnKnots):
    """A number to an even step of a fixed grid, as AION-1 codes redshift: 1024 knots from 0 to 1.

    The first token is the step below the first knot. Numbers below that step or above the last knot are refused;
    with compat they take the end tokens, as the peer has it: half of all quasars decode to z = 1. `GridCodec` has a
    grid that reaches them. encode(decode(t)) == t without compat.
    """

    kind: ClassVar[str] = "grid_knots"
    published = ("grid",)
    layout = Layout("scalar")

    def __init__(self, knots: NDArray[Any], compat: Compat | None = None) -> None:
        super().__init__([Knots(knots)], compat)
        grid = self.tables[0].knots
        if (np.diff(grid) <= 0).any():
            raise ValueError("grid_knots codec: some knots are not above the one before, wanted a grid that rises")
        self.low = float(2 * np.float64(grid[0]) - grid[1])
        "numbers must be above it"
        self.tables[0].centres[0] = (self.low + grid[0]) / 2

    @classmethod
    def fit(cls, n_knots: int = N_KNOTS, compat: Compat | None = None) -> Self:
        """The grid from 0 to 1; no sample is needed. The peer's own differs in last bits, by its processor."""
        if n_knots < 2:
            raise ValueError(f"grid_knots codec: {n_knots} knots were asked for, wanted 2 or more")
        return cls(np.linspace(0, 1, n_knots).astype(np.float32), compat)

    def _refuse(self, x: Single) -> None:
        out = (x[:, 0] <= self.low) | (x[:, 0] > self.tables[0].knots[-1])
        if not self.compat and out.any():
            row = int(np.argmax(out))
            raise ValueError(
                f"grid_knots codec: row {row} is {x[row, 0]}, wanted more than {self.low:.3g} and at most "
                f"{self.tables[0].knots[-1]}, where AION-1's grid ends; use a 'grid' codec, which reaches further, or "
                "compat='aion', which gives it the end token"
            )

    @classmethod
    def restore(cls, settings: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> Self:
        """The codec of these settings and arrays."""
        return cls(arrays["knots"], settings["compat"])

    @classmethod
    def from_aion(cls, source: str | Path, token_key: str = "tok_z", compat: Compat | None = None) -> Self:
        """AION-1's codec of the modality of this key, from a folder or a repository; see `read_published`."""
        config, arrays = cls._published(source, cls._modality(token_key), {})
        taken(source, arrays, {"_quantizer.buckets": (config["codebook_size"],)})
        return cls(arrays["_quantizer.buckets"], compat)

    def to_aion(self, folder: Path, token_key: str = "tok_z") -> Path:
        """Write it as the peer loads it, for the modality of this key; gives the codec's own folder."""
        modality = self._modality(token_key)
        config = {"modality": modality.name, "codebook_size": self.vocabulary}
        return write_published(folder, modality.name, config, {"_quantizer.buckets": self.tables[0].knots})
