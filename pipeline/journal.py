"""What the last build leaves to the next on this machine: its recipe with the roots, and how each file was found.

None of it is needed to open a pile, and a pile that was moved has no use for it: it is looked at anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from skycairn.pile.files import PendingFile, file_sha256, make_folder
from skycairn.pile.store import Pile, Snapshot
from skycairn.pipeline.plan import Plan
from skycairn.pipeline.recipe import PLACE, Recipe, canonical, parse
from skycairn.pipeline.task import Context
from skycairn.pipeline.versions import VERSIONS


class Journal:
    """The folder `journal` of a pile."""

    def __init__(self, pile: Pile) -> None:
        self.pile = pile
        self.folder = pile.root / "journal"

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_bytes())
        except (FileNotFoundError, ValueError):
            # it only spares work: without it everything is looked at again
            return None

    def _write(self, name: str, what: Any) -> None:
        make_folder(self.folder)
        with PendingFile(self.pile.root / "tmp") as file:
            file.write(json.dumps(what, sort_keys=True).encode())
            file.publish(self.folder / name)

    def write(self, ctx: Context, snapshot: Snapshot, p: Plan, partial: bool) -> None:
        """Leave word of a build that has ended."""
        self._write("recipe.json", ctx.recipe.settings())
        self._write("files.json", {"held back": p.held_back, "lost": p.lost})
        looked = {c.name: ctx.archive(c.name).looked for c in ctx.recipe.surveys}
        self._write("inputs.json", None if partial else {**self._state(ctx.recipe, snapshot), "files": looked})

    def write_held_back(self, p: Plan) -> None:
        """Leave word of a build that came to no snapshot, since all was held back."""
        self._write("files.json", {"held back": p.held_back, "lost": p.lost})

    def _state(self, recipe: Recipe, snapshot: Snapshot) -> dict[str, Any]:
        lock = self.pile.root / "codecs.lock"
        return {
            "recipe": canonical(recipe.settings()),
            "versions": VERSIONS,
            "snapshot": [snapshot.number, snapshot.content_id],
            "lock": file_sha256(lock) if lock.is_file() else "",
        }

    def nothing_changed(self, recipe: Recipe, head: Snapshot) -> bool:
        """Whether a build would find everything as the last one left it.

        So it is when recipe, versions, head and codecs are the same, every survey file that was looked at is in the
        state that it was in, or is still absent, and no part of the head is gone.
        """
        noted = self._read("inputs.json")
        if not isinstance(noted, dict):
            return False
        files = noted.pop("files", {})
        if noted != self._state(recipe, head) or "report" not in head.stats:
            return False
        ctx = Context(self.pile, recipe)
        same = all(ctx.archive(name).as_noted(found) for name, found in files.items())
        return same and all(self.pile.has(part) for part in head.parts())

    def files(self) -> dict[str, dict[str, str]]:
        """What is `held back` and what is `lost` in the last build, by path or task, with the reason."""
        return self._read("files.json") or {"held back": {}, "lost": {}}

    def recipe(self, head: Snapshot | None) -> Recipe | None:
        """The recipe of the last build, with its roots where this machine knows them; None before the first."""
        noted = self._read("recipe.json")
        if head is None:
            return None if noted is None else parse(noted, "the pile's recipe")
        if noted is None or parse(noted, "the pile's recipe").rootless() != head.recipe:
            # a build that died after its commit: the head tells what it is of, the journal at best where things lie
            places = {n: {p: c.get(p, "") for p in PLACE} for n, c in (noted or {}).get("surveys", {}).items()}
            return parse(with_places(head.recipe, places, (noted or {}).get("download", {})), "the pile's recipe")
        return parse(noted, "the pile's recipe")


def with_places(
    rootless: Mapping[str, Any], places: Mapping[str, Mapping[str, str]], download: Mapping[str, Any]
) -> dict[str, Any]:
    """A snapshot's recipe with the places of its surveys' files."""
    settings: dict[str, Any] = json.loads(json.dumps(rootless))
    for name, chosen in settings["surveys"].items():
        chosen |= places.get(name, dict.fromkeys(PLACE, ""))
    settings["codecs"]["lock"] = ""
    return {**settings, "download": dict(download)}
