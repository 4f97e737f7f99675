"""Large frames go from process to process as sealed memory files: one descriptor over the socket instead of the bytes.

The file has no name, and is gone when the last who holds it lets go. It is sealed against writing, growing and
shrinking before it leaves, so the sender can't change it while the receiver reads. Reading and writing release the
GIL; a large one is done in a thread, so that the event loop goes on.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from swarm.channels import security
from swarm.channels.messages import MAX_BYTES
from swarm.errors import ChannelError

T = TypeVar("T")

REFERENCE_BYTES = 256 << 10
"""From here on by reference: a record of this size has the socket busy for about 0.1 ms."""
THREAD_BYTES = 512 << 10
"""From here on written and read in a thread: 1 MiB takes about 1 ms."""
AVAILABLE = hasattr(os, "memfd_create")
_BODY = struct.Struct("<QI32s")
"""Size of the frame, its CRC-32, the key that its parts are sealed with (zeros: they are not)."""
BODY_BYTES = _BODY.size
_PART_BYTES = 512 << 10
"""Sealed at once: the cipher keeps the GIL, and this takes it 0.3 ms."""
_NO_KEY = bytes(32)
_SEALS = 0x1 | 0x2 | 0x4 | 0x8
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE of Linux; other systems have no memory files."""


def write(frame: bytes, *, encrypt: bool = False) -> tuple[int, bytes]:
    """A sealed memory file with the frame, and the body of the record that goes with it.

    Raises
    ------
    ChannelError
        There is no memory, or no file descriptor, left for it.
    """
    try:
        fd = os.memfd_create("swarm-frame", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError as error:
        raise ChannelError(f"no memory file for a frame of {len(frame)} bytes ({error.strerror})") from None
    try:
        key = security.new_token() if encrypt else _NO_KEY
        view = memoryview(frame)
        cipher = security.aead()(key) if encrypt else None
        for number, at in enumerate(range(0, len(view), _PART_BYTES)):
            part = view[at : at + _PART_BYTES]
            if cipher is not None:
                part = memoryview(cipher.encrypt(number.to_bytes(12, "little"), part, None))
            while part:
                part = part[os.write(fd, part) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(fd)
        raise ChannelError(f"no memory for a frame of {len(frame)} bytes ({error.strerror})") from None
    except BaseException:
        os.close(fd)
        raise
    return fd, _BODY.pack(len(frame), zlib.crc32(view), key)


def check(fd: int, body: bytes, *, encrypted: bool) -> int:
    """Size of the frame; looks at what the kernel says of the file, and not yet into it.

    Raises
    ------
    ChannelError
        It is no sealed memory file, or of another size than the record says.
    """
    if len(body) != _BODY.size:
        raise ChannelError(f"a reference has {len(body)} bytes, must be {_BODY.size}")
    size, _, key = _BODY.unpack(body)
    if size > MAX_BYTES or (key != _NO_KEY) != encrypted:
        raise ChannelError(f"a reference to a frame of {size} bytes is not allowed, or not sealed as it must be")
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        seals = 0
    tags = security.TAG_BYTES * -(-size // _PART_BYTES) if encrypted else 0
    if seals & _SEALS != _SEALS or os.fstat(fd).st_size != size + tags:
        raise ChannelError(f"a reference to a frame of {size} bytes came with another file, or one not sealed")
    return int(size)


def read(fd: int, body: bytes) -> bytes:
    """The frame; closes the file.

    Raises
    ------
    ChannelError
        It is not what the sender wrote.
    """
    size, checksum, key = _BODY.unpack(body)
    try:
        if key == _NO_KEY:
            parts = [_read_part(fd, 0, size)]
        else:
            cipher = security.aead()(key)
            step = _PART_BYTES + security.TAG_BYTES
            parts = []
            for number in range(-(-size // _PART_BYTES)):
                sealed = _read_part(fd, number * step, step)
                try:
                    parts.append(cipher.decrypt(number.to_bytes(12, "little"), sealed, None))
                except Exception as error:
                    if type(error).__name__ not in ("InvalidTag", "ValueError"):
                        raise
                    break
    finally:
        os.close(fd)
    frame = parts[0] if len(parts) == 1 else b"".join(parts)
    if len(frame) != size or zlib.crc32(frame) != checksum:
        raise ChannelError(f"a frame of {size} bytes is not what its sender wrote")
    return frame


def _read_part(fd: int, at: int, size: int) -> bytes:
    """`size` bytes, fewer at the end of the file."""
    part = os.pread(fd, size, at)
    while 0 < len(part) < size:  # Linux reads at most 2 GiB at once, other systems what they like
        more = os.pread(fd, size - len(part), at + len(part))
        if not more:
            break
        part += more
    return part


async def in_thread(work: Callable[..., T], /, *given: object, **named: object) -> T:
    """Do the work in a thread. If whoever waits goes away, files that it opened are closed."""
    future = asyncio.get_running_loop().run_in_executor(None, partial(work, *given, **named))
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        future.add_done_callback(_drop_result)
        raise


def _drop_result(future: asyncio.Future[Any]) -> None:
    if not future.cancelled() and future.exception() is None:
        match future.result():
            case (int(fd), _):
                drop(fd)


def drop(*fds: int) -> None:
    """Close files that nobody wants."""
    for fd in fds:
        os.close(fd)
