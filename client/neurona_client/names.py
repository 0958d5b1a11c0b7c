"""What a target stands for: dns:///NAME:PORT for every address that the name has.

gRPC can look names up as well; but a stream stays with one of the addresses, and a client whose
calls share streams wants one to each.
"""

import socket
from typing import NamedTuple

PREFIX = "dns:"


class Place(NamedTuple):
    """Where a channel goes.  authority: the name that was asked for, which a certificate is for;
    empty where the target itself says it."""

    target: str
    authority: str = ""


def places(target: str) -> list[Place]:
    """Of a name that cannot be looked up now, the target itself: gRPC will say what is wrong.

    Raises ValueError for what no name can be.
    """
    if not target.startswith(PREFIX):
        return [Place(target)]
    authority, _, name = target.removeprefix(PREFIX).rpartition("/")
    host, _, port = name.rpartition(":")
    if authority.strip("/") or not host or not port.isdecimal():
        return [Place(target)]  # a name server of its own, or none of our syntax
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError:
        return [Place(target)]
    targets = []
    for family, _, _, _, address in found:
        numeric = str(address[0])
        if family == socket.AF_INET6:
            targets.append(f"ipv6:[{numeric}]:{port}")
        elif family == socket.AF_INET:
            targets.append(f"ipv4:{numeric}:{port}")
    return [Place(one, host) for one in dict.fromkeys(targets)] or [Place(target)]
