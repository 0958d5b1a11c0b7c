"""Checks of what the machine gives: CPUs, memory, open files, the cache folder, ports."""

import errno
import os
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from neurona_server.doctor.findings import Check, Finding, Mark, shorten
from neurona_server.doctor.settings import DoctorSettings

LEAST_MEMORY = 256 << 20
"""Bytes below which a server with a small model may be killed: it takes 100 MB itself."""

FEW_DESCRIPTORS = 4096
"""Open files and sockets below which connections of callers are limited more than by default."""

MAX_COMMAND = 60
"""Characters of a process's command that are shown."""

_LISTENING = "0A"  # a socket's state in /proc/net/tcp


def machine_checks(settings: DoctorSettings) -> list[tuple[str, Check]]:
    """Return the checks, with their subjects."""
    return [
        ("CPUs", _check_cpus),
        ("memory", _check_memory),
        ("open files", _check_descriptors),
        ("cache", lambda: _check_cache(settings.cache)),
        *(
            (name, lambda name=name, one=one: _check_address(name, one))
            for name, addresses in settings.addresses.items()
            for one in addresses.split(",")
        ),
    ]


def _check_cpus() -> Iterator[Finding]:
    from neurona_server.resources import available_cpus

    count, usable = os.cpu_count() or 1, available_cpus()
    text = f"{usable}, each run of a model has as many threads"
    if usable < count:
        text = f"{usable} of the machine's {count}, by affinity or quota; runs have as many threads"
    yield Finding("CPUs", Mark.OK, text)


def _check_memory() -> Iterator[Finding]:
    from neurona_server.resources import memory_limit

    limit, free = memory_limit(), _available_memory()
    text = "unknown limit" if limit is None else f"{_size(limit)} at most"
    if free is not None:
        text += f", {_size(free)} available on the machine"
    least = min(one for one in (limit, free, LEAST_MEMORY) if one is not None)
    if least < LEAST_MEMORY:
        advice = f"leave it {_size(LEAST_MEMORY)} and 1.5 times the files of the models"
        yield Finding("memory", Mark.NOTE, text, advice)
    else:
        yield Finding("memory", Mark.OK, text)


def _available_memory() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    match = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    return int(match[1]) << 10 if match else None


def _check_descriptors() -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    highest = "unlimited" if hard == unlimited else f"up to {hard}"
    text = f"{'unlimited' if soft == unlimited else soft}, which the server raises ({highest})"
    if hard != unlimited and hard < FEW_DESCRIPTORS:
        advice = "raise the hard limit (ulimit -Hn, LimitNOFILE=): it limits callers' connections"
        yield Finding("open files", Mark.NOTE, text, advice)
    else:
        yield Finding("open files", Mark.OK, text)


def _check_cache(option: str) -> Iterator[Finding]:
    from neurona_server.models.onnx.graph_cache import default_cache_folder, make_private_folder

    if option in ("", "off"):
        yield Finding("cache", Mark.OK, "off")
        return
    folder = default_cache_folder() if option == "auto" else Path(option).expanduser()
    advice = "set cache to a folder of the server's user, or to off"
    if folder is None:
        yield Finding("cache", Mark.NOTE, "none: this user has no home folder", advice)
        return
    slower = "starts are slower without it"
    if folder.exists():
        try:
            make_private_folder(folder)
        except OSError as error:
            text = f"{folder} is not used: {error.strerror or error}; {slower}"
            yield Finding("cache", Mark.NOTE, text, advice)
        else:
            yield Finding("cache", Mark.OK, f"{folder} is writable")
        return
    parent = next(one for one in folder.absolute().parents if one.exists())
    if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK):
        yield Finding("cache", Mark.OK, f"{folder} can be made")
    else:
        text = f"{folder} cannot be made: {parent} is not writable; {slower}"
        yield Finding("cache", Mark.NOTE, text, advice)


def _check_address(option: str, address: str) -> Iterator[Finding]:
    if not address:
        yield Finding(option, Mark.OK, "off")
    elif address.startswith("unix:"):
        folder = Path(address.removeprefix("unix:")).absolute().parent
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            yield Finding(option, Mark.OK, f"{address}: its folder is writable")
        else:
            text = f"{address}: {folder} is not a writable folder"
            yield Finding(option, Mark.FAULT, text, "make it, or name another one")
    else:
        yield _check_port(option, address)


def _check_port(option: str, address: str) -> Finding:
    host, _, port = address.rpartition(":")
    advice = f"set {option} to another HOST:PORT"
    try:
        resolved = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        return Finding(option, Mark.FAULT, f"{address}: unknown host ({error})", advice)
    family, kind, _, _, resolved_address = resolved[0]
    with socket.socket(family, kind) as probe:
        # As the server does: connections of an earlier one may be in TIME_WAIT.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(resolved_address)
            if int(port):
                probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return Finding(option, Mark.FAULT, f"{address}: {error.strerror}", advice)
        else:
            return Finding(option, Mark.OK, f"{address} is free")
    user, command = port_user(int(port))
    if "neurona-serve" in command or "neurona_server" in command:
        return Finding(option, Mark.NOTE, f"{address} is in use by {user}: a server runs already")
    text = f"{address} is in use" + (f" by {user}" if user else "")
    off = "" if option == "address" else ", or off"
    return Finding(option, Mark.FAULT, text, advice + off)


def port_user(port: int) -> tuple[str, str]:
    """Return the process that listens on a port of this machine, and its command.

    Both are "" if that cannot be said: Linux shows the files of this user's processes only, unless
    the user is root.
    """
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with suppress(OSError):
            if any(os.readlink(one) in inodes for one in (process / "fd").iterdir()):
                content = (process / "cmdline").read_bytes().replace(b"\0", b" ")
                command = shorten(content.decode(errors="replace"))
                return f"process {process.name} ({command[:MAX_COMMAND]})", command
    return "", ""


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
