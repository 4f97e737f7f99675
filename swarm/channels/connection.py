"""An open socket to another station, on the event loop: records and file descriptors go in and out."""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from swarm.channels.mailbox import Turns
from swarm.channels.security import TAG_BYTES, Keys
from swarm.channels.wire import HEADER, PRIORITIES, Header, Kind, Records
from swarm.errors import ChannelError

READ_BYTES = 1 << 16
MAX_FDS = 8
"""With one record: the rings, one per priority, and a bell."""
TURN_S = 0.001
"""For how long a link may hold the event loop before others have their turn."""
_CONTROL = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
_FLAGS = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
_BLOCKED = (BlockingIOError, InterruptedError)


class _Out(NamedTuple):
    kind: Kind
    priority: int
    sequence: int
    sent_ns: int
    body: bytes
    fds: tuple[int, ...]


class Connection:
    """Sends and receives records; tells its owner of each that comes, in order, and once when it ends.

    Parameters
    ----------
    sock
        Connected and not blocking; closed with the connection.
    keys
        Of the session, if records are sealed.
    is_caller
        Which end this is: each direction has keys of its own.
    on_record
        Takes header, body and the file descriptors that came with it, which it owns from then on.
    on_turn
        Called after each batch of records.
    on_closed
        Called once with the reason, unless `close` was called.
    """

    def __init__(
        self,
        sock: socket.socket,
        keys: Keys | None,
        *,
        is_caller: bool,
        on_record: Callable[[Header, bytes, Sequence[int]], None],
        on_turn: Callable[[], None],
        on_closed: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._sealer = keys.sealer("caller to host" if is_caller else "host to caller") if keys else None
        self._opener = keys.opener("host to caller" if is_caller else "caller to host") if keys else None
        self._on_record, self._on_turn, self._on_closed = on_record, on_turn, on_closed
        self._records = Records()
        self._came: Iterator[tuple[Header, bytes]] = iter(())
        self._fds: deque[int] = deque()
        self._first: deque[_Out] = deque()
        self._waiting: list[deque[_Out]] = [deque() for _ in range(PRIORITIES)]
        self._turns = Turns()
        self._rest: memoryview | None = None
        self._is_blocked = False
        self.is_closed = False
        self._loop.add_reader(self._fd, self._read)

    # -- out ------------------------------------------------------------------------------------------------------

    def send(
        self, kind: Kind, body: bytes, priority: int = 0, sequence: int = 0, sent_ns: int = 0, fds: tuple[int, ...] = ()
    ) -> None:
        """Send a record, or let it wait until the socket takes more; owns `fds` from now on.

        What is not a frame goes first; of frames, what `Turns` says.
        """
        if self.is_closed:
            _close_all(fds)
            return
        out = _Out(kind, priority, sequence, sent_ns, body, fds)
        if not self._is_blocked:
            self._write(out)
        elif kind in (Kind.FRAME, Kind.REFERENCE):
            self._waiting[priority].append(out)
        else:
            self._first.append(out)

    def _write(self, out: _Out) -> None:
        """Put a record on the socket; what does not fit waits."""
        sealer = self._sealer
        size = len(out.body)
        if sealer is None:
            header = HEADER.pack(size, out.kind, out.priority, 0, out.sequence, out.sent_ns)
            record = header + out.body
        else:
            epoch = sealer.current_epoch()
            header = HEADER.pack(size + TAG_BYTES, out.kind, out.priority, epoch, out.sequence, out.sent_ns)
            record = header + sealer.seal(header, out.body)
        try:
            if out.fds:
                fds = array.array("i", out.fds)
                sent = self._sock.sendmsg([record], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                _close_all(out.fds)
            else:
                sent = self._sock.send(record)
        except _BLOCKED:
            sent = 0
        except OSError as error:
            _close_all(out.fds)
            self._loop.call_soon(self._end, f"it can't be written to ({error.strerror})")
            self._block()
            return
        if sent == 0 and out.fds:  # the file descriptors must go with the first byte
            self._retry_with_fds(record, out.fds)
        elif sent < len(record):
            self._rest = memoryview(record)[sent:]
            self._block()

    def _retry_with_fds(self, record: bytes, fds: tuple[int, ...]) -> None:
        self._rest = memoryview(record)
        self._rest_fds = fds
        self._block()

    _rest_fds: tuple[int, ...] = ()

    def _block(self) -> None:
        if not self._is_blocked:
            self._is_blocked = True
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        until_s = time.monotonic() + TURN_S
        try:
            if self._rest is not None:
                if self._rest_fds:
                    fds = array.array("i", self._rest_fds)
                    sent = self._sock.sendmsg([self._rest], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                    _close_all(self._rest_fds)
                    self._rest_fds = ()
                else:
                    sent = self._sock.send(self._rest)
                self._rest = self._rest[sent:] if sent < len(self._rest) else None
        except _BLOCKED:
            return
        except OSError as error:
            self._end(f"it can't be written to ({error.strerror})")
            return
        while self._rest is None and not self.is_closed and time.monotonic() < until_s:
            out = self._next()
            if out is None:
                self._is_blocked = False
                self._loop.remove_writer(self._fd)
                return
            self._write(out)

    def _next(self) -> _Out | None:
        if self._first:
            return self._first.popleft()
        priority = self._turns.next_of([bool(waiting) for waiting in self._waiting])
        return None if priority is None else self._waiting[priority].popleft()

    # -- in -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(READ_BYTES, _CONTROL, _FLAGS)
        except _BLOCKED:
            return
        except OSError as error:
            self._end(f"it can't be read from ({error.strerror})")
            return
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > 4 * MAX_FDS:
            self._end("it sent more file descriptors than a record may have")
        elif not data:
            self._end("its other end was closed")
        else:
            self._came = self._records.feed(data)
            if not self._take():
                self._loop.remove_reader(self._fd)
                self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self.is_closed:
            if self._take():
                if not self.is_closed:
                    self._loop.add_reader(self._fd, self._read)
            else:
                self._loop.call_soon(self._go_on)

    def _take(self) -> bool:
        """Hand records over for at most `TURN_S`; False when there are more."""
        until_s = time.monotonic() + TURN_S
        all_taken = True
        try:
            for header, body in self._came:
                if self._opener is not None:
                    body = self._opener.open(HEADER.pack(*header), body, header.epoch)  # noqa: PLW2901 - the same body
                self._on_record(header, body, self._fds_of(header.kind))
                if self.is_closed:
                    return True
                if time.monotonic() > until_s:
                    all_taken = False
                    break
        except ChannelError as error:
            self._end(str(error))
            return True
        self._on_turn()
        return all_taken

    def _fds_of(self, kind: int) -> Sequence[int]:
        if kind == Kind.REFERENCE:
            wanted = 1
        elif kind == Kind.RINGS:
            wanted = PRIORITIES + 1
        else:
            return ()
        if len(self._fds) < wanted:
            raise ChannelError(f"a record came with {len(self._fds)} file descriptors, {wanted} belong to it")
        return [self._fds.popleft() for _ in range(wanted)]

    # -- the end --------------------------------------------------------------------------------------------------

    def _end(self, reason: str) -> None:
        if not self.is_closed:
            self.close()
            self._on_closed(reason)

    def close(self) -> None:
        """Close the socket. What the other end has not read yet, it can still read."""
        if self.is_closed:
            return
        self.is_closed = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        _close_all(self._fds)
        _close_all(self._rest_fds)
        for out in (*self._first, *(one for waiting in self._waiting for one in waiting)):
            _close_all(out.fds)


def _close_all(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
