"""Accounts that archives ask for, named in settings and never written: a name travels, its secret stays at home.

A secret is looked up where it is used: in the environment, then in netrc, then in the keyring. It is shown in no
representation, message, note or question.
"""

from __future__ import annotations

import base64
import html
import importlib
import json
import netrc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from skycairn.archives.errors import Refused

HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Account:
    """Where an account's secret may lie, and who gives such an account."""

    archive: str
    host: str
    "machine of netrc, and service of the keyring"
    user_variable: str
    password_variable: str
    sign_up: str


ACCOUNTS = {
    "hsc": Account(
        "the HSC-SSP data release",
        "hsc-release.mtk.nao.ac.jp",
        "SSP_PDR_USR",
        "SSP_PDR_PWD",
        "https://hsc-release.mtk.nao.ac.jp",
    )
}


class NoAccount(Refused):
    """There is no account of this name here."""


class Secret(str):
    """A text that is sent, and not shown: `repr`, `str`, `%` and f-strings hide it, as do logs and shown tracebacks.

    json, `encode` and `join` see the text itself.
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return HIDDEN

    __str__ = __repr__

    def __format__(self, how: str) -> str:
        return format(HIDDEN, how)

    def __getitem__(self, at: Any) -> Secret:
        return Secret(super().__getitem__(at))

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("a secret stays where it is: send the account's name, and look it up there")


class Credential:
    """Account and password under a name. Only the name is shown, and only the name travels: a copy that another
    process receives looks the rest up where it is. `Refused` there if it is not to be found.
    """

    __slots__ = ("__account", "__password", "name", "place")

    def __init__(self, name: str, account: str, password: str, place: str = "") -> None:
        self.name = name
        self.place = place
        "where it was found, in words"
        self.__account, self.__password = Secret(account), Secret(password)

    @property
    def account(self) -> Secret:
        """The account's own name at the archive."""
        return self.__account

    @property
    def password(self) -> Secret:
        """To be sent, and kept nowhere."""
        return self.__password

    def hide(self, text: str) -> str:
        """The text without the password, should an archive's reply repeat what it was sent."""
        plain = "".join(self.__password)
        sent = (json.dumps(plain)[1:-1], json.dumps(plain, ensure_ascii=False)[1:-1], repr(plain)[1:-1])
        escaped = (html.escape(plain), quote(plain, safe=""), quote_plus(plain))
        for spelt in sorted({plain, *sent, *escaped, _basic(self)}, key=len, reverse=True):
            text = text.replace(spelt, HIDDEN)
        return text

    def __repr__(self) -> str:
        return f"Credential({self.name!r})"

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[[str], Credential], tuple[str]]:
        return credential, (self.name,)

    def __copy__(self) -> Credential:
        return self

    def __deepcopy__(self, memo: Any) -> Credential:
        return self

    def __getstate__(self) -> str:
        return self.name


def credential(name: str) -> Credential:
    """Account and password of this name: of the environment, else of netrc, else of the keyring.

    An account's name in the environment without its password is the one that netrc and the keyring are asked for.
    `Refused` says how to set them, `NoAccount` where there is none at all; ValueError for a name that is none.
    """
    at = _account(name)
    user, password = (os.environ.get(v, "") for v in (at.user_variable, at.password_variable))
    if password and not user:
        raise Refused(f"{at.password_variable} is set and {at.user_variable} is not; {how_to_set(name)}")
    if user and password:
        return Credential(name, user, password, f"{at.user_variable} and {at.password_variable} of the environment")
    if (found := _of_netrc(at, user)) is not None:
        return Credential(name, *found, str(netrc_path()))
    if (found := _of_keyring(at, user)) is None:
        raise NoAccount(f"{at.archive} wants an account, and there is none here; {how_to_set(name)}")
    return Credential(name, *found, "the keyring")


def how_to_set(name: str) -> str:
    """What to do to have the account of this name used: three ways."""
    at = _account(name)
    return (
        f"get an account at {at.sign_up}, then either set {at.user_variable} and {at.password_variable} in the "
        f"environment of every process, or put the line `machine {at.host} login ACCOUNT password PASSWORD` into "
        f"{netrc_path()} and run `chmod 600 {netrc_path()}`, or run `keyring set {at.host} ACCOUNT` and set "
        f"{at.user_variable}"
    )


def basic_auth(of: Credential) -> Secret:
    """Value of the header `Authorization` for an archive that asks by HTTP Basic."""
    return Secret("Basic " + _basic(of))


def netrc_path() -> Path:
    """The netrc of this user: NETRC where that is set."""
    return Path(os.environ.get("NETRC") or Path.home() / ".netrc")


def _basic(of: Credential) -> str:
    return base64.b64encode(":".join((of.account, of.password)).encode()).decode("ascii")


def _account(name: str) -> Account:
    if name not in ACCOUNTS:
        raise ValueError(f"there is no account {name!r}; choose of {', '.join(ACCOUNTS)}")
    return ACCOUNTS[name]


def _of_netrc(at: Account, user: str) -> tuple[str, str] | None:
    path, line = netrc_path(), None
    try:
        known = path.stat()
        # only the machine's own entry: a `default` is another archive's password
        entry = netrc.netrc(path).hosts.get(at.host)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refused(
            f"{path}: cannot be read ({error.strerror}); mend it, or set the account in another way"
        ) from None
    except netrc.NetrcParseError as error:
        line = error.lineno
    except UnicodeError:
        line = 0
    if line is not None:
        # outside of the handler, since the parser's own words may hold a password
        where = f" at line {line}" if line else ""
        raise Refused(f"{path}: is not in the form of a netrc{where}; mend it, or move it away")
    if entry is None or not entry[0] or not entry[2] or (user and entry[0] != user):
        return None
    if os.name == "posix":
        if known.st_mode & 0o077:
            raise Refused(
                f"{path}: others can read it (mode {known.st_mode & 0o777:03o}), and it holds the password for "
                f"{at.host}; run `chmod 600 {path}`"
            )
        if known.st_uid not in (os.getuid(), 0):
            raise Refused(f"{path}: belongs to another user; have a netrc of your own with mode 600")
    return entry[0], entry[2]


def _of_keyring(at: Account, user: str) -> tuple[str, str] | None:
    """Some keyrings tell the account's name, others have to be told."""
    try:
        keyring = importlib.import_module("keyring")
        found = keyring.get_credential(at.host, user or None)
    except Exception:  # not installed, locked, or without a store: each has errors of its own
        return None
    if found is None or not found.username or not found.password:
        return None
    return found.username, found.password
