"""Which addresses may be asked: checked as they are written, and again as the numbers that are connected to."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Collection

import httpx

from skycairn.archives.errors import Unsafe

PORTS = {"http": 80, "https": 443}
LOOPBACK = "127.0.0.1"

Resolve = Callable[[str, int], list[str]]
"""Addresses of a host, as numbers; OSError where it has none."""


def address(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """The address, relative to `base` where that is given; Unsafe unless it is of http or https and bears no secret."""
    try:
        found = httpx.URL(url) if base is None else base.join(url)
        if "#" in str(found):
            found = found.copy_with(fragment=None)
    except (httpx.InvalidURL, ValueError):
        # the parser's own words may hold a password
        raise Unsafe("an address cannot be read; wanted https://host/path") from None
    if found.scheme not in PORTS or not found.host:
        raise Unsafe(f"an address of {found.scheme or 'no scheme'}:// is no archive's; wanted https://host/path")
    if found.userinfo:
        raise Unsafe(
            f"{shown(found)}: the address has a user name or password in it, which logs and errors would keep; take "
            "it out, and set up the account's credentials instead"
        )
    return found


def place(url: httpx.URL) -> str:
    """`host`, or `host:port` where the port is not the scheme's own."""
    host = url.raw_host.decode("ascii")
    return host if url.port in (None, PORTS.get(url.scheme)) else f"{host}:{url.port}"


def shown(url: httpx.URL) -> str:
    """The address as an error or a log may show it: without user, password, query."""
    path = url.raw_path.decode("ascii", "replace")
    path, asked, _ = path.partition("?")
    return f"{url.scheme}://{place(url)}{path}{'?...' if asked else ''}"


def check_allowed(url: httpx.URL, allowed: Collection[str]) -> None:
    """Unsafe unless the address is of one of these places."""
    if place(url) not in allowed:
        raise Unsafe(f"{shown(url)}: may not be asked; wanted one of {', '.join(sorted(allowed)) or 'no host at all'}")


def check_number(number: str, loopback: bool, host: str) -> None:
    """Unsafe unless this is an address of the public internet, or with `loopback` this very machine's 127.0.0.1."""
    ip = ipaddress.ip_address(number.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if loopback:
        if str(ip) != LOOPBACK:
            raise Unsafe(f"{host}: is at {number}; on loopback only {LOOPBACK} may be asked")
    elif not ip.is_global or ip.is_multicast:
        raise Unsafe(f"{host}: is at {number}, an address that is not of the public internet; no archive is there")


def resolve(host: str, port: int) -> list[str]:
    """Addresses of a host, as the machine's resolver tells them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[0]) for *_, where in found))
