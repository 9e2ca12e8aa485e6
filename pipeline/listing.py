"""The files that a recipe needs: counted, listed for those who copy them by other means, brought ahead of a build."""

from __future__ import annotations

import csv
import io
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from skycairn.archives import sizes
from skycairn.archives.client import Client
from skycairn.archives.credentials import NoAccount, credential, how_to_set
from skycairn.archives.errors import FetchError, Refused
from skycairn.archives.files import DIGEST_LENGTH
from skycairn.archives.inventory import Inventory
from skycairn.archives.remote import ACCOUNTS, MOST_QUESTIONS, RemoteArchive
from skycairn.archives.sources import open_inventory
from skycairn.catalogs.survey import RemoteFile
from skycairn.pile.lock import builder_lock
from skycairn.pile.store import Pile
from skycairn.pipeline.downloads import Downloads
from skycairn.pipeline.engine import Engine
from skycairn.pipeline.parent import Parent
from skycairn.pipeline.partition import MARGIN_ARCSEC
from skycairn.pipeline.plan import Memory, Plan, plan
from skycairn.pipeline.recipe import Recipe
from skycairn.pipeline.run import Progress, rounds
from skycairn.pipeline.task import Context, file_from_json

LISTS_ASKED = 500
"""Lists of digests that are fetched to write a list; of more, the digests are left out: some 550 an hour come."""
LISTS_LOOKED_AT = 20
"""Lists that are fetched to tell how much a build will fetch."""
CELL_SQUARE_DEGREES = 41252.96 / (12 * 4**6)
UNTOLD = re.compile(r"[\x00-\x1f\x7f]")


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
    "empty where the archive publishes none, or its list was not asked for"
    there: bool
    "whether a root holds it already"


@dataclass
class Needed:
    """What a recipe needs of one survey."""

    files: list[RemoteFile] = field(default_factory=list)
    "reference files, catalogue files and their companions, then files of pixels and spectra; no list of digests"
    tables: list[str] = field(default_factory=list)
    "and cut-outs, that a service gives: no files, so that nobody can copy them"
    lacking: list[str] = field(default_factory=list)
    "catalogue files that are neither below the root nor in the cache"


def inventories(recipe: Recipe, client: Client | None, most_asked: int | None = None) -> dict[str, Inventory]:
    """What each survey's archive has; the user's own targets have none."""
    out = {}
    for c in recipe.surveys:
        s = c.survey()
        if not (c.url or s.url):
            continue
        out[c.name] = open_inventory(s, c.source, c.root, c.url, recipe.download, most_asked)
        out[c.name].connect(client)
    return out


def catalogue_files(recipe: Recipe, inventory: Inventory) -> Needed:
    """Reference files, catalogue files and companions of one survey, as its archive's lists name them.

    FetchError where a list cannot be had.
    """
    cells = recipe.region.work_cells(MARGIN_ARCSEC).tolist()
    survey = inventory.survey
    made = Needed(list(survey.reference_files().values()))
    for file in inventory.catalog_files(survey, cells):
        beside = [companion for _, companion in file.companions]
        for f in (file, *beside):
            if inventory.of_service(f.path):
                made.tables += [] if inventory.here(f.path) else [f.path]
            else:
                made.files.append(f)
        there = inventory.here(file.path) or (inventory.root is None and inventory.there(file.path))
        if not there and not inventory.of_service(file.path):
            made.lacking.append(file.path)
    return made


def payload_files(made: Plan, name: str) -> list[RemoteFile]:
    """Files of pixels and spectra of the survey's wanted sources; `made` ends where these are known."""
    wanted = [r for label, r in made.receipts.items() if r.step == "want" and label.split(" ")[1] == name]
    groups = [group for r in wanted for of_one in r.notes["groups"].values() for group in of_one]
    files = {v[0]: file_from_json(v) for group in groups for v in group.values()}
    return [f for _, f in sorted(files.items())]


def with_payload(needed: Needed, inventory: Inventory, files: Iterable[RemoteFile]) -> Needed:
    """What is needed, and these files of pixels and spectra."""
    both = list(files)
    given = [f.path for f in both if inventory.of_service(f.path)]
    others = [f for f in both if not inventory.of_service(f.path)]
    return replace(needed, files=needed.files + others, tables=needed.tables + given)


def listed(
    inventory: Inventory, files: Iterable[RemoteFile], ask_sizes: bool = False
) -> tuple[list[Listed], list[str], int]:
    """The files and, before them, the lists that vouch for them, each once, sorted by path in each of the two.

    Then those files that the archive turned out not to have, and how many lists of digests were not asked for. A file
    that its list does not name was never published, and is left out.
    """
    by_path = {f.path: f for f in files}
    lists = sorted({f.checksum_list for f in by_path.values() if f.checksum_list})
    unknown = [path for path in lists if not inventory.knows(path)]
    if len(unknown) <= LISTS_ASKED:
        inventory.expect(unknown)
        unknown = []
    digests: dict[str, str] = {}
    for file in list(by_path.values()):
        if file.checksum_list is None or file.checksum_list in unknown:
            continue
        names = inventory.names(file.checksum_list)
        if names is not None and (digest := inventory.listed(file)) is None:
            del by_path[file.path]
        elif names is not None:
            digests[file.path] = str(digest)
    absent = {path for path in lists if path not in unknown and inventory.names(path) is None}
    every = [path for path in lists if path not in absent] + sorted(by_path)
    known = {path: n for path in every if (n := _size_here(inventory, path)) is not None}
    missing: list[str] = []
    if ask_sizes:
        told = inventory.sizes(path for path in every if path not in known)
        missing = [path for path in every if path not in known and path not in told]
        known |= {path: n for path, n in told.items() if n is not None}
    out = []
    for path in every:
        if path in missing:
            continue
        digest = digests.get(path, "")
        algorithm = next((a for a, n in DIGEST_LENGTH.items() if n == len(digest)), "")
        size = known.get(path, round(sizes.typical(path)))
        there = inventory.here(path) is not None
        url = inventory.address(path)
        out.append(Listed(inventory.survey.name, path, url, size, path in known, algorithm, digest, there))
    return out, missing, len(unknown)


def _size_here(inventory: Inventory, path: str) -> int | None:
    if (here := inventory.here(path)) is not None:
        return here.stat().st_size
    return inventory.size(path)


# --- how much -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """How much is to be fetched of one survey, of one kind."""

    survey: str
    what: str
    host: str
    amount: sizes.Amount
    largest: int = 0
    "bytes of the largest file; 0 where the files are not known"


def amounts(recipe: Recipe, pile: Path, client: Client) -> tuple[list[Told], list[str]]:
    """What a build will fetch from afar, less what is in the cache; and what could not be told, with the reason.

    Catalogue files are counted by the archive's own lists, pixels and spectra by the wanted sources where the pile
    knows them, else by the sky.
    """
    out, untold = [], []
    far = [c for c in recipe.surveys if c.source not in ("", "root")]
    found = inventories(replace(recipe, surveys=tuple(far)), client, LISTS_LOOKED_AT)
    wanted = _wanted(recipe, pile) if far else None
    n_cells = len(recipe.region.work_cells(0.0))
    area = n_cells * CELL_SQUARE_DEGREES
    for name, inventory in found.items():
        host = urlsplit(inventory.url).netloc
        if lacks := _no_account(name, host):
            untold.append(lacks)
        try:
            needed = catalogue_files(recipe, inventory)
            if coming := _coming(inventory, needed.files):
                out.append(_told(inventory, host, "catalogue files", coming))
            questions = [t for t in needed.tables if not inventory.there(t)]
            if questions:
                out.append(Told(name, "tables of its catalogue service", host, sizes.amount(host, questions)))
        except NoAccount:
            pass  # said above
        except (FetchError, ValueError) as error:
            untold.append(f"{name}: how much of its catalogue is to be fetched is not known: {error}")
        if wanted is not None:
            files = payload_files(wanted, name)
            if coming := _coming(inventory, files):
                what = "cut-outs" if inventory.survey.cutouts else "pixels and spectra"
                out.append(_told(inventory, inventory.host(coming[0]), what, coming))
        elif inventory.survey.cutouts:
            untold.append(
                f"{name}: how many cut-outs it will be asked for is known when its catalogue is read; "
                f"{MOST_QUESTIONS:,} at most"
            )
        elif (told := sizes.payload_amount(name, host, area)).files and not recipe.download.mirror:
            cells = "the whole work cell" if n_cells == 1 else f"all {n_cells:,} whole work cells"
            what = f"pixels and spectra of {cells} that the region touches, {area:,.1f} square degrees, if it saw all"
            out.append(Told(name, what, host, told))
    return out, untold


def _no_account(name: str, host: str) -> str:
    """What it means that the survey's host wants an account and there is none here; empty where all is well."""
    account = ACCOUNTS.get(host)
    try:
        if account is not None:
            credential(account)
    except NoAccount:
        return (
            f"{name}: no account ({how_to_set(str(account))}); until then no objects can be made where {name} might "
            f"have looked, which may be everywhere; leave {name} out with --without {name}"
        )
    except Refused as error:
        return f"{name}: {error}; until then no objects can be made where {name} might have looked"
    return ""


def _coming(inventory: Inventory, files: Iterable[RemoteFile]) -> list[str]:
    """Paths of the files, and of the lists that vouch for them, that a build will ask for."""
    by_path = {f.path: f for f in files}
    paths = [*sorted({f.checksum_list for f in by_path.values() if f.checksum_list}), *by_path]
    return [path for path in paths if not (inventory.there(path) or inventory.known_absent(path))]


def _told(inventory: Inventory, host: str, what: str, paths: list[str]) -> Told:
    known = [n for path in paths if (n := inventory.size(path)) is not None]
    guessed = [sizes.typical(path) for path in paths if inventory.size(path) is None]
    how: sizes.How = "about " if guessed else ""
    told = sizes.of(host, len(paths), sum(known) + sum(guessed), how)
    return Told(inventory.survey.name, what, host, told, round(max([*known, *guessed])))


def _wanted(recipe: Recipe, pile: Path) -> Plan | None:
    """The plan up to where the wanted sources are known, as far as the pile knows them; nothing is asked."""
    try:
        ctx = Context(Pile.open(pile), recipe)
        while True:
            made = plan(ctx, catalogues_only=True)
            waiting = [(ctx.archive(name), path) for name, files in made.downloads.items() for path in files]
            if made.done:
                return made if not made.held_back else None
            if made.todo or not all(isinstance(a, RemoteArchive) and a.known_absent(path) for a, path in waiting):
                return None
            # what was lost is asked for in each build; here it is as it was the last time
            for archive, path in waiting:
                archive.looked[path] = None
    except (ValueError, OSError, FetchError):
        return None


# --- the forms of a list --------------------------------------------------------------------------------------------


def as_csv(files: Iterable[Listed]) -> str:
    """survey, path, bytes, bytes_known (1 or 0), algorithm, checksum, url: a line a file, below one of names."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(("survey", "path", "bytes", "bytes_known", "algorithm", "checksum", "url"))
    for f in files:
        rows.writerow((f.survey, f.path, f.bytes, int(f.known), f.algorithm, f.checksum, f.url))
    return out.getvalue()


def as_aria2(files: Iterable[Listed]) -> str:
    """An input file of aria2c, which checks the digests: aria2c --input-file=LIST --dir=ROOT."""
    out = []
    for f in files:
        if f.path != f.path.rstrip():
            raise ValueError(f"{f.path!r}: ends in a space, which an input file of aria2c cannot tell; write csv")
        out += [f.url, f"  out={f.survey}/{f.path}"]
        if f.checksum:
            out.append(f"  checksum={f.algorithm.replace('sha', 'sha-')}={f.checksum}")
    return "".join(f"{line}\n" for line in out)


def as_rsync(files: Iterable[Listed]) -> str:
    """For rsync's --files-from, of one survey: paths below its root, as they are."""
    known = _of_one_survey(files)
    for f in known:
        if f.path[0] in "#;":
            raise ValueError(f"{f.path!r}: rsync takes a line that begins so for a comment; write another format")
    return "".join(f"{f.path}\n" for f in known)


def as_globus(files: Iterable[Listed]) -> str:
    """A batch for `globus transfer --batch`, of one survey: path below its root at the archive, path below ours."""
    known = _of_one_survey(files)
    return "".join(f"{shlex.quote(f.path)} {shlex.quote(f'{f.survey}/{f.path}')}\n" for f in known)


def _of_one_survey(files: Iterable[Listed]) -> list[Listed]:
    known = list(files)
    if len(names := sorted({f.survey for f in known})) > 1:
        raise ValueError(
            f"this format holds paths below the root of one survey, and there are {', '.join(names)}; choose one by "
            "--survey, and write a list for each"
        )
    return known


FORMATS: Mapping[str, Callable[[Iterable[Listed]], str]] = {
    "csv": as_csv,
    "aria2": as_aria2,
    "rsync": as_rsync,
    "globus": as_globus,
}


def written(files: Iterable[Listed], form: str) -> str:
    """The list in this form; ValueError where a path cannot be told in it."""
    if form not in FORMATS:
        raise ValueError(f"there is no format {form!r}; choose {', '.join(FORMATS)}")
    known = list(files)
    for f in known:
        if UNTOLD.search(f.path):
            raise ValueError(f"{f.survey}: {f.path!r} holds a control character, which no list can tell; is it a file?")
    return FORMATS[form](known)


def hint(form: str, where: str, root: str, survey: str, url: str) -> str:
    """How a list of this survey, or of several, is used; `url` is the root of the survey's archive."""
    if form == "aria2":
        return f"aria2c --input-file={where} --dir={root} --continue=true --max-concurrent-downloads=2"
    if form == "rsync":
        return f"rsync -a --files-from={where} SOURCE/ {root}/{survey}/   (SOURCE: a copy of {url}, by rsync)"
    if form == "globus":
        there = sizes.GLOBUS.get(urlsplit(url).netloc, "COLLECTION")
        return f"globus transfer --batch {where} {there}:FOLDER YOURS:{root}   (FOLDER: there, what {url} is)"
    return f"put each file at {root}/SURVEY/PATH"


# --- ahead of a build -------------------------------------------------------------------------------------------------


def read_catalogues(recipe: Recipe, pile_root: Path, engine: Engine, progress: Progress | None = None) -> Plan:
    """Do a build up to where the wanted sources are known, catalogue files fetched where need be; the plan of that."""
    pile = Pile.create(pile_root)
    with builder_lock(pile.root):
        ctx = Context(pile, recipe)
        with engine.start(ctx) as run:
            return rounds(ctx, run, Parent(pile, pile.head()), Memory(), {}, progress, catalogues_only=True)


@dataclass
class Came:
    """How files of one survey were brought."""

    there: int = 0
    "in the cache already"
    files: int = 0
    "that came now"
    bytes: int = 0
    "of both"
    absent: int = 0
    "that the archive has not: bands without exposures, and what was lost"
    failed: dict[str, str] = field(default_factory=dict)
    "by path, with the reason"
    left: int = 0
    "for which the cache has no room"


def bring(
    recipe: Recipe, pile_root: Path, files: Mapping[str, list[RemoteFile]], progress: Progress | None = None
) -> tuple[dict[str, Came], int]:
    """Have the files of far surveys in the cache, with the lists that vouch for them; what came, and all requests."""
    out: dict[str, Came] = {}
    with Downloads(Context(Pile.open(pile_root), recipe), progress) as downloads:
        wanted: dict[str, list[RemoteFile]] = {}
        before: dict[str, set[str]] = {}
        for name, archive in downloads.archives.items():
            lists = sorted({f.checksum_list for f in files.get(name, []) if f.checksum_list})
            wanted[name] = [*(RemoteFile(path) for path in lists), *files.get(name, [])]
            before[name] = {f.path for f in wanted[name] if archive.there(f.path)}
            archive.expect(lists)
        left = downloads.bring(wanted)
        for name, archive in downloads.archives.items():
            came = out[name] = Came(left=sum(survey == name for survey, _ in left))
            for path in dict.fromkeys(f.path for f in wanted[name]):
                if archive.there(path):
                    came.there += path in before[name]
                    came.files += path not in before[name]
                    came.bytes += archive.size(path) or 0
                elif error := archive.failed(path):
                    came.failed[path] = str(error)
                elif (name, path) not in left:
                    came.absent += 1
        return out, downloads.counts()["requests"]
