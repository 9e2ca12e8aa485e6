"""Files against their archive's checksum lists."""

import hashlib
from pathlib import Path

import pytest

from skycairn.archives.errors import ChecksumMismatch, NotPublished
from skycairn.archives.files import RootArchive, parse_checksums, verify
from skycairn.catalogs.survey import RemoteFile

DATA = b"stars\n"
MD5, SHA1, SHA256 = (getattr(hashlib, name)(DATA).hexdigest() for name in ("md5", "sha1", "sha256"))


def test_lists_as_the_tools_write_them() -> None:
    text = f"# made by hand\r\n{SHA256}  a.fits\r\n{MD5.upper()} *b name.csv.gz\n\n{SHA1}  ./c\n"
    assert parse_checksums(text, "list") == {"a.fits": SHA256, "b name.csv.gz": MD5, "c": SHA1}


@pytest.mark.parametrize("line", ["<html>", "abc  file", f"{SHA256}x  file", f"{SHA256[:50]}  file"])
def test_a_list_that_is_none_is_refused_by_line(line: str) -> None:
    with pytest.raises(ValueError, match=r"my\.sha256sum: line 2"):
        parse_checksums(f"{SHA256}  good\n{line}\n", "my.sha256sum")


def test_two_digests_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="second, other digest"):
        parse_checksums(f"{SHA256}  a\n{'0' * 64}  a\n", "list")


@pytest.mark.parametrize("digest", [MD5, SHA1, SHA256, SHA256.upper(), None])
def test_a_good_file_is_known_by_its_sha256(tmp_path: Path, digest: str | None) -> None:
    (tmp_path / "f").write_bytes(DATA)
    assert verify(tmp_path / "f", digest) == SHA256


def test_one_flipped_bit_is_a_mismatch(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes([DATA[0] ^ 1]) + DATA[1:])
    with pytest.raises(ChecksumMismatch, match="fetch the file again"):
        verify(tmp_path / "f", SHA256)


def test_an_archive_knows_listed_from_there(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "here").write_bytes(DATA)
    (tmp_path / "d" / "all.sha256sum").write_text(f"{SHA256}  here\n{SHA256}  gone\n")
    archive = RootArchive(tmp_path)
    here, gone = (RemoteFile(f"d/{n}", "d/all.sha256sum", "sha256") for n in ("here", "gone"))
    assert archive.exists(here.path) and archive.listed(here) == SHA256
    assert not archive.exists(gone.path) and archive.listed(gone) == SHA256
    assert archive.listed(RemoteFile("d/new", "d/all.sha256sum", "sha256")) is None
    assert archive.names("d/none.sha256sum") is None
    with pytest.raises(NotPublished, match="no such file"):
        archive.local(gone.path)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x"])
def test_no_name_leads_out_of_the_root(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        RootArchive(tmp_path).exists(path)


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        RootArchive(tmp_path / "nowhere")
