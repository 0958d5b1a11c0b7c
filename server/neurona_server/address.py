"""Addresses to listen on: HOST:PORT, [IPV6]:PORT or unix:PATH.

The file is alone because the options and the transports, which do not know each other, need it.
"""

import ipaddress

UNIX = "unix:"


def check_address(address: str, *, unix: bool = True) -> str:
    """Return the address; raise ValueError if it is invalid."""
    if unix and address.startswith(UNIX) and address != UNIX:
        return address
    host, colon, port = address.rpartition(":")
    if colon and host and port.isascii() and port.isdecimal() and int(port) <= 65535:
        if ":" not in host and not host.startswith("["):
            return address
        if host.startswith("[") and host.endswith("]") and _ip(host) is not None:
            return address
    expected = "expected HOST:PORT or [IPV6]:PORT" + (" or unix:PATH" if unix else "")
    raise ValueError(expected)


def is_local(address: str) -> bool:
    """Return whether only this machine can connect to the address."""
    if address.startswith(UNIX):
        return True
    host = address.rpartition(":")[0]
    ip = _ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None
