"""What a service's refusal means, whichever service it was."""

from __future__ import annotations

import re

from skycairn.archives.errors import Busy, FetchError, NotPublished, Refused

LATER = re.compile(r"time-?out|timed out|maximum \d+ queries|try again|later|too many|deadlock|busy", re.I)
"""What is said of a query that may work another time."""
WRONG = re.compile(r"syntax|invalid (column|object)|does not exist", re.I)
"""What is said of one that never will."""


def refusal(status: int, message: str) -> FetchError:
    """The error of an HTTP status other than 200, with what the service said."""
    if status in (401, 403):
        return Refused(message)
    if status in (404, 410):
        return NotPublished(message)
    if status in (408, 425, 429) or (status >= 500 and not WRONG.search(message)):
        return Busy(message)
    return FetchError(message)


def words(text: str) -> str:
    """The first words of a page or a message, without its markup."""
    plain = re.sub(r"<(script|style).*?</\1>|<[^>]*>", " ", text[:100_000], flags=re.S | re.I)
    return re.sub(r"\s+", " ", plain).strip()[:300]
