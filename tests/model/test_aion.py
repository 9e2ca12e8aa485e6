"""AION-1's transformer in ours, against polymathic-aion 0.0.2 at random weights.

Not comparable: an object that shows nothing (the peer attends evenly to its padding, ours sees 0); a catalogue as
target of `AION.forward` (the peer has no number of tokens for it; 4M's own forward pass, for its loss, takes one).
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file

from skycairn.model.aion import (
    SPECIAL,
    aion_objective,
    aion_tensors,
    aion_vocabulary,
    as_aion,
    read_aion,
    write_aion,
)
from skycairn.model.forms import Form
from skycairn.model.packed import Packed
from skycairn.model.transformer import equal_weights, objective
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.shards import TokenColumn
from skycairn.tokenizers.modalities import AION

pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = Form(2, 2, 48, 4, 128)
MOST = 280
"""Tokens on either side of the peer's budgets, more than any object here has."""
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def benchmark():
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "train_step.py"
    spec = importlib.util.spec_from_file_location("train_step", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCH = benchmark()
VOCABULARY = aion_vocabulary(list(AION))


@pytest.fixture(scope="module")
def peer():
    return BENCH.peer_model(SMALL).eval()


@pytest.fixture(scope="module")
def published(peer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("aion")
    peer.save_pretrained(folder)
    return folder


def microbatch(catalog: bool, n: int = 5, least: int = 1) -> Packed:
    """Objects of some modalities; the catalogue, where there is one, shows 7 tokens and asks for the next 6."""
    rng = np.random.default_rng(3)
    there = rng.random((n, len(VOCABULARY.columns))) < 0.4
    m = VOCABULARY.names.index("catalog")
    there[:, m] = False
    there[:, VOCABULARY.names.index("tok_xp_bp")] = True
    packed = BENCH.draw(VOCABULARY, there, rng)
    if not catalog:
        return packed
    parts = []
    for a, (slot, token, start) in enumerate((packed[:3], packed[3:])):
        slots, tokens, starts = [], [], [0]
        for i in range(n):
            own = slice(start[i], start[i + 1])
            more = VOCABULARY.first_slot[m] + (np.arange(7) if a == 0 else 7 + np.arange(6))
            both = np.concatenate([slot[own], more])
            values = np.concatenate([token[own], rng.integers(0, 3468, len(more))])
            order = np.argsort(both)
            slots.append(both[order])
            tokens.append(values[order])
            starts.append(starts[-1] + len(both))
        parts += [np.concatenate(slots).astype(np.int32), np.concatenate(tokens).astype(np.int32), np.array(starts)]
    return Packed(*parts)


def given(packed: Packed):
    """What the peer's `encode` and `forward` take."""
    batch = BENCH.peer_batch(packed, VOCABULARY)
    return {k: d["tensor"] for k, d in batch.items()}, {k: d["input_mask"] for k, d in batch.items()}


@pytest.mark.parametrize("catalog", [False, True])
def test_the_encoder_is_the_peers(peer, published, catalog):
    packed = microbatch(catalog)
    tokens, mask = given(packed)
    with torch.no_grad():
        theirs = peer.encode(tokens, mask, num_encoder_tokens=MOST)
        ours = read_aion(published, compat="aion").network.encode(packed)
    padded, there = ours.padded()
    np.testing.assert_array_equal(there.sum(dim=1), np.diff(packed.input_start))
    torch.testing.assert_close(padded[there], theirs[:, : there.shape[1]][there], **NEAR)


def test_the_logits_of_aions_forward_are_the_peers(peer, published):
    """It attends evenly to all asked tokens of all modalities: `compat`."""
    from aion.modalities import DESISpectrum, GaiaXpRp, LegacySurveyImage, Z

    asked = [DESISpectrum, Z, GaiaXpRp, LegacySurveyImage]
    packed = microbatch(False, 3)
    tokens, mask = given(packed)
    slots = [
        np.arange(VOCABULARY.first_slot[m], VOCABULARY.first_slot[m + 1])
        for m in sorted(VOCABULARY.names.index(a.token_key) for a in asked)
    ]
    slot = np.tile(np.concatenate(slots), 3).astype(np.int32)
    start = np.arange(4) * (len(slot) // 3)
    packed = packed._replace(target_slot=slot, target_token=np.zeros_like(slot), target_start=start)
    network = read_aion(published).network
    with torch.no_grad():
        theirs = peer(tokens, asked, mask)
        ours, apart = network.logits(packed, compat="aion"), network.logits(packed)
    assert ours.keys() == theirs.keys()
    for name, logits in theirs.items():
        torch.testing.assert_close(ours[name], logits.flatten(0, 1), **NEAR)
    assert max(float((ours[k] - apart[k]).abs().max()) for k in ours) > 0.01, "the quirk is one that can be seen"


def test_the_logits_of_training_are_the_peers(peer, published, monkeypatch):
    from aion.fourm import fm

    monkeypatch.setattr(fm.random, "sample", lambda all_, n: all_[:n])
    packed = microbatch(False)
    with torch.no_grad():
        batch = BENCH.peer_batch(packed, VOCABULARY)
        theirs = fm.FourM.forward(peer, batch, MOST, MOST, return_logits=True)
        ours = read_aion(published).network.logits(packed)
    kind = VOCABULARY.modality_of_slot[packed.target_slot]
    of = np.repeat(np.arange(5), np.diff(packed.target_start))
    place = np.arange(len(of)) - packed.target_start[of]
    assert len(ours) > 5
    for name, logits in ours.items():
        own = kind == VOCABULARY.names.index(name)
        torch.testing.assert_close(logits, theirs[name][of[own], place[own]], **NEAR)


@pytest.mark.parametrize("reduction", ["mod", "token"])
@pytest.mark.parametrize("catalog", [False, True])
def test_the_loss_and_its_gradient_are_the_peers(peer, published, reduction, catalog):
    packed = microbatch(catalog)
    network = read_aion(published, compat="aion").network
    ours = aion_objective(network(packed), VOCABULARY, reduction, len(VOCABULARY.columns))
    theirs = BENCH.peer_loss(peer, BENCH.peer_batch(packed, VOCABULARY), reduction, MOST).squeeze()
    torch.testing.assert_close(ours, theirs, **NEAR)
    peer.zero_grad()
    ours.backward()
    theirs.backward()
    for own, other in (
        (network.asked.grad, peer.mask_token.grad.flatten()),
        (network.encoder[0].attention.qkv.weight.grad, peer.encoder[0].attn.qkv.weight.grad),
        (network.decoder[1].cross.kv.weight.grad, peer.decoder[1].cross_attn.kv.weight.grad),
        (network.decoder[1].feed.down.weight.grad, peer.decoder[1].mlp.fc2.weight.grad),
    ):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-4)
    if catalog:
        torch.testing.assert_close(
            network.told.grad[1:], peer.decoder_embeddings["catalog"].token_emb.weight.grad[1:], atol=1e-6, rtol=1e-4
        )


def test_what_is_read_is_written_bit_for_bit(published, tmp_path):
    for compat in (None, "aion"):
        write_aion(read_aion(published, compat), tmp_path / "again")
        files = []
        for folder in (published, tmp_path / "again"):
            with safe_open(folder / "model.safetensors", framework="pt") as file:
                files.append(({k: file.get_tensor(k) for k in file.keys()}, file.metadata()))
        (before, ties), (after, ties_again) = files
        assert ties == ties_again and before.keys() == after.keys()
        for name, tensor in before.items():
            assert tensor.dtype == after[name].dtype and tensor.numpy().tobytes() == after[name].numpy().tobytes(), name
        configs = [json.loads((f / "config.json").read_text()) for f in (published, tmp_path / "again")]
        assert configs[0] == configs[1]


def test_the_file_leaves_out_what_is_tied_and_it_is_tied_again(peer, published):
    with safe_open(published / "model.safetensors", framework="pt") as file:
        assert len(file.metadata()) >= 40
        assert "encoder_embeddings.tok_z.mod_emb" not in file.keys()
    network = read_aion(published).network
    m = VOCABULARY.names.index("tok_z")
    torch.testing.assert_close(network.slot.modality[m], peer.encoder_embeddings["tok_z"].mod_emb.flatten())


def test_a_whole_state_dict_is_read_too_and_both_names_are_written(published, tmp_path):
    tensors = load_file(published / "model.safetensors")
    tensors |= {k.replace("decoder_emb", "encoder_emb"): t.clone() for k, t in tensors.items() if k.endswith("mod_emb")}
    folder = _folder(published, tmp_path, tensors)
    imported = read_aion(folder)
    with torch.no_grad():
        imported.network.slot.modality += 1
    out = aion_tensors(imported)
    assert out.keys() == tensors.keys()
    for side in ("encoder", "decoder"):
        assert torch.equal(out[f"{side}_embeddings.tok_ra.mod_emb"], tensors[f"{side}_embeddings.tok_ra.mod_emb"] + 1)


@pytest.mark.parametrize("compat", [None, "aion"])
def test_after_training_the_peer_reads_it_and_agrees(published, tmp_path, compat):
    from aion.modalities import GaiaXpBp

    imported, packed = read_aion(published, compat), microbatch(compat is not None)
    network = imported.network
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)
    values = []
    for _ in range(10):
        losses = network(packed)
        loss = objective(losses, losses.counts, equal_weights(losses.counts))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(float(loss.detach()))
    assert values[-1] < values[0] - 0.05
    write_aion(imported, tmp_path)
    before, after = (load_file(f / "model.safetensors") for f in (published, tmp_path))
    dead = "decoder_embeddings.tok_image.token_emb.weight"
    assert torch.equal(before[dead], after[dead])
    alive = ["mask_token", "decoder.1.mlp.fc3.weight", "encoder_embeddings.tok_image.token_emb.weight"]
    alive += ["decoder_embeddings.catalog.token_emb.weight"] if compat else []
    assert not any(torch.equal(before[k], after[k]) for k in alive)
    again = BENCH.peer_model(SMALL, seed=1).eval()
    load_model(again, tmp_path / "model.safetensors")
    tokens, mask = given(packed)
    slot = np.tile(np.arange(55) + VOCABULARY.first_slot[VOCABULARY.names.index("tok_xp_bp")], 5).astype(np.int32)
    asking = packed._replace(target_slot=slot, target_token=0 * slot, target_start=55 * np.arange(6))
    network.eval()
    with torch.no_grad():
        theirs = again(tokens, [GaiaXpBp], mask)["tok_xp_bp"].flatten(0, 1)
        torch.testing.assert_close(network.logits(asking, compat="aion")["tok_xp_bp"], theirs, **NEAR)


def _folder(published: Path, at: Path, tensors, **config) -> Path:
    at.mkdir(exist_ok=True)
    save_file(tensors, at / "model.safetensors")
    (at / "config.json").write_text(json.dumps({**json.loads((published / "config.json").read_text()), **config}))
    return at


def test_files_that_are_not_of_one_model_are_refused(published, tmp_path):
    whole = load_file(published / "model.safetensors")
    cases = [
        ({k: t for k, t in whole.items() if k != "mask_token"}, "lacks mask_token and has nothing"),
        ({**whole, "more": torch.zeros(1)}, "lacks nothing and has more that"),
        ({**whole, "encoder.0.mlp.fc1.weight": torch.zeros(3, 3)}, r"fc1.weight is of shape \(3, 3\), wanted"),
        ({**whole, "encoder_norm.bias": torch.ones_like(whole["encoder_norm.bias"])}, "encoder_norm.bias is not 0"),
        (
            {**whole, "encoder_embeddings.tok_z.mod_emb": 1 + whole["decoder_embeddings.tok_z.mod_emb"]},
            "tok_z.mod_emb is not that of the decoder",
        ),
    ]
    for i, (tensors, message) in enumerate(cases):
        with pytest.raises(ValueError, match=message):
            read_aion(_folder(published, tmp_path / str(i), tensors))
    for i, (config, message) in enumerate(
        [
            ({"num_register_tokens": 4}, "has num_register_tokens 4, wanted 0"),
            ({"qk_norm": False}, "has qk_norm False, wanted True"),
            ({"domains_in": ["tok_z"]}, "domains_in that are not"),
            ({"strange": 1}, "has strange that is not known"),
            ({"encoder_depth": 3}, "lacks encoder.2"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            read_aion(_folder(published, tmp_path / f"c{i}", whole, **config))
    (tmp_path / "0" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        read_aion(tmp_path / "0")
    with pytest.raises(ValueError, match="holds no whole model of AION-1"):
        read_aion(tmp_path)


def test_half_precision_files_come_back_as_they_were(published, tmp_path):
    half = {k: t.to(torch.bfloat16) for k, t in load_file(published / "model.safetensors").items()}
    out = aion_tensors(read_aion(_folder(published, tmp_path, half)))
    assert all(torch.equal(out[k], half[k]) and out[k].dtype == torch.bfloat16 for k in half)


def _column(name: str, key: str, vocabulary: int, n_tokens: int) -> TokenColumn:
    layout, shape = ("scalar", ()) if n_tokens == 1 else ("line", (n_tokens,))
    return TokenColumn(name, name, vocabulary, n_tokens, layout, shape, True, key)


def test_a_piles_microbatch_becomes_aions():
    own = Vocabulary(
        (
            _column("desi.z", "tok_z", 1024, 1),
            _column("gaia.xp_bp", "tok_xp_bp", 1024, 55),
            TokenColumn("legacysurvey.catalog", "c", 3264, 100, "sequence", (100,), False, "catalog"),
            _column("sdss.z", "tok_z", 1024, 1),
        )
    )
    z, xp, catalog = (int(VOCABULARY.first_slot[VOCABULARY.names.index(k)]) for k in ("tok_z", "tok_xp_bp", "catalog"))
    packed = Packed(
        *(np.array([0, 3, 56, 110, 156, 5], np.int32), np.array([7, 8, 9, 10, 11, 12], np.int32), np.array([0, 5, 6])),
        *(np.array([4, 0, 156], np.int32), np.array([1, 2, 3], np.int32), np.array([0, 1, 3])),
    )
    out = as_aion(packed, own, VOCABULARY)
    # the redshift of desi goes before that of sdss, and a catalogue's 51st token is left out
    assert out.input_slot.tolist() == [catalog, xp + 2, z, xp + 4]
    assert out.input_token.tolist() == [9 + SPECIAL, 8, 7, 12]
    assert out.input_start.tolist() == [0, 3, 4]
    assert out.target_slot.tolist() == [xp + 3, z] and out.target_token.tolist() == [1, 2]
    assert out.target_start.tolist() == [0, 1, 2]
    shown_and_asked = packed._replace(target_slot=np.array([156], np.int32), target_token=np.array([3], np.int32))
    shown_and_asked = shown_and_asked._replace(target_start=np.array([0, 1, 1]))
    assert len(as_aion(shown_and_asked, own, VOCABULARY).target_slot) == 0, "what is shown is not asked for"
    with pytest.raises(ValueError, match="54 tokens of a vocabulary of 1024; AION-1's tok_xp_bp has 55"):
        as_aion(packed, Vocabulary((_column("gaia.xp_bp", "tok_xp_bp", 1024, 54),)), VOCABULARY)
    strange = Vocabulary((_column("roman.mag", "tok_roman", 1024, 1),))
    none, one = np.zeros(0, np.int32), np.zeros(1, np.int32)
    only = Packed(one, one, np.array([0, 1]), none, none, np.array([0, 0]))
    with pytest.raises(ValueError, match="no modality 'tok_roman'"):
        as_aion(only, strange, VOCABULARY)
