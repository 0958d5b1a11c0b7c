"""The hosts under whose names the metrics port answers.

A browser sends the host of a web page's address. If that page's owner lets its name resolve to the
address of this server (DNS rebinding), the browser of an operator would let the page read what the
server answers. So names that may belong to others are rejected: no web page has an IP address as
its name, a name without dots, or one of the domains that are reserved for private use. The file is
alone because the rule has nothing to do with how HTTP is spoken.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable

PRIVATE_DOMAINS = (".localhost", ".local", ".internal", ".svc", ".home.arpa")
"""Domains that nobody can register: of the machine, of a local network, of a cluster."""

ANY = "*"

_HOST = re.compile(r"(?P<name>[A-Za-z0-9_.-]+|\[[^\[\]]+\])(?::[0-9]*)?")


class AllowedHosts:
    """The hosts for which requests are answered."""

    def __init__(self, address: str, names: Iterable[str] = ()) -> None:
        """Allow some names besides those that are always allowed.

        Args:
            address: The host in the server's own address.
            names: Further names, in lower case; "*" allows every host.
        """
        own = {address.lower().rstrip("."), socket.gethostname().lower()}
        self._names = frozenset({*own, *names})

    def allows(self, host: str) -> bool:
        """Return whether to answer a request for `host`, a name or IP address and maybe a port.

        Every browser sends a host, so requests without one ("") are answered.
        """
        if not host or ANY in self._names:
            return True
        match = _HOST.fullmatch(host)
        if match is None:
            return False
        name = match["name"].lower().rstrip(".")
        return (
            _is_ip(name) or "." not in name or name in self._names or name.endswith(PRIVATE_DOMAINS)
        )


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
