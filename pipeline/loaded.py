"""Codecs out of a pile: networks are kept once they are loaded, and run with the threads of a task or on a GPU."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from skycairn.pile.store import Part, Pile, Snapshot
from skycairn.tokenizers.codec import Codec, load

MOST_NETWORKS = 4
"""Networks that a process keeps: AION-1's four of images and spectra take 0.8 GB."""
_networks: OrderedDict[tuple[tuple[str, str], ...], Codec] = OrderedDict()
_lock = threading.RLock()
"""A worker may have several threads: of what is loaded, and of torch's settings, which are the whole process's."""
_settings = ExitStack()
_users = 0
"""Tasks that compute under `_settings`; the first makes them, the last puts back what was."""


def codec_of_parts(pile: Pile, files: Mapping[str, Part]) -> Codec:
    """A codec from the parts that hold its files.

    A codec that was fitted is read in milliseconds, each time anew; one with a network once a process.
    """
    key = tuple(sorted((name, part.sha256) for name, part in files.items()))
    with _lock:
        if key in _networks:
            _networks.move_to_end(key)
            return _networks[key]
        with tempfile.TemporaryDirectory() as folder:
            pile.restore_folder(files, Path(folder))
            codec = load(Path(folder))
        if is_network(codec):
            _networks[key] = codec
            while len(_networks) > MOST_NETWORKS:
                _networks.popitem(last=False)
        return codec


def codecs_of(pile: Pile, snapshot: Snapshot) -> Iterator[tuple[str, Codec]]:
    """A snapshot's own by modality, whatever `codecs.lock` says by now."""
    parts: dict[str, dict[str, Part]] = {}
    for entry in snapshot.entries("codecs"):
        parts.setdefault(str(entry.labels["modality"]), {})[str(entry.labels["file"])] = entry.part
    return ((name, codec_of_parts(pile, files)) for name, files in parts.items())


def is_network(codec: Codec) -> bool:
    """Whether there is a network in it; torch is not imported to tell."""
    module = sys.modules.get("skycairn.tokenizers.network")
    return module is not None and isinstance(codec, module.NetworkCodec)


@contextmanager
def ready(codec: Codec | None) -> Iterator[None]:
    """Within, a codec's network is on this process's GPU, if there is one, else computes with one thread.

    Matrix products are float32's own: shorter ones would turn tokens near a boundary.
    """
    global _users
    if codec is None or not is_network(codec):
        yield
        return
    import torch

    with _lock:
        if torch.cuda.is_available():
            codec.to("cuda")  # type: ignore[attr-defined]
            if not _users:
                _settings.enter_context(torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False))
        else:
            if not _users:
                _settings.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)  # a part of it is each thread's own
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _settings.close()
