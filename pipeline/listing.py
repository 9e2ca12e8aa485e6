"""The files that a recipe needs, for those who copy them by other means: Globus, rsync, aria2."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from skycairn.archives.files import DIGEST_LENGTH, RootArchive, SurveyArchive
from skycairn.archives.sizes import typical
from skycairn.catalogs.survey import RemoteFile, Survey
from skycairn.pipeline.partition import MARGIN_ARCSEC
from skycairn.pipeline.plan import plan
from skycairn.pipeline.task import Context, file_from_json


@dataclass(frozen=True)
class Listed:
    """One file of an archive that a recipe needs."""

    survey: str
    path: str
    "relative to the survey's root"
    url: str
    bytes: int
    known: bool
    "whether `bytes` is the file's own size; else it is that of a typical file of its kind"
    algorithm: str
    checksum: str
    "empty where the archive publishes none"
    there: bool
    "whether a root holds it already"


def catalogue_files(ctx: Context) -> list[Listed]:
    """Reference files, checksum lists and catalogue files of every survey, as far as its lists can be read."""
    cells = ctx.recipe.region.work_cells(MARGIN_ARCSEC).tolist()
    out = []
    for choice in ctx.recipe.surveys:
        s, archive = ctx.survey(choice.name), ctx.archive(choice.name)
        files = list(s.reference_files().values())
        for file in archive.catalog_files(s, cells):
            files += [file, *(beside for _, beside in file.companions)]
        out += _listed(s, archive, files)
    return out


def payload_files(ctx: Context) -> list[Listed] | None:
    """Files of pixels and spectra of the wanted sources; None while catalogues are not all read into the pile."""
    made = plan(ctx, catalogues_only=True)
    if not made.done:
        return None
    out = []
    for choice in ctx.recipe.surveys:
        wanted = [r for label, r in made.receipts.items() if r.step == "want" and label.split(" ")[1] == choice.name]
        groups = [group for r in wanted for of_one in r.notes["groups"].values() for group in of_one]
        files = {v[0]: file_from_json(v) for group in groups for v in group.values()}
        archive = ctx.archive(choice.name)
        archive.expect(sorted({f.checksum_list for f in files.values() if f.checksum_list}))
        out += _listed(ctx.survey(choice.name), archive, [f for _, f in sorted(files.items())])
    return out


def _listed(s: Survey, archive: SurveyArchive, files: Iterable[RemoteFile]) -> list[Listed]:
    """The files and, before them, the lists that vouch for them; each once."""
    files = list(files)
    lists = dict.fromkeys(f.checksum_list for f in files if f.checksum_list)
    every = {f.path: f for f in (*(RemoteFile(path) for path in lists), *files)}
    out = []
    for path, file in every.items():
        digest = archive.listed(file) or ""
        algorithm = next((a for a, n in DIGEST_LENGTH.items() if n == len(digest)), "")
        there = isinstance(archive, RootArchive) and archive.exists(path)
        size = archive.local(path).stat().st_size if there else round(typical(path))
        out.append(Listed(s.name, path, f"{s.url}/{path}", size, there, algorithm, digest, there))
    return out


def as_csv(files: Iterable[Listed]) -> str:
    """survey, path, bytes, algorithm, checksum, url: a line a file."""
    lines = ["survey,path,bytes,bytes_known,algorithm,checksum,url"]
    for f in files:
        # paths of HSC's patches hold a comma
        path, url = (f'"{x}"' if "," in x else x for x in (f.path, f.url))
        lines.append(f"{f.survey},{path},{f.bytes},{int(f.known)},{f.algorithm},{f.checksum},{url}")
    return "\n".join(lines) + "\n"


def as_aria2(files: Iterable[Listed]) -> str:
    """An input file of aria2c, which checks the digests: aria2c --input-file=LIST --dir=ROOT."""
    out = []
    for f in files:
        out += [f.url, f"  out={f.survey}/{f.path}"]
        if f.checksum:
            out.append(f"  checksum={f.algorithm.replace('sha', 'sha-')}={f.checksum}")
    return "\n".join(out) + "\n"


def as_rsync(files: Iterable[Listed]) -> str:
    """For rsync's --files-from, of one survey: paths below its root."""
    return "".join(f"{f.path}\n" for f in files)


def as_globus(files: Iterable[Listed]) -> str:
    """A batch for `globus transfer --batch`: path on the archive's side below the survey's root, path on ours."""
    return "".join(f"{json.dumps(f.path)} {json.dumps(f'{f.survey}/{f.path}')}\n" for f in files)


FORMATS: dict[str, Callable[[Iterable[Listed]], str]] = {
    "csv": as_csv,
    "aria2": as_aria2,
    "rsync": as_rsync,
    "globus": as_globus,
}
