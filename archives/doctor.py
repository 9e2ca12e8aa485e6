"""Whether the archives are as this code takes them to be: all checks, and what came of them, one by one.

Run it before the first build, and when an archive behaves otherwise than it did. It asks each archive for some dozen
small things; nothing is left behind at services, and no password is in what it says.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from skycairn.archives import filechecks, servicechecks
from skycairn.archives.check import Check, Differs, Doctor, Samples, Skip, Status
from skycairn.archives.credentials import ACCOUNTS, NoAccount, credential
from skycairn.archives.errors import Busy, FetchError, NotPublished, Refused
from skycairn.archives.hosts import HOSTS, MIRROR, HostLimits

__all__ = ["CHECKS", "LIMITS", "Check", "Doctor", "Finding", "Samples", "examine", "well"]

CHECKS: Mapping[str, tuple[Check, ...]] = {
    name: (*filechecks.CHECKS[name], *servicechecks.CHECKS[name])
    for name in ("legacysurvey", "hsc", "gaia", "desi", "sdss")
}
"""By survey, in the order in which they are made."""
MOST_WORDS = 600


def _brief(limits: HostLimits) -> HostLimits:
    return replace(
        limits, tries=2, deadline_s=60.0, read_s=30.0, rate_window_s=20.0, backoff_s=(1.0, 5.0), retry_after_s=30.0
    )


LIMITS: Mapping[str, HostLimits] = {**{host: _brief(at) for host, at in HOSTS.items()}, "127.0.0.1": _brief(MIRROR)}
"""As of a build, but what does not answer soon is given up."""


@dataclass(frozen=True)
class Finding:
    """What came of one check."""

    survey: str
    check: Check
    status: Status
    said: str


def well(findings: Iterable[Finding]) -> bool:
    """Whether all that was asked is as assumed."""
    return all(f.status in ("ok", "skipped") for f in findings)


def examine(
    doctor: Doctor, surveys: Sequence[str] = (), checks: Mapping[str, Sequence[Check]] = CHECKS
) -> Iterator[Finding]:
    """Make the checks of these surveys, or of all, and tell each as it ends. ValueError for a survey that has none."""
    for name in surveys:
        if name not in checks:
            raise ValueError(f"there are no checks of {name!r}; there are some of {', '.join(checks)}")
    silent: dict[str, str] = {}
    for name in surveys or checks:
        for check in checks[name]:
            if check.host in silent:
                yield Finding(name, check, "skipped", silent[check.host])
                continue
            status, said, why = _made(doctor, check)
            if why:
                silent[check.host] = why
            yield Finding(name, check, status, _told(said.replace(f"{doctor.folder}/", "")))


def _made(doctor: Doctor, check: Check) -> tuple[Status, str, str]:
    """Status, words, and why nothing more is to be asked of the host, if so."""
    try:
        return "ok", check.run(doctor), ""
    except NoAccount as error:
        return "skipped", str(error), "it wants an account (see above)"
    except Skip as error:
        return "skipped", str(error), ""
    except Refused as error:
        # asking on with a refused password may lock the account
        return "failed", str(error), f"{check.host} refused the account (see above), and is not asked again"
    except Differs as error:
        return "differs", str(error), ""
    except NotPublished as error:
        return "differs", f"{error}; it was assumed to be there", ""
    except ValueError as error:
        return "differs", str(error), ""
    except FetchError as error:
        gone = check.first and isinstance(error, Busy)
        return "failed", str(error), f"{check.host} does not answer (see above)" if gone else ""
    except Exception as error:  # what a client of some service lets through is no reason to ask nobody else
        return "failed", f"{type(error).__name__}: {error}", ""


def _told(said: str) -> str:
    """In one line, without any password, should a reply repeat what it was sent."""
    for name in ACCOUNTS:
        try:
            said = credential(name).hide(said)
        except Refused:
            continue
    line = " ".join(said.split())
    return line if len(line) <= MOST_WORDS else f"{line[:MOST_WORDS]}..."
