"""The flight recorder of a worker: what its nanny can still read when the process is dead.

A small file that the worker keeps mapped, in its own folder: the tasks that run, the last lines of its log, and a tick
of its event loop. What is written there survives the process however it ends, since it is the kernel's memory. Two
slots of the log are written in turn, each with a number and a checksum, so that a process that is killed while it
writes leaves the other one whole.
"""

from __future__ import annotations

import faulthandler
import logging
import mmap
import os
import struct
import time
import zlib
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tornado.ioloop import PeriodicCallback

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from dask.typing import Key

NAME = "swarm-black-box"
TICK_S = 0.25
"""Between two ticks of the event loop."""
SLOT_BYTES = 8192
RUNNING, KEY_BYTES = 64, 126
"""Tasks that run at a time of which the keys are kept, and how much of each."""
_MAGIC = b"SWBOX001"
_TICK = struct.Struct("<d")
_HEAD = struct.Struct("<QII")
"""Of a slot: its number, the length of its text and the CRC-32 of both."""
_PID = struct.Struct("<q")
_TICK_AT = len(_MAGIC)
_PID_AT = _TICK_AT + _TICK.size
_SLOTS_AT = 64
_RUNNING_AT = _SLOTS_AT + 2 * SLOT_BYTES
_KEY = struct.Struct("<H")
"""Before each key, its length; 0: nothing runs there."""
_ENTRY_BYTES = _KEY.size + KEY_BYTES
SIZE = _RUNNING_AT + RUNNING * _ENTRY_BYTES
_TEXT_BYTES = SLOT_BYTES - _HEAD.size
_LOGGERS = ("", "distributed")
"""Dask's own does not propagate to the root."""


class BlackBox(logging.Handler):
    """The worker's side: writes.

    Parameters
    ----------
    folder
        Where the file is made, with mode 0600; the worker's own, which goes with it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.path = Path(folder, NAME)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.ftruncate(handle, SIZE)
            self._map = mmap.mmap(handle, SIZE)
        finally:
            os.close(handle)
        self._map[: len(_MAGIC)] = _MAGIC
        self._map[_PID_AT : _PID_AT + _PID.size] = _PID.pack(os.getpid())
        self._lines: deque[bytes] = deque()
        self._nbytes = 0
        self._number = 0
        self._entries: dict[Key, int] = {}
        self._free = [_RUNNING_AT + number * _ENTRY_BYTES for number in reversed(range(RUNNING))]
        self._tick = PeriodicCallback(self._on_tick, TICK_S * 1000)
        self._faults = None if faulthandler.is_enabled() else self.path.with_suffix(".fault").open("wb", buffering=0)

    def start(self, earlier: Iterable[logging.LogRecord] = (), running: Iterable[Key] = ()) -> None:
        """Begin to tick and to listen, on the worker's event loop.

        Parameters
        ----------
        earlier
            What the worker has logged before.
        running
            The tasks that run already.
        """
        for record in earlier:
            if record.levelno >= self.level:
                self.handle(record)
        for key in running:
            self.began(key)
        for name in _LOGGERS:
            logging.getLogger(name).addHandler(self)
        if self._faults is not None:
            faulthandler.enable(self._faults)
        self._on_tick()
        self._tick.start()

    def close(self) -> None:
        self._tick.stop()
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        if self._faults is not None:
            faulthandler.disable()
            self._faults.close()
        with self.lock or _NO_LOCK:
            if not self._map.closed:
                self._map.close()
        super().close()

    def began(self, key: Key) -> None:
        """A task was given to a thread."""
        if self._free and not self._map.closed:
            self._entries[key] = at = self._free.pop()
            text = shown(key).encode()
            self._map[at + _KEY.size : at + _KEY.size + len(text)] = text
            self._map[at : at + _KEY.size] = _KEY.pack(len(text))

    def ended(self, key: Key) -> None:
        """A thread is done with it."""
        if (at := self._entries.pop(key, None)) is not None and not self._map.closed:
            self._map[at : at + _KEY.size] = _KEY.pack(0)
            self._free.append(at)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode(errors="replace")[-_TEXT_BYTES // 4 :]
        except Exception:  # noqa: BLE001 - a record that can't be formatted is its author's; logging reports it elsewhere
            self.handleError(record)
            return
        self._lines.append(line)
        self._nbytes += len(line) + 1
        while self._nbytes > _TEXT_BYTES:
            self._nbytes -= len(self._lines.popleft()) + 1
        self._write(b"\n".join(self._lines))

    def _write(self, text: bytes) -> None:
        if self._map.closed:
            return
        self._number += 1
        at = _SLOTS_AT + (self._number & 1) * SLOT_BYTES
        check = zlib.crc32(text, self._number & 0xFFFFFFFF)
        self._map[at + _HEAD.size : at + _HEAD.size + len(text)] = text
        self._map[at : at + _HEAD.size] = _HEAD.pack(self._number, len(text), check)

    def _on_tick(self) -> None:
        self._map[_TICK_AT : _TICK_AT + _TICK.size] = _TICK.pack(time.monotonic())


def shown(key: Key) -> str:
    """A key as it is kept."""
    return str(key).encode(errors="replace")[:KEY_BYTES].decode(errors="ignore")


class _NoLock:
    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass


_NO_LOCK = _NoLock()


class BlackBoxReader:
    """The nanny's side: reads, also after the file was unlinked.

    Raises
    ------
    OSError, ValueError
        There is no such file, or it is no black box.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        with Path(path).open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._map[: len(_MAGIC)] != _MAGIC or len(self._map) != SIZE:
            self._map.close()
            raise ValueError(f"{path} is no black box of this version of swarm")
        fault = Path(path).with_suffix(".fault")
        self._fault = fault.open("rb", buffering=0) if fault.exists() else None

    def close(self) -> None:
        self._map.close()
        if self._fault is not None:
            self._fault.close()

    @property
    def pid(self) -> int:
        """Of the process that writes."""
        return int(_PID.unpack_from(self._map, _PID_AT)[0])

    def tick_age_s(self, now_s: float) -> float:
        """Since the last turn of the event loop; `now_s` is `time.monotonic()`, which all processes of a host share."""
        (at_s,) = _TICK.unpack_from(self._map, _TICK_AT)
        return float(now_s - at_s)

    def running(self) -> list[str]:
        """Keys of the tasks that threads worked on, as `shown`."""
        keys = []
        for at in range(_RUNNING_AT, SIZE, _ENTRY_BYTES):
            (length,) = _KEY.unpack_from(self._map, at)
            if 0 < length <= KEY_BYTES:
                keys.append(self._map[at + _KEY.size : at + _KEY.size + length].decode(errors="ignore"))
        return keys

    def last_lines(self) -> list[str]:
        """Of the log, the newest last; none when nothing whole was written."""
        whole = []
        for at in (_SLOTS_AT, _SLOTS_AT + SLOT_BYTES):
            number, length, check = _HEAD.unpack_from(self._map, at)
            text = self._map[at + _HEAD.size : at + _HEAD.size + min(length, _TEXT_BYTES)]
            if number and zlib.crc32(text, number & 0xFFFFFFFF) == check:
                whole.append((number, text))
        return max(whole)[1].decode(errors="replace").splitlines() if whole else []

    def stacks(self) -> list[str]:
        """What Python's fault handler wrote as the process crashed: the stack of each thread; mostly nothing."""
        if self._fault is None:
            return []
        self._fault.seek(0)
        return self._fault.read(16_384).decode(errors="replace").splitlines()
