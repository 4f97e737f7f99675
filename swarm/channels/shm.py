"""Shared memory without a name: memfd segments, sealed and mapped, and the processes that claim them.

A segment lives as long as a descriptor or a mapping of it does, so the kernel takes it back whatever dies.
It is passed on over a Unix socket (SCM_RIGHTS). The seals forbid to shrink it: no peer can make us fault.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from swarm.channels.layout import HEADER_BYTES, check_header, claim, claimed_by, first_header
from swarm.errors import ChannelError

NAME = "swarm-ring"
"""What /proc shows; it names nothing that could be opened."""

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
NO_EXECUTION = 0x0008  # MFD_NOEXEC_SEAL of Linux 6.3, which older ones refuse and newer ones ask for in their log
MAP_FIXED, MAP_NORESERVE = 0x10, 0x4000  # include/uapi/asm-generic/mman-common.h
MAP_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def create(capacity: int) -> int:
    """A descriptor of new shared memory for a ring of this capacity, sealed; ChannelError when there is none."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        try:
            fd = os.memfd_create(NAME, flags | NO_EXECUTION)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fd = os.memfd_create(NAME, flags)
    except OSError as error:
        raise ChannelError(f"no shared memory for a ring: {error.strerror}") from error
    try:
        os.ftruncate(fd, HEADER_BYTES + capacity)
        os.pwrite(fd, first_header(capacity), 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    except OSError as error:
        os.close(fd)
        raise ChannelError(f"no shared memory for a ring of {capacity} bytes: {error.strerror}") from error
    return fd


def capacity_of(fd: int) -> int:
    """The capacity of the ring behind a descriptor; ChannelError when it is none that can be trusted."""
    if fd < 0:
        raise ChannelError(f"descriptor {fd} is not open")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise ChannelError(f"descriptor {fd} is not open") from error
        raise ChannelError(f"descriptor {fd} is no ring: it is not shared memory that can be sealed") from error
    if seals & SEALS != SEALS:
        raise ChannelError(f"the shared memory behind descriptor {fd} is not sealed: its owner could take it away")
    try:
        return check_header(os.pread(fd, 64, 0), os.fstat(fd).st_size)
    except OSError as error:
        raise ChannelError(f"descriptor {fd} can't be read: {error.strerror}") from error


def map_twice(fd: int, capacity: int) -> int:
    """The address of header, payload and payload again; ChannelError when there is no room."""
    whole = HEADER_BYTES + 2 * capacity
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    base = _map(None, whole, mmap.PROT_NONE if hasattr(mmap, "PROT_NONE") else 0, flags, -1, 0)
    try:
        both = mmap.PROT_READ | mmap.PROT_WRITE
        _map(base, HEADER_BYTES + capacity, both, mmap.MAP_SHARED | MAP_FIXED, fd, 0)
        _map(base + HEADER_BYTES + capacity, capacity, both, mmap.MAP_SHARED | MAP_FIXED, fd, HEADER_BYTES)
    except ChannelError:
        unmap(base, capacity)
        raise
    return base


def unmap(base: int, capacity: int) -> None:
    _libc.munmap(base, HEADER_BYTES + 2 * capacity)


def _map(at: int | None, length: int, protection: int, flags: int, fd: int, offset: int) -> int:
    address = _libc.mmap(at, length, protection, flags, fd, offset)
    if address is None or address == MAP_FAILED:
        raise ChannelError(f"no room to map {length} bytes of a ring: {os.strerror(ctypes.get_errno())}")
    return int(address)


@dataclass(frozen=True, slots=True)
class Segment:
    """Shared memory of ours that a process holds open."""

    fd: int
    size_bytes: int
    inode: int
    """The same for all who hold it."""


def held_by(pid: int) -> list[Segment]:
    """The rings that a process of this user holds open; empty when it has ended or may not be looked at."""
    found = []
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                if str(entry.readlink()).startswith(f"/memfd:{NAME}"):
                    status = entry.stat()
                    found.append(Segment(int(entry.name), status.st_size, status.st_ino))
            except FileNotFoundError:  # closed while we looked
                continue
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return []
    return sorted(found, key=lambda segment: segment.fd)


def own_claim() -> int:
    """The word by which this process claims an end of a ring."""
    pid = os.getpid()
    return claim(pid, _started_ticks(pid) or 0)


def own_pid_namespace() -> int:
    """A number of the set of processes in which our PID means us; another container may have another."""
    return Path("/proc/self/ns/pid").stat().st_ino


def lives(word: int) -> bool:
    """Whether the process of a claim still lives, in our own PID namespace; a zombie does not."""
    pid, started_ticks = claimed_by(word)
    return _started_ticks(pid) == started_ticks


def _started_ticks(pid: int) -> int | None:
    """When a process started, in ticks since boot; None when it has ended, its remains not buried yet included."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = status[status.rindex(b")") + 2 :].split()  # the name of the program may contain anything
    return None if state in b"ZX" else int(fields[18])
