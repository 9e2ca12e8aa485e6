"""The loader on small piles: what it gives is what the shards hold, whoever asks and wherever they lie."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skycairn.model import loader as loader_module
from skycairn.model import strata as strata_module
from skycairn.model.loader import Loader
from skycairn.model.rules import Beta, Dirichlet, Masking, Uniform
from skycairn.model.strata import Source, Weights, find
from skycairn.model.vocabulary import Vocabulary
from skycairn.pile.export import export_hdf5
from skycairn.pile.files import Damaged
from skycairn.pile.hdf5shards import open_shard
from skycairn.pile.localcopy import LocalCopy
from skycairn.pile.shards import TokenArray, TokenColumn, shard_schema, shard_table
from skycairn.pile.store import Draft, Entry, Pile

COLUMNS = (
    TokenColumn("desi.spectrum", "d" * 64, 9, 5, "line", (5,), False, "tok_spectrum_desi"),
    TokenColumn("desi.z", "e" * 64, 50, 1, "scalar", (), True, "tok_z"),
    TokenColumn("gaia.parallax", "c" * 64, 60_000, 1, "scalar", (), True, "tok_parallax"),
    TokenColumn("legacysurvey.catalog", "f" * 64, 30, 7, "sequence", (7,), False, "catalog"),
    TokenColumn("legacysurvey.image", "a" * 64, 4000, 16, "grid", (4, 4), False, "tok_image"),
)
STRATA = {"desi+legacysurvey": [23, 12], "gaia": [33], "legacysurvey": [41, 7]}
MASKING = Masking(8, 4, across_surveys=0.3, components=(Beta(), Dirichlet(), Uniform()))
SMALL = {"objects": 5, "pool": 20, "lanes": 48}


def write_pile(
    root: Path,
    strata: Mapping[str, Sequence[int]],
    group_rows: int = 10,
    columns: Sequence[TokenColumn] = COLUMNS,
    present: float = 0.7,
    split: str = "train",
    seed: int = 0,
) -> Pile:
    """Of each stratum shards of so many rows; the modalities of its surveys are present at random."""
    pile, entries, rng = Pile.create(root), [], np.random.default_rng(seed)
    for stratum, rows in strata.items():
        for cell, n in enumerate(rows):
            ids = pa.table({"object_id": [f"{stratum}:{cell}:{k}" for k in range(n)]})
            tokens, status = {}, {}
            for c in columns:
                there = (rng.random(n) < present) & (c.modality.split(".")[0] in stratum.split("+"))
                length = np.where(there, c.n_tokens, 0)
                if c.layout == "sequence":
                    length = np.where(there, rng.integers(0, c.n_tokens + 1, n), 0)
                values = rng.integers(0, c.vocabulary, (n, c.n_tokens)).astype(c.dtype)
                tokens[c.modality] = TokenArray(values, there, length)
                status[c.modality] = np.where(there, "present", "not observed").tolist()
            schema = shard_schema(ids.schema, columns, split, stratum)
            with pile.table_writer(schema, row_group_rows=group_rows) as writer:
                writer.write(shard_table(ids, tokens, status, schema))
            entries.append(Entry({"cell": cell, "split": split, "stratum": stratum}, writer.part))
    pile.commit(Draft(recipe={}, tables={"shards": entries}))
    return pile


@pytest.fixture(scope="module")
def pile(tmp_path_factory: pytest.TempPathFactory) -> Pile:
    return write_pile(tmp_path_factory.mktemp("loader") / "pile", STRATA)


def loader(*piles, masking=MASKING, **options) -> Loader:
    sources = [Source(p, p.snapshot(), f"pile{k}") for k, p in enumerate(piles)]
    return Loader(sources, "train", masking, **{**SMALL, **options})


def told(packed) -> list[list[int]]:
    return [a.tolist() for a in packed]


def tokens_of(pile: Pile) -> dict[str, np.ndarray]:
    """Dense tokens and lengths of every object by its id, read without the loader."""
    vocabulary, found = Vocabulary.of(pile, pile.snapshot()), {}
    for entry in pile.snapshot().entries("shards"):
        with open_shard(pile.path(entry.part)) as shard:
            for group in range(len(shard.row_groups)):
                ids = shard.objects(group, ["object_id"]).column(0).to_pylist()
                read = shard.tokens(group)
                values = np.concatenate([read[m].values.astype(int) for m in vocabulary.names], axis=1)
                length = np.stack([read[m].length for m in vocabulary.names], axis=1)
                found |= {i: np.concatenate([v, n]) for i, v, n in zip(ids, values, length, strict=True)}
    return found


def test_what_is_read_is_what_the_shards_hold(pile: Pile) -> None:
    ours, wanted = loader(pile), tokens_of(pile)
    for i in (0, 47, 48, 1000, 3):
        rows, ids = ours.rows(i), ours.ids(i)
        assert len(ids) == 5
        for k, name in enumerate(ids):
            assert np.concatenate([rows.tokens[k], rows.length[k]]).tolist() == wanted[name].tolist()


Triples = list[tuple[tuple[int, ...], int, str]]


def triples(ours: Loader, i: int) -> Triples:
    """(object, slot, shown or asked) of a microbatch; an object is its stratum, row group and row."""
    packed, some = ours.microbatch(i), ours.rows(i).length.any(axis=1)
    objects = [tuple(row) for row in ours.order.samples(i)[some].tolist()]
    assert len(objects) == packed.n_objects
    out: Triples = []
    for k, name in enumerate(objects):
        for what, slot, start in (
            ("shown", packed.input_slot, packed.input_start),
            ("asked", packed.target_slot, packed.target_start),
        ):
            out += [(name, int(s), what) for s in slot[start[k] : start[k + 1]]]
    return out


def test_global_batches_are_the_same_on_any_number_of_ranks(pile: Pile) -> None:
    one = loader(pile)
    wanted = [sorted(t for i in one.order.numbers(step) for t in triples(one, i)) for step in range(2)]
    assert wanted[0] != wanted[1]
    for world in (2, 3, 4, 16, 24):
        ranks = [loader(pile) for _ in range(world)]
        for step in range(2):
            found = [
                t for r, own in enumerate(ranks) for i in own.order.numbers(step, r, world) for t in triples(own, i)
            ]
            assert sorted(found) == wanted[step]


def test_a_run_goes_on_from_any_step(pile: Pile) -> None:
    with loader(pile).ahead(0, 1, 24) as stream:
        whole = [told(next(stream)) for _ in range(2 * 40)]
    for step in (1, 7, 39):
        with loader(pile).ahead(step, 1, 24, n=3) as stream:
            assert [told(next(stream)) for _ in range(2)] == whole[2 * step : 2 * step + 2]


def test_what_microbatches_hang_on_is_told(pile: Pile) -> None:
    one = loader(pile).identity
    assert one == loader(pile, cache_bytes=1).identity and one["numpy"] == np.__version__

    def unlike(**options) -> list[str]:
        return [k for k, v in loader(pile, **options).identity.items() if v != one[k]]

    assert unlike(seed=1) == unlike(objects=6) == unlike(weights=Weights(power=0.5)) == ["order"]
    assert unlike(masking=Masking(8, 5)) == ["masking"]
    assert unlike(vocabulary=Vocabulary(COLUMNS[2:])) == ["order", "vocabulary"], "fewer objects have tokens"


def test_the_cache_changes_nothing_and_saves_decoding(pile: Pile) -> None:
    large, none = loader(pile), loader(pile, cache_bytes=1)
    for i in range(96):
        assert told(large.microbatch(i)) == told(none.microbatch(i))
    assert large.decoded == 116, "each row group once"
    assert none.decoded > large.decoded and large.drawn == 480


def test_a_pass_reads_row_groups_once_with_a_small_cache(tmp_path: Path) -> None:
    """Lanes come to their next pools one after another, so a few decoded row groups are enough."""
    pile = write_pile(tmp_path / "pile", {"gaia": [4800]}, group_rows=100, present=1.0)
    ours = loader(pile, objects=4, pool=50, lanes=48)
    ours.cache_bytes = 6 * 100 * (30 * 2 + 5 * 4)
    steps = 4800 // (4 * 48)
    for i in range(steps * 48):
        ours.microbatch(i)
    assert ours.decoded <= 1.6 * 4800


def test_an_export_gives_the_same_microbatches(pile: Pile, tmp_path: Path) -> None:
    export, _ = export_hdf5(pile, pile.snapshot(), tmp_path / "export")
    ours, theirs = loader(pile), loader(export)
    assert ours.order.identity == theirs.order.identity
    for i in (0, 5, 600):
        assert told(ours.microbatch(i)) == told(theirs.microbatch(i))


def test_a_local_copy_gives_the_same_microbatches(pile: Pile, tmp_path: Path) -> None:
    copy = LocalCopy(pile, tmp_path / "near")
    snapshot = pile.snapshot()
    ours, near = loader(pile), Loader([Source(copy, snapshot, "pile0")], "train", MASKING, **SMALL)
    assert [told(ours.microbatch(i)) for i in (0, 99)] == [told(near.microbatch(i)) for i in (0, 99)]
    assert all(str(tmp_path) in str(copy.path(e.part)) for e in snapshot.entries("shards"))


def test_a_microbatch_of_one_survey_only(pile: Pile) -> None:
    ours = loader(pile, weights=Weights({"desi+legacysurvey": 0.0, "legacysurvey": 0.0}))
    packed = ours.microbatch(4)
    names = {ours.vocabulary.names[m] for m in ours.vocabulary.modality_of_slot[packed.target_slot]}
    assert names == {"gaia.parallax"} and not len(packed.input_slot), "one token an object: asked for, nothing shown"


def test_objects_without_a_token_are_never_drawn(tmp_path: Path) -> None:
    pile = write_pile(tmp_path / "pile", {"gaia": [40]}, present=0.5)
    ours, held = loader(pile), tokens_of(pile)
    some = {name for name, row in held.items() if row[-5:].any()}
    assert [s.rows for s in ours.order.strata] == [len(some)] and 10 < len(some) < 30
    assert {name for i in range(96) for name in ours.ids(i)} == some
    assert all(ours.microbatch(i).n_objects == 5 for i in range(96)) and ours.empty == 0
    nothing = write_pile(tmp_path / "none", {"gaia": [40]}, present=0.0)
    with pytest.raises(ValueError, match="split 'train' has no object with a token"):
        loader(nothing)
    few = Vocabulary(COLUMNS[:1])
    with pytest.raises(ValueError, match="none of its objects in split 'train' has a token of the vocabulary"):
        loader(pile, vocabulary=few)


def test_sequences_of_length_0_are_left_out_and_counted(tmp_path: Path) -> None:
    pile = write_pile(tmp_path / "pile", {"legacysurvey": [400]}, columns=COLUMNS[3:4], present=1.0)
    ours = loader(pile)
    sizes = [ours.microbatch(i).n_objects for i in range(96)]
    assert ours.empty == 96 * 5 - sum(sizes) and 0.05 < ours.empty / (96 * 5) < 0.2, "an eighth of them have length 0"


def test_statuses_that_belie_the_tokens_are_refused(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    real = strata_module.with_token
    monkeypatch.setattr(strata_module, "with_token", lambda shard, group, names: real(shard, group, names[:1]))
    with pytest.raises(Damaged, match=r"objects of row group \d have tokens, by their statuses"):
        ours = loader(pile)
        for i in range(48):
            ours.microbatch(i)


def test_two_piles_and_their_weights(pile: Pile, tmp_path: Path) -> None:
    other = write_pile(tmp_path / "pile", {"gaia": [50]}, columns=COLUMNS[2:3], seed=4)
    ours = loader(pile, other, weights=Weights(piles={"pile0": 0.0}))
    assert ours.vocabulary.names == tuple(c.modality for c in COLUMNS)
    assert [s.pile for s in ours.order.strata] == ["pile1"]
    both = loader(pile, other)
    lines = both.order.table(7)
    kinds = np.concatenate([both.order.samples(i)[:, 0] for i in range(7 * 48)])
    assert [x.presentations for x in lines] == np.bincount(kinds, minlength=len(lines)).tolist()
    with pytest.raises(ValueError, match="two piles are named 'a'; give each its own name"):
        find([Source(pile, pile.snapshot(), "a"), Source(other, other.snapshot(), "a")], "train")


def test_piles_of_unlike_codecs_are_refused(pile: Pile, tmp_path: Path) -> None:
    other = replace(COLUMNS[2], codec_id="9" * 64)
    unlike = write_pile(tmp_path / "pile", {"gaia": [50]}, columns=[other])
    with pytest.raises(ValueError, match=r"pile pile1, .*: gaia.parallax is there by the codec 9{64} .*wanted c{64}"):
        loader(pile, unlike)
    with pytest.raises(ValueError, match=r"desi.z is there by the codec e{64}"):
        loader(pile, vocabulary=Vocabulary((replace(COLUMNS[1], codec_id="9" * 64),)))
    few = loader(pile, vocabulary=Vocabulary(COLUMNS[2:3]))
    assert few.rows(0).tokens.shape == (5, 1), "what the vocabulary lacks is not read"


def test_a_split_that_is_not_there_is_named(pile: Pile) -> None:
    with pytest.raises(ValueError, match="pile x: it has no split 'test'; it has train"):
        find([Source(pile, pile.snapshot(), "x")], "test")
    with pytest.raises(ValueError, match="no pile was given"):
        find([], "train")


def test_a_wide_vocabulary(tmp_path: Path) -> None:
    wide = TokenColumn("gaia.parallax", "c" * 64, 1 << 20, 1, "scalar", (), True, "tok_parallax")
    pile = write_pile(tmp_path / "pile", {"gaia": [60]}, columns=[wide], present=1.0)
    assert loader(pile).microbatch(0).target_token.max() > 1 << 16


@pytest.mark.parametrize("place", [200, -100])
def test_a_damaged_shard_is_named(tmp_path: Path, place: int) -> None:
    pile = write_pile(tmp_path / "pile", {"gaia": [50, 50]}, present=1.0)
    path = pile.path(pile.snapshot().entries("shards")[1].part)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    with pytest.raises(Damaged, match=path.name):
        ours = loader(pile)
        with ours.ahead() as stream:
            for _ in range(200):
                next(stream)
    assert not any(t.name == "skycairn loader" for t in threading.enumerate())


def test_a_flipped_bit_never_makes_objects_go_unread(tmp_path: Path) -> None:
    pile = write_pile(tmp_path / "pile", {"gaia": [50, 50]}, group_rows=50, present=1.0)
    path = pile.path(pile.snapshot().entries("shards")[1].part)
    whole = path.read_bytes()
    path.chmod(0o644)
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), 40).tolist():
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(Damaged, match=path.name):
            loader(pile)


def test_a_pile_that_adds_nothing_is_refused(tmp_path: Path) -> None:
    gaia = write_pile(tmp_path / "gaia", {"gaia": [50]}, present=1.0)
    desi = write_pile(tmp_path / "desi", {"desi": [50]}, columns=COLUMNS[:2], present=1.0)
    vocabulary = Vocabulary(tuple(c for c in COLUMNS if c.modality.startswith("gaia")))
    with pytest.raises(ValueError, match=r"pile pile1: none of its objects in split 'train' has a token of the voc"):
        loader(gaia, desi, vocabulary=vocabulary)


def test_who_waits_for_a_stream_that_is_closed_is_told(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = loader(pile)
    stop = threading.Event()
    draw = ours.masker.draw

    def stuck(*given):
        stop.wait(20)
        return draw(*given)

    monkeypatch.setattr(ours.masker, "draw", stuck)
    stream, told = ours.ahead(), []

    def ask():
        try:
            next(stream)
        except ValueError as error:
            told.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    closing = threading.Thread(target=stream.close)
    closing.start()
    stop.set()
    asking.join(10)
    closing.join(10)
    assert not asking.is_alive() and (not told or "was closed" in told[0])


def test_the_thread_is_ahead_and_its_waiting_is_told(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = loader(pile)
    with ours.ahead(n=8) as stream:
        assert stream.waiting == 0.0
        next(stream)
        for _ in range(20):
            time.sleep(0.01)
            next(stream)
        assert stream.waiting < 0.5
        assert ours.drawn >= 5 * 24
    draw = ours.masker.draw

    def slow(*given):
        time.sleep(0.02)
        return draw(*given)

    monkeypatch.setattr(ours.masker, "draw", slow)
    with ours.ahead(n=8) as stream:
        for _ in range(20):
            next(stream)
        assert stream.waiting > 0.8
    with pytest.raises(ValueError, match="was closed"):
        next(stream)
    with pytest.raises(ValueError, match="0 microbatches ahead"):
        ours.ahead(n=0)
    with pytest.raises(ValueError, match="wanted ranks"):
        ours.ahead(world=5)


def test_a_forgotten_stream_ends_its_thread(pile: Pile) -> None:
    stream = loader(pile).ahead(n=2)
    next(stream)
    thread = stream._thread
    del stream
    thread.join(10)
    assert not thread.is_alive()


CODE = """
import signal, sys
from pathlib import Path
from skycairn.model.loader import Loader
from skycairn.model.rules import Masking
from skycairn.model.strata import Source
from skycairn.pile.store import Pile
# who was begun in the background was taught to pass over it
signal.signal(signal.SIGINT, signal.default_int_handler)
pile = Pile.open(Path(sys.argv[1]))
stream = Loader([Source(pile, pile.snapshot())], "train", Masking(8, 4), objects=5, pool=20).ahead(n=2)
next(stream)
print("ready", flush=True)
for packed in stream:
    pass
"""


def test_ctrl_c_ends_it(pile: Pile) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(pile.root)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode in (1, -signal.SIGINT, 130) and said.rstrip().endswith("KeyboardInterrupt")
    assert "Fatal" not in said


def test_a_failure_while_a_pool_is_filled_leaves_no_mixed_pool(pile: Pile, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, calm = loader(pile), loader(pile)
    wanted = [told(calm.microbatch(i)) for i in range(0, 48 * 8, 48)]
    real, rng = loader_module.Loader._group, np.random.default_rng(0)

    def sometimes(self, *given):
        if rng.random() < 0.15:
            raise OSError("the network is away")
        return real(self, *given)

    monkeypatch.setattr(loader_module.Loader, "_group", sometimes)
    found = []
    for i in range(0, 48 * 8, 48):
        while True:
            try:
                found.append(told(ours.microbatch(i)))
                break
            except OSError:
                continue
    assert found == wanted
