"""What can go wrong when a survey's file is asked for.

FetchError
  NotPublished        the archive has no such file (404, 410, or no file below the root): asking again is of no use
  ChecksumMismatch    the bytes are not those that the archive publishes, or are no such file at all
  Changed             the file is another than it was when this build began
  Busy                the archive answers too slowly, or not at all, or asks to come later: another try may do
    TimedOut          what was asked of a service is not done by the time that it was given: it had its tries
    Unreachable       no connection to the host can be made: its name does not resolve, or nothing answers there
  Refused             the archive wants an account, or another password (401, 403)
  Unsafe              the address, or where it leads to, is none that this survey may be fetched from
"""

from __future__ import annotations

import errno
import socket

NO_WAY = frozenset({errno.ECONNREFUSED, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN})
"""What the machine says where no connection is made at all."""


class FetchError(Exception):
    """A file of an archive could not be had."""


class NotPublished(FetchError):
    """The archive has no such file."""


class ChecksumMismatch(FetchError):
    """The bytes are not those that the archive publishes."""


class Changed(FetchError):
    """The file is another than it was when this build began."""


class Busy(FetchError):
    """The archive could not be reached, or gave up; another try may do."""


class TimedOut(Busy):
    """A service had not done what it was asked by the deadline of its own client: another build may try."""


class Unreachable(Busy):
    """No connection to a host that never answered: it is not asked any more by this build."""


class Refused(FetchError):
    """The archive wants an account, or another password."""


class Unsafe(FetchError):
    """The address, or where it leads to, is none that this survey may be fetched from."""


def never_connected(error: BaseException) -> OSError | None:
    """What led to the error, where that says that no connection was made: no address, no way, nobody there."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        if isinstance(at, socket.gaierror) or (isinstance(at, OSError) and at.errno in NO_WAY):
            return at
        at = at.__cause__ or at.__context__
    return None
