"""What a target says: its host and port, whether it is this machine, and whether a proxy applies.

gRPC sends every connection through the proxy of `http_proxy` or `https_proxy`, also one to the same
machine, reads `no_proxy` in lower case only, and compares it with the address of a name that was
resolved before. Here the rules of other HTTP clients decide.
"""

import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Iterator, Mapping

_UNIX_SCHEMES = ("unix:", "unix-abstract:", "vsock:")
_HOST_SCHEMES = ("dns:", "ipv4:", "ipv6:")
_NO_PROXY_VARIABLES = ("no_grpc_proxy", "no_proxy", "NO_PROXY")
_LOOPBACK_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def validate_target(target: str) -> None:
    """Check what gRPC would misread: it takes a URL for a host, and the port modulo 65536.

    Raises:
        ValueError: the target is neither HOST:PORT nor a target of gRPC.
    """
    if not target or target.startswith(("http:", "https:")):
        raise ValueError(f"invalid target {target!r} (expected HOST:PORT, or several)")
    if not target.isprintable():
        raise ValueError(f"invalid target {target!r} (expected printable characters)")
    port = split_target(target)[1]
    if port.isdecimal() and int(port) > 65535:
        raise ValueError(f"invalid target {target!r} (expected a port up to 65535)")


def split_target(target: str) -> tuple[str, str]:
    """Return host and port of a target, "" for what it has not; of several addresses the first."""
    if target.startswith(_UNIX_SCHEMES):
        return "", ""
    scheme = next((one for one in _HOST_SCHEMES if target.startswith(one)), "")
    rest = target.removeprefix(scheme).split(",")[0] if scheme else target
    rest = rest.rpartition("/")[2]  # without the name server
    if match := re.fullmatch(r"\[([^]]*)\](?::(.*))?", rest):
        return match[1], match[2] or ""
    if rest.count(":") > 1:  # an IPv6 address without brackets
        return rest, ""
    host, _, port = rest.partition(":")
    return host, port


def is_local(target: str) -> bool:
    """Whether data sent to the target certainly stays on this machine."""
    if target.startswith(_UNIX_SCHEMES):
        return not target.startswith("vsock:")
    if target.startswith("dns:") and target.removeprefix("dns:").lstrip("/").count("/"):
        return False  # a name server in the target may have any address for the name
    host = split_target(target)[0].lower()
    address = _parse_address(host)
    return host == "localhost" if address is None else address.is_loopback


def bypasses_proxy(
    target: str, name: str = "", environment: Mapping[str, str] = os.environ
) -> bool:
    """Whether connections to a target must not go through the proxy of the environment.

    Args:
        target: of gRPC.
        name: the name that was resolved to the address in `target`, if it was.
        environment: has `no_proxy` or `NO_PROXY`: hosts, domains, addresses or networks, separated
            by commas, or `*`.
    """
    if target.startswith(_UNIX_SCHEMES):
        return True
    host, port = split_target(target)
    hosts = [one.lower().rstrip(".") for one in (host, name) if one]
    if any(_is_loopback(one) for one in hosts):
        return True
    return any(
        _matches(entry, one, port) for entry in _no_proxy_entries(environment) for one in hosts
    )


def _no_proxy_entries(environment: Mapping[str, str]) -> Iterator[str]:
    for variable in _NO_PROXY_VARIABLES:
        yield from re.split(r"[,\s]+", environment.get(variable, "").strip().lower())


def _is_loopback(host: str) -> bool:
    address = _parse_address(host)
    if address is None:
        return host in _LOOPBACK_NAMES or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _matches(entry: str, host: str, port: str) -> bool:
    """Whether an entry of `no_proxy` is the host, a domain above it, or a network with it."""
    if entry in ("", "*"):
        return entry == "*"
    address = _parse_address(host)
    if address is not None:
        with contextlib.suppress(ValueError):
            return address in ipaddress.ip_network(entry.strip("[]"), strict=False)
    entry_host, entry_port = split_target(entry)
    if entry_port and entry_port != port:
        return False
    domain = entry_host.removeprefix("*").strip(".")
    if address is not None:
        return _parse_address(domain) == address
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _parse_address(host: str) -> IpAddress | None:
    """Parse an address, also in the short forms of IPv4 that resolvers accept; None: a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host)) if host[:1].isdecimal() else None
        except OSError:
            return None
    return getattr(address, "ipv4_mapped", None) or address
