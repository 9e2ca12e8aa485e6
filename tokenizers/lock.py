"""`codecs.lock`: which codec each modality of a pile is encoded with, by content id."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from skycairn.tokenizers.codec import Codec, load, read_json


def write_lock(path: Path, codecs: Mapping[str, Codec]) -> None:
    """Write the lock, and beside it each codec into `codecs/<content id>/`; the same bytes for the same codecs.

    A codec that already lies there is kept. The lock appears whole, after all that it names.
    """
    entries = {}
    for modality, codec in sorted(codecs.items()):
        folder = f"codecs/{codec.content_id}"
        _save(path.parent / folder, codec)
        entries[modality] = {"kind": codec.kind, "content_id": codec.content_id, "folder": folder}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(json.dumps(entries, indent=1, sort_keys=True) + "\n")
    _flush(part)
    os.replace(part, path)
    _flush(path.parent)


def lock_ids(path: Path) -> dict[str, str]:
    """Content id of each modality's codec, as the lock says; the codecs themselves are not looked at."""
    return {modality: entry["content_id"] for modality, entry in _entries(path).items()}


def _entries(path: Path) -> dict[str, dict[str, str]]:
    """What the lock says of each modality; ValueError where a folder that it names leads out of the lock's own."""
    entries = read_json(path)
    for modality, entry in entries.items():
        own = isinstance(entry, dict) and {"kind", "content_id", "folder"} <= entry.keys()
        if not own or not all(isinstance(v, str) for v in entry.values()):
            raise ValueError(f"{path}: says {entry!r} of {modality}; wanted its kind, content_id and folder")
        folder = PurePosixPath(entry["folder"])
        if folder.is_absolute() or ".." in folder.parts or "\0" in entry["folder"]:
            raise ValueError(f"{path}: {modality} names {entry['folder']!r}, which leads out of the lock's own folder")
    return entries


def read_lock(path: Path | str) -> dict[str, Codec]:
    """The codecs of a lock, or of the folder that holds one, by modality.

    ValueError where there is no lock, or a codec on disk is not the one that it names.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "codecs.lock"
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file, wanted the codecs.lock of a pile or of trained codecs")
    codecs = {}
    for modality, entry in sorted(_entries(path).items()):
        folder = path.parent / entry["folder"]
        if not (folder / "codec.json").is_file():
            raise ValueError(f"{path}: {modality} names {folder}, which holds no codec; copy `codecs/` with the lock")
        codec = load(folder)
        if codec.content_id != entry["content_id"] or codec.kind != entry["kind"]:
            raise ValueError(
                f"{path}: {modality} names the {entry['kind']} codec {entry['content_id'][:12]}.., {folder} holds the "
                f"{codec.kind} codec {codec.content_id[:12]}..; copy `codecs/` with the lock, or fit again"
            )
        codecs[modality] = codec
    return codecs


def _flush(path: Path) -> None:
    """To the disk, so that a power cut leaves no lock without its codecs."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _save(folder: Path, codec: Codec) -> None:
    if folder.is_dir() and load(folder).content_id == codec.content_id:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    codec.save(part)
    part.chmod(0o755)
    for file in (*part.iterdir(), part):
        _flush(file)
    try:
        part.rename(folder)
        _flush(folder.parent)
    except OSError:  # another process was faster
        shutil.rmtree(part)
        if load(folder).content_id != codec.content_id:
            raise
