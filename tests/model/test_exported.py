"""A run handed on: written, read without a pile, the same to the bit, and refused where a byte is another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
import typer
from astropy import units
from astropy.table import Column, MaskedColumn
from astropy.utils.masked import Masked
from typer.testing import CliRunner

from skycairn.cli.exporting import export as export_command
from skycairn.model.exported import MIT, export, read_config
from skycairn.model.measurements import Quantity, wavelengths
from skycairn.model.model import Model
from skycairn.model.packed import Packed
from skycairn.model.rules import Masking
from skycairn.model.schemes import MaskGit, Roar, Target
from skycairn.model.settings import Settings
from skycairn.model.strata import Source
from skycairn.model.trainer import train
from skycairn.pile.shards import TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile
from skycairn.tokenizers.codec import Codec
from skycairn.tokenizers.coefficients import CoefficientCodec
from skycairn.tokenizers.cutout_catalog import CutoutCatalogCodec
from skycairn.tokenizers.patches import PatchImageCodec, PatchSpectrumCodec
from skycairn.tokenizers.scalar import GridCodec, QuantileCodec
from skycairn.tokenizers.spectralgrid import SpectralGrid
from skycairn.tokenizers.spectrum import SpectrumCodec

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "desi.spectrum": "tok_spectrum_desi",
    "desi.z": "tok_z",
    "gaia.xp_bp": "tok_xp_bp",
    "hsc.image": "tok_image_hsc",
    "legacysurvey.flux_g": "tok_flux_g",
    "legacysurvey.objects": "catalog",
    "sdss.z": "tok_z",
}
N = 60


def raw(n: int, seed: int = 0) -> dict:
    """What the codecs encode, of n sources of each modality."""
    rng = np.random.default_rng(seed)
    side, pixels = (n, 2, 8, 8), (n, 40)
    return {
        "desi.spectrum": {
            "flux": rng.normal(3, 1, pixels), "ivar": np.ones(pixels), "mask": np.zeros(pixels, bool)
        },
        "desi.z": rng.gamma(2, 0.3, n),
        "gaia.xp_bp": rng.normal(size=(n, 4)),
        "hsc.image": {"flux": rng.normal(0, 1, side), "ivar": np.ones(side), "mask": np.zeros(side, bool)},
        "legacysurvey.flux_g": 10 ** rng.normal(0, 1, n),
        "legacysurvey.objects": {
            "x": rng.uniform(0, 95, (n, 3)), "y": rng.uniform(0, 95, (n, 3)), "e1": rng.normal(0, 0.1, (n, 3)),
            "e2": rng.normal(0, 0.1, (n, 3)), "r": rng.gamma(2, 1, (n, 3)), "present": rng.random((n, 3)) < 0.7,
        },
        "sdss.z": rng.gamma(2, 0.3, n),
    }  # fmt: skip


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec]:
    sample = raw(200, seed=9)
    z = GridCodec.fit(tokens=16)
    return {
        "desi.spectrum": PatchSpectrumCodec.fit(sample["desi.spectrum"], n_patches=5, codes=20),
        "desi.z": z,
        "gaia.xp_bp": CoefficientCodec.fit(sample["gaia.xp_bp"], bins=8),
        "hsc.image": PatchImageCodec.fit(sample["hsc.image"], bands=("G", "R"), crop=8, patch=4, codes=30),
        "legacysurvey.flux_g": QuantileCodec.fit(sample["legacysurvey.flux_g"], "log", bins=10),
        "legacysurvey.objects": CutoutCatalogCodec.fit(sample["legacysurvey.objects"], most=3, n_knots=8),
        "sdss.z": z,
    }


def columns(codecs: dict[str, Codec]) -> list[TokenColumn]:
    return [
        TokenColumn(
            name, c.content_id, c.vocabulary, c.n_tokens, c.layout.kind, tuple(c.layout.shape), c.ordered, KEYS[name]
        )
        for name, c in codecs.items()
    ]


def write_pile(root: Path, codecs: dict[str, Codec]) -> Pile:
    pile, entries, rng = Pile.create(root), [], np.random.default_rng(3)
    for split, n in (("train", N), ("validation", 20)):
        tokens, status = {}, {}
        for name, measured in raw(n, seed=n).items():
            codec = codecs[name]
            found = codec.encode(measured if isinstance(measured, dict) else {"value": measured})
            there = rng.random(n) < 0.7
            length = np.where(there, codec.lengths(found), 0)
            found = np.where(np.arange(codec.n_tokens) < length[:, None], found, 0).astype(codec.dtype)
            tokens[name] = TokenArray(found, there, length)
            status[name] = np.where(there, "present", "not detected").tolist()
        ids = pa.table({"object_id": [f"{split}:{k}" for k in range(n)]})
        schema = shard_schema(ids.schema, columns(codecs), split, "all")
        with pile.table_writer(schema, row_group_rows=16) as writer:
            writer.write(shard_table(ids, tokens, status, schema))
        entries.append(Entry({"cell": 0, "split": split, "stratum": "all"}, writer.part))
    kept = []
    for name, codec in codecs.items():
        folder = root.parent / "fitted" / name
        codec.save(folder)
        parts = pile.put_folder(folder)
        kept += [Entry({"modality": name, "file": file}, part) for file, part in parts.items()]
    surveys = {"desi": {"release": "dr1", "profile": "strict"}, "hsc": {"release": "pdr3-wide", "profile": "aion"}}
    pile.commit(Draft(recipe={"surveys": surveys}, tables={"shards": entries, "codecs": kept}))
    return pile


SETTINGS = Settings(
    **{"steps": 4, "objects": 8, "microbatches": 2, "check_every": 2, "checked": 2, "pool": 32, "warm_up": 1},
    masking=Masking(inputs=8, targets=6),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, codecs: dict[str, Codec]) -> Path:
    """A folder with `pile`, `run` and its export `out`."""
    root = tmp_path_factory.mktemp("exported")
    pile = write_pile(root / "pile", codecs)
    torch.set_num_threads(1)
    train([Source(pile, pile.snapshot())], SETTINGS, root / "run")
    export(root / "run", codecs, root / "out")
    return root


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return Model.load(run / "out")


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_what_is_loaded_says_what_was_trained_to_the_bit(run: Path, codecs: dict[str, Codec], tmp_path: Path) -> None:
    pile = Pile.open(run / "pile")
    for extra in ({}, {"smooth": True, "counted": 40}):
        settings = replace(SETTINGS, steps=2, **extra)
        network = train([Source(pile, pile.snapshot())], settings, tmp_path / f"run{len(extra)}")
        assert export(tmp_path / f"run{len(extra)}", codecs, tmp_path / "out").name == "best"
        torch.manual_seed(1)
        state = torch.get_rng_state()
        loaded = Model.load(tmp_path / "out")
        assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
        first = network.vocabulary.first_slot
        shown = np.arange(first[2], dtype=np.int32)
        asked = np.arange(first[2], first[-1], dtype=np.int32)
        packed = Packed(
            *(shown, 0 * shown, np.array([0, 0, len(shown)])), *(asked, 0 * asked, np.array([0, 0, len(asked)]))
        )
        with torch.no_grad():
            one, other = network.logits(packed), loaded.network.logits(packed)
        assert set(one) == set(other) and all(torch.equal(one[k], other[k]) for k in one)


def test_the_folder_holds_all_that_is_needed_and_says_of_what_it_is(run: Path, model: Model) -> None:
    found = files(run / "out")
    assert [f for f in found if not f.startswith("codecs/")] == [
        "LICENSE", "README.md", "codecs.lock", "config.json", "model.safetensors"
    ]  # fmt: skip
    config = json.loads((run / "out" / "config.json").read_text())
    assert set(config["files"]) == set(found) - {"config.json"}
    assert (run / "out" / "LICENSE").read_text() == MIT == (ROOT / "LICENSE").read_text()
    made = config["provenance"]
    assert made["step"] == 4 and made["snapshots"] == [Pile.open(run / "pile").snapshot().content_id]
    assert made["settings"] == SETTINGS.as_json() and set(made["versions"]) >= {"skycairn", "torch"}
    assert made["validation"]["step"] == 4
    card = (run / "out" / "README.md").read_text()
    assert all(f"`{name}`" in card for name in KEYS) and "nanomaggy" in card and made["snapshots"][0] in card
    assert model.config["provenance"]["size"] == "nano"
    assert not list(run.glob("*.new")) and not list(run.glob("*.old"))


def test_a_byte_that_is_another_is_refused_by_the_name_of_its_file(run: Path, tmp_path: Path) -> None:
    export(run / "run", model_codecs(run), tmp_path / "out")
    for name in files(tmp_path / "out"):
        path = tmp_path / "out" / name
        before = path.read_bytes()
        for at in (0, len(before) // 2, len(before) - 1):
            path.write_bytes(before[:at] + bytes([before[at] ^ 4]) + before[at + 1 :])
            with pytest.raises(ValueError, match=name.replace(".", r"\.")):
                Model.load(tmp_path / "out")
        path.unlink()
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            Model.load(tmp_path / "out")
        path.write_bytes(before)
    assert Model.load(tmp_path / "out").vocabulary.names == tuple(sorted(KEYS))


def model_codecs(run: Path) -> dict[str, Codec]:
    return dict(Model.load(run / "out").codecs)


def test_a_config_that_leads_out_of_its_folder_is_refused(run: Path, tmp_path: Path) -> None:
    from skycairn.tokenizers.checkpoint import own_sha256

    config = json.loads((run / "out" / "config.json").read_text())
    config["files"] = {"../secret": "0" * 64}
    config["sha256"] = own_sha256(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"names '../secret', which leads out"):
        read_config(tmp_path)


def test_what_cannot_be_exported_is_refused(run: Path, codecs: dict[str, Codec], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no codec of desi.spectrum, desi.z, .*; a model is worth nothing without"):
        export(run / "run", {}, tmp_path / "out")
    other = {**codecs, "desi.z": GridCodec.fit(tokens=17)}
    with pytest.raises(ValueError, match=r"the codec of desi.z is .*, the model was trained with"):
        export(run / "run", other, tmp_path / "out")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        export(run / "pile", codecs, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds what is no exported model"):
        export(run / "run", codecs, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").exists() and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"holds no config.json; wanted"):
        Model.load(tmp_path / "mine")


def test_an_export_takes_the_place_of_an_earlier_one_and_best_goes_before_last(
    run: Path, codecs: dict[str, Codec], tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best").symlink_to(run / "run" / "last")
    (tmp_path / "run" / "last").symlink_to(run / "run" / "last")
    assert export(tmp_path / "run", codecs, tmp_path / "out").name == "best"
    (tmp_path / "out" / "notes").touch()
    (tmp_path / "run" / "evaluation.md").write_text("| how well | it did |\n")
    export(tmp_path / "run", codecs, tmp_path / "out", {"desi.z": Quantity("", "its redshift")}, "mine alone")
    assert not (tmp_path / "out" / "notes").exists()
    assert "## Scores\n\n| how well | it did |\n" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "LICENSE").read_text() == "mine alone"
    assert Model.load(tmp_path / "out").quantities["desi.z"].what == "its redshift"


def test_an_export_that_fails_leaves_the_earlier_one(
    run: Path, codecs: dict[str, Codec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(run / "run", codecs, tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")}

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("skycairn.model.exported.on_disk", full)
    with pytest.raises(OSError, match="no space left"):
        export(run / "run", codecs, tmp_path / "out", licence="another")
    assert {name: (tmp_path / "out" / name).read_bytes() for name in files(tmp_path / "out")} == before
    monkeypatch.undo()
    export(run / "run", codecs, tmp_path / "out", licence="another")
    assert Model.load(tmp_path / "out") and not list(tmp_path.glob("*.new"))


def some(n: int = 5, seed: int = 1) -> dict:
    """Raw inputs of n objects, of which some lack some."""
    given = raw(n, seed)
    z = given["desi.z"].tolist()
    z[0] = None
    given["legacysurvey.flux_g"][1] = np.nan
    given["hsc.image"]["mask"][2] = True
    given["desi.spectrum"]["ivar"][3] = 0
    given["gaia.xp_bp"][4, 2] = np.nan
    return {**given, "desi.z": z}


def test_measurements_become_the_tokens_that_a_pile_has(model: Model, codecs: dict[str, Codec]) -> None:
    whole = raw(5, 1)
    found = model.tokens(some())
    missing = {"desi.z": 0, "legacysurvey.flux_g": 1, "hsc.image": 2, "desi.spectrum": 3, "gaia.xp_bp": 4}
    for name, measured in whole.items():
        expected = codecs[name].encode(measured if isinstance(measured, dict) else {"value": measured})
        there = np.arange(5) != missing.get(name, -1)
        assert found[name].present.tolist() == there.tolist()
        some_ = there[:, None] & (np.arange(codecs[name].n_tokens) < codecs[name].lengths(expected)[:, None])
        np.testing.assert_array_equal(found[name].values, np.where(some_, expected, 0))
        np.testing.assert_array_equal(found[name].length, some_.sum(axis=1))


def test_embeddings_are_of_all_tokens_and_of_no_others(model: Model) -> None:
    found = model.encode(some())
    tokens = model.tokens(some())
    n = sum(t.length for t in tokens.values())
    assert found.there.sum(dim=1).tolist() == n.tolist() and found.values.shape == (5, n.max(), 128)
    assert not found.values[~found.there].any() and (found.modality >= 0).tolist() == found.there.tolist()
    for m, name in enumerate(model.vocabulary.names):
        assert (found.modality == m).sum(axis=1).tolist() == tokens[name].length.tolist()
    for batch in (1, 2):
        torch.testing.assert_close(model.encode(some(), batch).values, found.values)
    assert model.encode({}).values.shape == (1, 0, 128)


TARGETS = [Target("hsc.image", MaskGit(2)), Target("desi.spectrum", Roar(2)), "gaia.xp_bp", "sdss.z"]


def test_samples_are_in_the_shape_and_unit_of_what_is_measured(model: Model) -> None:
    given = {"legacysurvey.flux_g": [1.0, 20.0, np.nan], "desi.z": np.array([0.1, 0.5, 0.7])}
    found = model.generate(given, TARGETS, n_samples=4, seed=3)
    assert found["hsc.image"].arrays["flux"].shape == (3, 4, 2, 8, 8) and found["hsc.image"].unit == "nanomaggy"
    assert found["desi.spectrum"].arrays["flux"].shape == (3, 4, 40)
    assert found["desi.spectrum"].unit == "1e-17 erg/s/cm2/Angstrom"
    assert found["gaia.xp_bp"].arrays["value"].shape == (3, 4, 4) and found["gaia.xp_bp"].tokens.shape == (3, 4, 4)
    assert found["sdss.z"].arrays["value"].shape == (3, 4) and found["sdss.z"].unit == ""
    again = model.generate({k: v[:2] for k, v in given.items()}, TARGETS, n_samples=2, seed=3, batch=1)
    for name, samples in again.items():
        np.testing.assert_array_equal(samples.tokens, found[name].tokens[:2, :2])
    free = model.generate({}, ["legacysurvey.flux_g"], n_samples=3)["legacysurvey.flux_g"]
    assert free.arrays["value"].shape == (1, 3) and free.unit == "nanomaggy"
    assert model.generate({"desi.z": np.zeros(0)}, ["sdss.z"])["sdss.z"].arrays["value"].shape == (0, 1)


def test_spectra_have_wavelengths_and_nothing_else_has(model: Model) -> None:
    np.testing.assert_allclose(model.wavelength("desi.spectrum"), 3600 + 0.8 * np.arange(40))
    for name in ("hsc.image", "desi.z"):
        with pytest.raises(ValueError, match=f"{name} is no spectrum"):
            model.wavelength(name)
    grid = SpectralGrid("linear", 3600.0, 0.8, 50)
    for codec, pixels in ((SpectrumCodec.fresh(grid=grid), 50), (SpectrumCodec.fresh(), 8704)):
        found = wavelengths(codec)
        assert found is not None and len(found) == pixels
        assert codec.decode(np.zeros((1, codec.n_tokens), codec.dtype))["flux"].shape == (1, pixels)


def test_what_an_object_has_of_a_target_stays(model: Model) -> None:
    found = model.generate({"desi.z": [0.5, np.nan]}, ["desi.z"], n_samples=30)["desi.z"].arrays["value"]
    z = model.codecs["desi.z"]
    assert (found[0] == z.decode(z.encode({"value": np.array([0.5])}))["value"]).all()
    assert len(np.unique(found[1])) > 1


def test_a_distribution_is_over_the_bins_of_the_codec(model: Model) -> None:
    found = model.distribution({"legacysurvey.flux_g": [1.0, np.nan]}, "desi.z")
    assert found.value.shape == (16,) and found.probability.shape == (2, 16)
    np.testing.assert_allclose(found.probability.sum(axis=1), 1)
    assert (np.diff(found.value) > 0).all() and found.unit == ""
    with pytest.raises(ValueError, match=r"object 0 shows desi.z, of which it is asked"):
        model.distribution({"desi.z": [0.1]}, "desi.z")


def test_units_are_brought_to_the_modalitys_own(model: Model) -> None:
    flux = np.array([1.0, 20.0])
    plain = model.tokens({"legacysurvey.flux_g": flux})["legacysurvey.flux_g"].values
    given = (flux * units.Unit("nanomaggy")).to(units.Jy, units.zero_point_flux(3631 * units.Jy))
    with pytest.raises(ValueError, match=r"legacysurvey.flux_g: value is in Jy, wanted n(ano)?m(aggy|gy)"):
        model.tokens({"legacysurvey.flux_g": given})
    micro = (1e-9 * flux) * units.mgy
    np.testing.assert_array_equal(model.tokens({"legacysurvey.flux_g": micro})["legacysurvey.flux_g"].values, plain)
    spectra = raw(2)["desi.spectrum"]
    own = units.Unit("erg/(s cm2 Angstrom)")
    with_unit = {**spectra, "flux": spectra["flux"] * 1e-17 * own, "ivar": spectra["ivar"] * 1e34 * own**-2}
    one, other = (model.tokens({"desi.spectrum": s})["desi.spectrum"].values for s in (spectra, with_unit))
    np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"desi.z: value is in km / s, wanted a pure number"):
        model.tokens({"desi.z": [3.0] * units.km / units.s})


def test_what_numpy_or_astropy_masks_is_missing(model: Model) -> None:
    flux, mask = np.array([1.0, 20.0]), [True, False]
    plain = model.tokens({"legacysurvey.flux_g": [np.nan, 20.0]})["legacysurvey.flux_g"]
    for given in (
        np.ma.masked_array(flux, mask),
        np.ma.masked_array([1, 20], mask),
        MaskedColumn(1e-9 * flux, mask=mask, unit="mgy"),
        Masked(1e-9 * flux * units.mgy, mask=mask),
    ):
        found = model.tokens({"legacysurvey.flux_g": given})["legacysurvey.flux_g"]
        assert found.present.tolist() == [False, True]
        np.testing.assert_array_equal(found.values, plain.values)
    assert model.tokens({"legacysurvey.flux_g": Column(flux)})["legacysurvey.flux_g"].present.all()
    image = raw(2)["hsc.image"]
    image["mask"] = np.ma.masked_array(image["mask"], image["flux"] > 0)
    with pytest.raises(ValueError, match=r"hsc.image: mask is bool of which some are masked"):
        model.tokens({"hsc.image": image})


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"desi.zz": [1.0]}, r"no modality 'desi.zz'; the model knows desi.spectrum, desi.z"),
        ({"desi.z": [1.0], "sdss.z": [1.0, 2.0]}, r"sdss.z: 2 objects, desi.z has 1"),
        ({"desi.z": 1.0}, r"desi.z: value \(\); wanted arrays whose first axis is the object"),
        ({"desi.z": [[1.0, 2.0]]}, r"desi.z: grid codec: values have shape \(1, 2\), wanted \(n,\)"),
        ({"desi.z": [1.0, np.inf]}, r"desi.z: row 1 is infinite"),
        ({"desi.z": ["far"]}, r"desi.z: values are <U3, wanted numbers"),
        ({"desi.z": [object()]}, r"desi.z: value holds what is no number"),
        ({"gaia.xp_bp": np.zeros((2, 5))}, r"gaia.xp_bp: .*shape \(2, 5\), wanted \(n, 4\)"),
        ({"hsc.image": np.zeros((2, 2, 8, 8))}, r"hsc.image: .*lacks flux, ivar, mask"),
        ({"hsc.image": {"flux": np.zeros((2, 2, 8, 8))}}, r"hsc.image: .*lacks ivar, mask"),
        ({"hsc.image": {"flux": np.zeros((2, 9)), "ivar": np.zeros(3)}}, r"hsc.image: flux \(2, 9\), ivar \(3,\); w"),
        ({"desi.spectrum": {}}, r"desi.spectrum: no array; wanted"),
    ],
)  # fmt: skip
def test_inputs_that_are_none_are_refused_by_name(model: Model, inputs: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        model.tokens(inputs)


def test_images_of_the_wrong_size_and_bad_pixels_are_refused_by_name(model: Model) -> None:
    small = {k: v[:, :, :6, :6] for k, v in raw(2)["hsc.image"].items()}
    with pytest.raises(ValueError, match=r"hsc.image: .*shape \(2, 2, 6, 6\), wanted .* 8 pixels or more"):
        model.tokens({"hsc.image": small})
    bad = raw(3)["hsc.image"]
    bad["flux"][2, 0, 1, 1] = np.nan
    with pytest.raises(ValueError, match=r"hsc.image: .*row 2, pixel \(0, 1, 1\)"):
        model.tokens({"hsc.image": bad})
    with pytest.raises(ValueError, match="is a sequence"):
        model.generate({"desi.z": ["not looked at"]}, ["legacysurvey.objects"])


def test_the_command_exports_with_the_codecs_of_the_runs_own_snapshot(run: Path, tmp_path: Path) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(export_command)
    (tmp_path / "terms").write_text("ask first")
    asked = [str(run / "run"), "--pile", str(run / "pile"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*asked, "--licence", str(tmp_path / "terms")])
    assert done.exit_code == 0, done.output
    found = Model.load(tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "ask first"
    assert found.quantities["hsc.image"].pixel_arcsec == 0.168 and "redshift" in found.quantities["desi.z"].what
    assert found.config["network"] == Model.load(run / "out").config["network"]
    other = Pile.create(tmp_path / "other")
    other.commit(Draft(recipe={}, tables={}))
    asked[2] = str(other.root)
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 1 and "has none of the snapshots that the run learned from" in done.output
