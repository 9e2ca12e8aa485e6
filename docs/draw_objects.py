"""Draw docs/objects.png from a pile of the mock sky: what each survey measured, and what its tokens hold.

    python docs/draw_objects.py work/pile docs/objects.png

Wants matplotlib, which skycairn itself does not.
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.visualization import make_lupton_rgb

from skycairn.pile.store import Pile
from skycairn.tokenizers.lock import read_lock

pile = Pile.open(Path(sys.argv[1]))
head = pile.snapshot()
codecs = read_lock(pile.root / "codecs.lock")


def rows(table: str, key: int, column: str = "key") -> pa.Table:
    found = [pile.read_table(e.part) for e in head.entries(table)]
    found = [t.filter(pc.equal(t.column(column), key)) for t in found]
    return pa.concat_tables([t for t in found if t.num_rows], promote_options="permissive")


def decoded(modality: str, key: int) -> dict[str, np.ndarray]:
    tokens = rows(f"tokens.{modality}", key).column("tokens")[0].as_py()
    return codecs[modality].decode(np.array([tokens], codecs[modality].dtype))


def rgb(flux: np.ndarray) -> np.ndarray:
    # g, r, z as blue, green, red; row 0 is south, so the origin is lower
    return make_lupton_rgb(flux[3] * 0.7, flux[1] * 1.1, flux[0] * 1.8, stretch=0.08, Q=8)


def draw_image(axes: tuple[plt.Axes, plt.Axes], key: int) -> None:
    flux = np.array(rows("payload.legacysurvey.image", key).column("flux")[0].as_py(), np.float32).reshape(4, 160, 160)
    crop = flux[:, 32:128, 32:128]
    for ax, picture, title in (
        (axes[0], crop, "Legacy Survey g, r, z"),
        (axes[1], decoded("legacysurvey.image", key)["flux"][0], "decoded from 576 tokens"),
    ):
        ax.imshow(rgb(picture), origin="lower", extent=(12.6, -12.6, -12.6, 12.6))
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("arcsec east, north up", fontsize=8)


objects = pa.concat_tables([pile.read_table(e.part) for e in head.entries("objects")], promote_options="permissive")
present = {m: pc.equal(objects.column(f"status.{m}").cast(pa.string()), "present") for m in codecs}
held_out = pc.is_in(objects.column("split").cast(pa.string()), pa.array(["validation", "test"]))
galaxies = objects.filter(pc.and_(held_out, pc.and_(present["legacysurvey.image"], present["desi.spectrum"])))
stars = objects.filter(pc.and_(held_out, present["gaia.xp_bp"]))


def ranked(table: pa.Table, survey: str, column: str, place: int) -> dict[str, object]:
    """The object at this place, counted from the largest value."""

    def value(row: dict[str, object]) -> float:
        return rows(f"{survey}.wide", row[f"key.{survey}"]).column(column)[0].as_py() or 0.0

    return sorted(table.to_pylist(), key=value, reverse=True)[place]


figure = plt.figure(figsize=(11, 5.6), layout="constrained")
top, bottom = figure.subfigures(2, 1)
ax = top.subplots(1, 3, width_ratios=(1, 1, 2.4))
row = ranked(galaxies, "legacysurvey", "flux_r", int(sys.argv[3]) if len(sys.argv) > 3 else 3)
draw_image((ax[0], ax[1]), row["key.legacysurvey"])
spectrum = rows("payload.desi.spectrum", row["key.desi"])
wavelength = 3600 + 0.8 * np.arange(7781)
flux = np.array(spectrum.column("flux")[0].as_py())
good = ~np.array(spectrum.column("mask")[0].as_py())
ax[2].plot(wavelength[good], flux[good], lw=0.4, color="0.65", label="DESI")
ax[2].plot(wavelength, decoded("desi.spectrum", row["key.desi"])["flux"][0], lw=0.8, label="decoded from 273 tokens")
ax[2].set_ylim(np.percentile(flux, 0.5), np.percentile(flux, 99.8) * 1.2)
ax[2].legend(fontsize=8)
ax[2].set_xlabel("vacuum wavelength, Angstrom", fontsize=8)
ax[2].set_ylabel("1e-17 erg/s/cm2/A", fontsize=8)
top.suptitle(f"{row['object_id']}, held-out sky", fontsize=9)

ax = bottom.subplots(1, 2)
row = ranked(stars, "gaia", "phot_g_mean_flux", 8)
wide = rows("gaia.wide", row["key.gaia"])
for i, band in enumerate(("bp", "rp")):
    measured = np.array(wide.column(f"{band}_coefficients")[0].as_py())
    ax[i].step(range(55), np.arcsinh(measured), where="mid", label="Gaia XP")
    back = decoded(f"gaia.xp_{band}", row["key.gaia"])["value"][0]
    ax[i].step(range(55), np.arcsinh(back), where="mid", label="decoded from 55 tokens")
    ax[i].set_ylabel("asinh(value)", fontsize=8)
    ax[i].set_xlabel(f"{band.upper()} coefficient", fontsize=8)
    ax[i].legend(fontsize=8)
bottom.suptitle(f"{row['object_id']}, held-out sky", fontsize=9)
figure.savefig(sys.argv[2], dpi=110)
