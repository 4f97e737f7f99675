"""Whether a port is free, and if not, who has it."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from pathlib import Path

import psutil

from swarm.errors import PortInUseError, ProcessError


def check_port_is_free(host: str, port: int, *, option: str) -> None:
    """Bind the port for a moment; 0 stands for any free port and is always free.

    Parameters
    ----------
    option
        The command line option that chooses this port, for the message.

    Raises
    ------
    PortInUseError
        Another process listens there.
    ProcessError
        The host is not an address of this machine, or the port needs privileges.
    """
    where = f"port {port} on {host}"
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(address[0], socket.SOCK_STREAM) as probe:
            # As Dask does: without it a port would look taken for a minute after its last user closed.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address[4])
            probe.listen(1)
    except socket.gaierror:
        raise ProcessError(f"host {host!r} has no address; use an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE and port:
            raise in_use(where, listener(port), option) from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise ProcessError(f"host {host} is not an address of this machine") from None
        if error.errno == errno.EACCES:
            raise ProcessError(f"{where} needs privileges; choose one above 1023 with {option}") from None
        raise


def in_use(where: str, owner: psutil.Process | None, option: str) -> PortInUseError:
    """The error for a port that is taken by `owner`."""
    who = "" if owner is None else f" (pid {owner.pid}, {_describe(owner)})"
    return PortInUseError(f"{where} is taken by another process{who}; stop it, or choose another with {option}")


def listener(port: int) -> psutil.Process | None:
    """The process that listens on a TCP port; None when the system does not tell us."""
    try:
        for found in psutil.net_connections(kind="tcp"):
            if (
                found.status == psutil.CONN_LISTEN
                and found.laddr
                and found.laddr.port == port
                and found.pid is not None
            ):
                return psutil.Process(found.pid)
    except psutil.Error:  # macOS shows other processes' sockets to root only
        return None
    return None


def _describe(process: psutil.Process) -> str:
    """`dask scheduler` rather than `python`, where the command line says so."""
    try:
        words, name = process.cmdline(), process.name()
    except psutil.Error:
        return "no longer there"
    for word, following in itertools.pairwise(words):
        program = Path(word).name
        if program in ("dask", "swarm"):
            return program if following.startswith("-") else f"{program} {following}"
    return name if process.pid != os.getpid() else f"{name}, this very process"
