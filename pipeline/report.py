"""The closing table of a build: files, sources, cuts, matches, objects, tokens, whose sums close."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from skycairn.pipeline.plan import Plan
from skycairn.pipeline.task import Context, close


@dataclass(frozen=True)
class Report:
    """What a build counted."""

    surveys: Mapping[str, Mapping[str, int]]
    "by survey: files, rows, dropped by reason, repeats, valid, selected, members, tokens"
    splits: Mapping[str, int]
    strata: Mapping[str, int]
    statuses: Mapping[str, Mapping[str, int]]
    "by survey and by modality: objects by status"
    objects: int
    pairs: int
    conflicts: int
    tasks: Mapping[str, int]
    links: Mapping[str, int] = field(default_factory=dict)
    "rows that name a row of another survey: accepted, or why not"


def report(ctx: Context, p: Plan) -> Report:
    """Add up the receipts behind a plan that is done; Unclosed where a sum does not close."""
    by_survey: dict[str, Counter[str]] = {c.name: Counter() for c in ctx.recipe.surveys}
    splits: Counter[str] = Counter()
    strata: Counter[str] = Counter()
    statuses: dict[str, Counter[str]] = {}
    totals: Counter[str] = Counter()
    for label, r in p.receipts.items():
        survey = label.removeprefix(r.step + " ").split(" ")[0].split(".")[0]
        into = by_survey.get(survey, Counter())
        if r.step == "fetch":
            into.update({"files": r.counts["files"], "bytes": r.counts["bytes"], "verified": r.counts["verified"]})
        elif r.step == "read":
            into.update({k: v for k, v in r.counts.items() if k == "rows" or k.startswith("dropped:")})
            into["kept"] += r.counts["kept"]
        elif r.step == "gather":
            into.update({k: v for k, v in r.counts.items() if k != "dropped:duplicate"})
            into["dropped:duplicate"] += r.counts["dropped:duplicate"]
        elif r.step == "match":
            totals.update({k: r.counts[k] for k in ("objects", "pairs", "conflicts")})
            totals.update({k: n for k, n in r.counts.items() if k.startswith("links:")})
            for name, counts in by_survey.items():
                counts["members"] += r.counts.get(f"members:{name}", 0)
                counts["anchored outside region"] += r.counts.get(f"outside:{name}", 0)
        elif r.step in ("encode", "encode payload"):
            into.update({k: v for k, v in r.counts.items() if k.startswith(("tokens:", "present:"))})
        elif r.step == "extract" and not label.endswith("for fitting"):
            into["payload sources"] += r.counts.get("sources", 0)
            into["payload files lost"] += r.counts.get("files lost", 0)
        elif r.step == "shard":
            totals["in shards"] += r.counts["objects"]
            totals.update({k: v for k, v in r.counts.items() if k.startswith("present:")})
        elif r.step == "objects":
            for key, n in r.counts.items():
                kind, _, rest = key.partition(":")
                if kind == "split":
                    splits[rest] += n
                elif kind == "stratum":
                    strata[rest] += n
                elif kind == "status":
                    name, _, status = rest.partition(":")
                    statuses.setdefault(name, Counter())[status] += n
    held = bool(p.held_cells)
    for name, counts in by_survey.items():
        dropped_at_read = sum(v for k, v in counts.items() if k.startswith("dropped:") and k != "dropped:duplicate")
        sums = {"rows": counts["rows"], "kept": counts["kept"], "dropped": dropped_at_read}
        close(sums, "rows", "kept", "dropped", where=f"{name}: rows read")
        if not held:
            close(counts, "kept", "valid", "repeats", "dropped:duplicate", where=f"{name}: sources gathered")
            close(counts, "valid", "selected", "not selected:", where=f"{name}: selection")
            matched = "valid" if ctx.recipe.match.on == "valid" else "selected"
            close(counts, matched, "members", "anchored outside region", where=f"{name}: members of objects")
    for what, by_name in (("splits", splits), ("strata", strata)):
        close({"objects": totals["objects"], **by_name}, "objects", *by_name, where=what)
    close({"objects": totals["objects"], "in shards": totals["in shards"]}, "objects", "in shards", where="shards")
    for name, by_status in statuses.items():
        if "." in name:
            told = {"status present": by_status["present"], "tokens": totals[f"present:{name}"]}
            close(told, "status present", "tokens", where=f"tokens of {name}")
        close({"objects": totals["objects"], **by_status}, "objects", *by_status, where=f"status of {name}")
    return Report(
        {name: dict(counts) for name, counts in by_survey.items()},
        dict(splits),
        dict(strata),
        {name: dict(s) for name, s in statuses.items()},
        totals["objects"],
        totals["pairs"],
        totals["conflicts"],
        dict(Counter(r.step for r in p.receipts.values())),
        {k.removeprefix("links:"): n for k, n in totals.items() if n and k.startswith("links:")},
    )
