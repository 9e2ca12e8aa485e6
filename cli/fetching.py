"""Where a build's survey files come from, as commands are told; and commands about archives."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skycairn.cli.failing import PARTIAL, errors

if TYPE_CHECKING:
    from skycairn.pipeline.recipe import Recipe

Settings = tuple[dict[str, Any], str, Path]
"""As `recipe.parse` takes them: values, what to call them, the folder they lie in."""


def check_share(option: str, share: float) -> None:
    """ValueError, which names the option, unless the share is one."""
    if not 0 <= share <= 1:
        raise ValueError(f"{option} {share:g}: wanted a share of the requests, 0 to 1, as 0.2")


def leave_out(settings: Settings, without: Sequence[str] | None) -> None:
    """Drop surveys, and what is said of their pairs; ValueError where one is not there, or none is left."""
    values, there = settings[0], list(settings[0].get("surveys", {}))
    for name in dict.fromkeys(without or []):
        if name not in there:
            raise ValueError(f"--without {name}: the recipe has no such survey; it has {', '.join(there)}")
    kept = {name: chosen for name, chosen in values.get("surveys", {}).items() if name not in (without or [])}
    if without and not kept:
        raise ValueError(f"--without {' --without '.join(without)}: no survey is left; keep one of {', '.join(there)}")
    values["surveys"] = kept
    if without and isinstance(match := values.get("match"), dict):
        values["match"] = {
            key: {k: v for k, v in told.items() if not set(k.split("-")) & set(without)}
            if isinstance(told, dict)
            else told
            for key, told in match.items()
        }


def choose(
    settings: Settings, source: Sequence[str] | None, cache: Path | None, limit_gb: float, contact: str, field: bool
) -> None:
    """Put into the settings what the command says; for one field, services are asked unless something else is said."""
    values = settings[0]
    values["surveys"] = {name: dict(chosen) for name, chosen in values["surveys"].items()}
    for told in source or []:
        name, _, kind = told.rpartition("=")
        if name and name not in values["surveys"]:
            raise ValueError(
                f"--source {told}: the recipe has no survey {name!r}; it has {', '.join(values['surveys'])}"
            )
        for chosen in [values["surveys"][name]] if name else values["surveys"].values():
            # an address is of one source
            url = chosen.get("url", "") if chosen.get("source", "") == kind else ""
            chosen |= {"source": kind, "root": "", "url": url}
    silent = [n for n, chosen in values["surveys"].items() if not chosen.get("source") and not chosen.get("root")]
    if field and silent:
        for name in silent:
            values["surveys"][name]["source"] = "query"
        typer.echo(
            f"{', '.join(silent)}: no root and no source named; for one field their catalogue services are asked "
            "(--source archive takes the archives' own files instead)",
            err=True,
        )
    download = dict(values.get("download", {}))
    download |= {"cache": str(cache.resolve())} if cache else {}
    download |= {"limit_bytes": round(limit_gb * 1e9)} if limit_gb else {}
    download |= {"contact": contact} if contact else {}
    values["download"] = download


@contextmanager
def mirrored(settings: Settings, root: Path | None, pile: Path, faults: float) -> Iterator[None]:
    """Serve what lies below `root` on this machine, and let the recipe fetch all of it from there."""
    from skycairn.mirror.faults import Faults
    from skycairn.mirror.sky import HSC_ACCOUNT, mirror_of, services_of

    if root is None:
        raise ValueError("--via-http serves what lies below --root; name it")
    os.environ["SSP_PDR_USR"], os.environ["SSP_PDR_PWD"] = HSC_ACCOUNT
    with mirror_of(root, Faults(faults, slow_s=0.5) if faults else None, services_of(root)) as mirror:
        for chosen in settings[0]["surveys"].values():
            chosen |= {"source": chosen.get("source") or "archive", "root": ""}
        cache = {"cache": str(pile.resolve().parent / f"{pile.name}-cache")}
        settings[0]["download"] = {**cache, **settings[0].get("download", {}), "mirror": mirror.url}
        yield
        bad = ", ".join(f"{kind} {n:,}" for kind, n in sorted(mirror.requests.by_fault.items()))
        typer.echo(
            f"the mirror was asked {mirror.requests.total:,} times{f'; answered badly: {bad}' if bad else ''}", err=True
        )


def print_amounts(recipe: Recipe, pile: Path) -> None:
    """Say how much there is to fetch, roughly, and how long it may take, before anything but lists is fetched."""
    from skycairn.archives.sizes import bytes_in_words, together, warnings
    from skycairn.archives.sources import open_client
    from skycairn.pipeline.listing import amounts

    if all(c.source in ("", "root") for c in recipe.surveys):
        return
    with open_client(recipe.download) as client:
        told, untold = amounts(recipe, pile, client)
    for line in untold:
        typer.echo(line, err=True)
    for one in told:
        typer.echo(f"{one.survey}: {one.what}: {one.amount}", err=True)
        for line in warnings(one.survey, one.host, one.amount):
            typer.echo(line, err=True)
    if len(told) > 1:
        typer.echo(f"in all: {together([one.amount for one in told])}", err=True)
    limit, free = recipe.download.limit_bytes, _free(Path(recipe.download.cache))
    coming = sum(one.amount.bytes for one in told)
    if told and min(limit, coming) > free:
        typer.echo(
            f"the cache may hold {bytes_in_words(limit)}, and its disk has {bytes_in_words(free)} free: name another "
            "folder (--cache), or give it a lower limit (--cache-limit)",
            err=True,
        )
    largest = max(told, key=lambda one: one.largest, default=None)
    if largest is not None and largest.largest > limit:
        typer.echo(
            f"{largest.survey}: its largest file has about {bytes_in_words(largest.largest)}, more than the cache may "
            f"hold ({bytes_in_words(limit)}): give it a higher limit (--cache-limit)",
            err=True,
        )


def _free(folder: Path) -> int:
    """Bytes that are free where the folder is, or is to be."""
    import shutil

    return shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free


def fetch(
    recipe: Annotated[str, typer.Argument(help="tiny, mock, aion, or a TOML file")],
    pile: Annotated[
        Path | None, typer.Option(help="pile that knows which pixels and spectra are wanted, or is to find that out")
    ] = None,
    into: Annotated[
        Path | None, typer.Option("--list", help="write a list of the files here, and fetch none of them")
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format", help="of the list: csv, aria2 (with checksums); rsync, globus (paths of one --survey)"
        ),
    ] = "csv",
    root: Annotated[
        Path | None, typer.Option(help="copies of the archives, by survey: what is there is not listed")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="archive, query or hats for all surveys, or gaia=query for one")
    ] = None,
    survey: Annotated[list[str] | None, typer.Option(help="these surveys alone")] = None,
    without: Annotated[list[str] | None, typer.Option(help="leave this survey of the recipe out; repeatable")] = None,
    cone: Annotated[tuple[float, float, float] | None, typer.Option(help="RA DEC RADIUS in degrees")] = None,
    targets: Annotated[Path | None, typer.Option(help="table of your own targets (id, ra, dec)")] = None,
    sizes: Annotated[bool, typer.Option("--sizes", help="ask the archive how large each file is")] = False,
    every: Annotated[bool, typer.Option("--all", help="list files too that lie below the root already")] = False,
    payload: Annotated[
        bool, typer.Option("--payload", help="list pixels and spectra though some catalogue files are not there yet")
    ] = False,
    via_http: Annotated[
        bool, typer.Option("--via-http", help="fetch what lies below --root through a mirror on this machine")
    ] = False,
    cache: Annotated[Path | None, typer.Option(help="folder for what is downloaded")] = None,
    cache_limit: Annotated[float, typer.Option(help="GB that the cache may hold; 0: what the recipe says")] = 0.0,
    contact: Annotated[
        str, typer.Option(help="your e-mail address, sent along so that archives can write to you")
    ] = "",
    workers: Annotated[int, typer.Option(help="processes that read the catalogues; 0: this one")] = 0,
) -> None:
    """Bring all files of a recipe into the cache ahead of its build, or list them (--list) for other means of copying.

    Exit code 3: some could not be had.
    """
    with errors():
        from skycairn.pipeline import recipe as recipes

        settings = recipes.settings_of(recipe)
        region_from(settings, cone, targets)
        leave_out(settings, without)
        choose(settings, source, cache, cache_limit, contact, False)
        with ExitStack() as stack:
            if via_http:
                stack.enter_context(mirrored(settings, root, pile or into or Path("list"), 0.0))
                root = None
            chosen = recipes.parse(*settings)
            if root is not None:
                if not root.is_dir():
                    raise ValueError(f"{root}: no such folder; --root holds, or is to hold, one of each survey's name")
                chosen = chosen.at(root.resolve())
            chosen = _of_surveys(chosen, survey or [])
            if into is not None:
                _list(chosen, pile, into, form, sizes, every, payload, workers, root)
            elif pile is None:
                raise ValueError(
                    "name a --pile: which pixels and spectra are wanted is known once the catalogues are read into "
                    "one; or write a list of the catalogue files (--list)"
                )
            else:
                _bring(chosen, pile, workers)


def _of_surveys(recipe: Recipe, names: Sequence[str]) -> Recipe:
    """The recipe of these surveys alone; where none is named, all; what has neither source nor root: its archive."""
    from dataclasses import replace

    if unknown := sorted(set(names) - {c.name for c in recipe.surveys}):
        raise ValueError(f"--survey {unknown[0]}: the recipe has {', '.join(c.name for c in recipe.surveys)}")
    chosen = [replace(c, source=c.source or "archive") for c in recipe.surveys]
    kept = [c for c in chosen if not names or c.name in names or c.name == "targets"]
    return replace(recipe, surveys=tuple(kept))


def _list(
    recipe: Recipe,
    pile: Path | None,
    into: Path,
    form: str,
    sizes: bool,
    every: bool,
    payload: bool,
    workers: int,
    root: Path | None,
) -> None:
    from skycairn.archives.sizes import bytes_in_words
    from skycairn.archives.sources import open_client
    from skycairn.cli.show import Bars
    from skycairn.pipeline import listing
    from skycairn.pipeline.engine import Engine

    if form not in listing.FORMATS:
        raise ValueError(f"there is no format {form!r}; choose {', '.join(listing.FORMATS)}")
    if not into.absolute().parent.is_dir():
        raise ValueError(f"{into.absolute().parent}: no such folder to write the list into")
    with open_client(recipe.download) as client:
        found = listing.inventories(recipe, client)
        needed = {name: listing.catalogue_files(recipe, inventory) for name, inventory in found.items()}
        lacking = {name: n.lacking for name, n in needed.items() if n.lacking}
        held_back: dict[str, str] = {}
        whole = pile is not None and (payload or not lacking)
        if whole and pile is not None:
            with Bars() as bars:
                made = listing.read_catalogues(recipe, pile, Engine(workers), bars)
            held_back = made.held_back
            for name in needed:
                needed[name] = listing.with_payload(needed[name], found[name], listing.payload_files(made, name))
        files, n_unasked, n_there = [], 0, 0
        for name, inventory in found.items():
            some, missing, unasked = listing.listed(inventory, needed[name].files, sizes)
            n_there += sum(f.there for f in some)
            files += [f for f in some if every or not f.there]
            n_unasked += unasked
            for path in missing:
                typer.echo(f"{name}: the archive has no {path}: it is not in the list", err=True)
    into.write_text(listing.written(files, form), encoding="utf-8")
    size = f"{'' if all(f.known for f in files) else 'about '}{bytes_in_words(sum(f.bytes for f in files))}"
    what = "catalogue files, pixels and spectra" if whole else "catalogue files alone, no pixels or spectra"
    typer.echo(f"{into}: {len(files):,} files, {size}: {what}")
    if n_there:
        typer.echo(f"{n_there:,} files lie below the root already{'' if every else ', and are not in the list'}")
    if files:
        [*names] = {f.survey: None for f in files}
        url = found[names[0]].url
        typer.echo(f"next: {listing.hint(form, str(into), str(root or 'ROOT'), ', '.join(names), url)}")
        if "hsc" in names:
            typer.echo("hsc: its files want your account, which a list does not hold: put it into ~/.netrc")
    if n_unasked:
        typer.echo(
            f"{n_unasked:,} lists of digests are too many to ask for, so that some digests are not in the list and "
            "some files of it may not exist; once the lists themselves are copied, write it again"
        )
    if not whole:
        n = sum(map(len, lacking.values()))
        first = next((f"{name}/{paths[0]}" for name, paths in lacking.items()), "")
        then = f"{n:,} catalogue files are not here yet, {first} for one: copy them" if n else "the catalogues are here"
        typer.echo(f"then: {then}, and run this again with --root and --pile: it will list pixels and spectra too")
    for name, one in needed.items():
        if one.tables:
            typer.echo(
                f"{name}: {len(one.tables):,} replies are given by its service, and are no files to copy: a build asks "
                f'for them by itself with surveys.{name}.source = "{"archive" if name == "hsc" else "query"}"'
            )
    for where, why in held_back.items():
        typer.echo(f"held back: {where}: {why}; what hangs on it is not in the list", err=True)
    if held_back:
        raise typer.Exit(PARTIAL)


def _bring(recipe: Recipe, pile: Path, workers: int) -> None:
    from skycairn.archives.sizes import bytes_in_words
    from skycairn.archives.sources import open_client
    from skycairn.cli.show import Bars
    from skycairn.pipeline import listing
    from skycairn.pipeline.engine import Engine

    print_amounts(recipe, pile)
    with Bars() as bars:
        made = listing.read_catalogues(recipe, pile, Engine(workers), bars)
        with open_client(recipe.download) as client:
            found = listing.inventories(recipe, client)
            needed = {
                name: [*listing.catalogue_files(recipe, inventory).files, *listing.payload_files(made, name)]
                for name, inventory in found.items()
            }
        came, n_requests = listing.bring(recipe, pile, needed, bars)
    bad = bool(made.held_back)
    for where, why in made.held_back.items():
        typer.echo(f"held back: {where}: {why}", err=True)
    for name, one in came.items():
        absent = f"; {one.absent:,} the archive has not" if one.absent else ""
        typer.echo(
            f"{name}: {one.files + one.there:,} files, {bytes_in_words(one.bytes)}, are in the cache, {one.files:,} of "
            f"them since the catalogues were read{absent}"
        )
        for path, why in one.failed.items():
            typer.echo(f"{name}: {path}: {why}", err=True)
        if one.left:
            typer.echo(
                f"{name}: the cache has no room for {one.left:,} files more; give it a higher limit (--cache-limit), "
                "or let the build fetch them as it goes on",
                err=True,
            )
        bad |= bool(one.failed or one.left)
    typer.echo(f"asked of archives: requests {n_requests:,}; run the same command again and it goes on where it was")
    if bad:
        raise typer.Exit(PARTIAL)


def mirror(
    sky: Annotated[Path, typer.Argument(help="folder of a sky that `skycairn mock` wrote")],
    port: Annotated[int, typer.Option(help="on 127.0.0.1; 0: any that is free")] = 0,
    faults: Annotated[float, typer.Option(help="share of the requests that are answered badly, 0 to 1")] = 0.0,
) -> None:
    """Serve a mock sky under its archives' addresses on this machine, until Control-C."""
    with errors():
        from skycairn.mirror.faults import Faults
        from skycairn.mirror.sky import serve, services_of

        if not 0 <= port <= 65535:
            raise ValueError(f"--port {port}: wanted 0 to 65535")
        check_share("--faults", faults)
        spoiler = Faults(faults, slow_s=0.5) if faults else None
        serve(sky, port, spoiler, services_of(sky), say=lambda line: print(line, flush=True))


def region_from(settings: Settings, cone: tuple[float, float, float] | None, targets: Path | None) -> None:
    """Put the region that the command names into the settings."""
    if cone is not None:
        settings[0]["region"] = {"kind": "cone", "ra": cone[0], "dec": cone[1], "radius_deg": cone[2]}
    if targets is not None:
        settings[0]["region"] = {"kind": "targets", "table": str(targets.resolve()), "radius_arcsec": 60.0}
