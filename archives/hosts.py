"""How hard each archive's host may be asked, and where its redirects may lead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class HostLimits:
    """What one host gets from one process: several processes together ask as many times as hard."""

    concurrency: int = 4
    "requests under way at once"
    requests_per_second: float = 4.0
    "on the average; as many as `concurrency` may go at once after a rest"
    redirects: tuple[str, ...] = ()
    "hosts that its redirects may lead to, beside itself; `host:port` where the port is not the scheme's own"
    tries: int = 6
    connect_s: float = 10.0
    read_s: float = 60.0
    "silence after which a connection is given up"
    deadline_s: float = 300.0
    "of one try, or its bytes over `deadline_bytes_per_second` where that is longer"
    deadline_bytes_per_second: float = 100e3
    least_bytes_per_second: float = 10e3
    "over each `rate_window_s`; a slower transfer is given up, and goes on where it was"
    rate_window_s: float = 60.0
    backoff_s: tuple[float, float] = (1.0, 120.0)
    "most wait before the second try, which triples with each further one, and what it ends at"
    retry_after_s: float = 3600.0
    "the longest wait that the host may ask for"
    breaker_failures: int = 10
    "failures in a row, whoever asked, after which it is left alone"
    breaker_s: float = 120.0
    "how long; then one request tries it again"

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_second", "tries", "connect_s", "read_s", "deadline_s"):
            if not getattr(self, name) > 0:
                raise ValueError(f"limits of a host: {name} is {getattr(self, name)!r}, wanted more than 0")


HOSTS: Mapping[str, HostLimits] = {
    # Legacy Surveys (legacysurvey.org/dr10/files). Two workers got some 550 small files an hour and 14 GiB an hour,
    # by public journals of downloads; bulk belongs to Globus.
    "portal.nersc.gov": HostLimits(),
    # Their viewer's cut-outs: for samples, not for bulk (legacysurvey.org/viewer).
    "www.legacysurvey.org": HostLimits(concurrency=2, requests_per_second=1.0, redirects=("legacysurvey.org",)),
    "legacysurvey.org": HostLimits(concurrency=2, requests_per_second=1.0, redirects=("www.legacysurvey.org",)),
    # DESI's public data (data.desi.lbl.gov/doc/access).
    "data.desi.lbl.gov": HostLimits(),
    # SDSS: HTTP is not throttled; who takes more than a terabyte is asked to write to the help desk first
    # (sdss.org/dr17/data_access/bulk).
    "data.sdss.org": HostLimits(),
    # SkyServer allows 60 queries a minute (skyserver.sdss.org, "SqlSearch"), not verified here: half of that.
    "skyserver.sdss.org": HostLimits(concurrency=1, requests_per_second=0.5),
    # Gaia's files (cdn.gea.esac.esa.int/Gaia) and its TAP service (gea.esac.esa.int/tap-server).
    "cdn.gea.esac.esa.int": HostLimits(),
    "gea.esac.esa.int": HostLimits(concurrency=2, requests_per_second=2.0),
    # HSC: one server for files, queries and cut-outs, behind an account (hsc-release.mtk.nao.ac.jp/doc).
    "hsc-release.mtk.nao.ac.jp": HostLimits(concurrency=2, requests_per_second=1.0),
    # Astro Data Lab's TAP service, for DESI's and the Legacy Surveys' tables (datalab.noirlab.edu/tap).
    "datalab.noirlab.edu": HostLimits(concurrency=2, requests_per_second=2.0),
}
"""Of the archives of the five surveys. No file's address is known to redirect to another host."""

MIRROR = HostLimits(concurrency=8, requests_per_second=10_000.0)
"""Of an archive's mirror on this very machine."""
