"""The table as a file in shared memory: open it safely, lock it, read it, change it, and tell who is still there.

Locks are those of open file descriptions (fcntl(2), F_OFD_SETLK): the kernel gives them back when their owner is gone,
however it ended, and closing another descriptor of the file does not drop them as it does with F_SETLK. One byte is
the lock of the table. And each member holds a byte of its own for as long as it lives, so the kernel itself says who
is dead: a zombie is, a process that was given the same pid is somebody else.

While the table is locked nothing is called that could wait, except to open it and to leave it. Nobody waits for the
lock for ever either: its holder may have been stopped (SIGSTOP).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swarm.errors import LedgerError
from swarm.ledger import table
from swarm.ledger.table import Budget, Slot

LOCK_TIMEOUT_S = 0.5
"""The table is held for some 10 µs, and for some 10 ms where Python gives the GIL to another thread meanwhile."""
PAUSE_S = 20e-6
_FLOCK = struct.Struct("hhqqi")
"""`struct flock` of a 64-bit Linux; l_pid must be 0."""
_TABLE_BYTE = table.SIZE_BYTES
_FIRST_MEMBER_BYTE = table.SIZE_BYTES + 1


def _lock_of(byte: int, kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0)


_LOCK, _UNLOCK = _lock_of(_TABLE_BYTE, fcntl.F_WRLCK), _lock_of(_TABLE_BYTE, fcntl.F_UNLCK)


class SharedTable:
    """The table of one budget, mapped into this process, which becomes a member of it.

    Parameters
    ----------
    folder, name
        Where the file is; both are made if need be, with modes 0700 and 0600, and must be ours.
    budget
        Written where the table is new, or where none of its members lives. Else it keeps what it has.

    Raises
    ------
    LedgerError
        The folder or the file is not ours, open to others, a link, no ledger, or of another version; or all slots are
        taken.
    """

    def __init__(self, folder: Path, name: str, budget: Budget) -> None:
        self.path = folder / name
        self._threads = threading.Lock()
        while True:
            self._fd = _open(folder, self.path)
            try:
                if self._join(budget):
                    return
            except BaseException:
                os.close(self._fd)
                raise
            os.close(self._fd)  # the last member left and removed the file between our open and our lock

    def _join(self, budget: Budget) -> bool:
        self._lock()
        try:
            file = os.fstat(self._fd)
            if not file.st_nlink:
                return False
            _check_file(self.path, file)
            if not file.st_size:
                # Not ftruncate: on a full file system the first write to the map would end the process (SIGBUS).
                os.posix_fallocate(self._fd, 0, table.SIZE_BYTES)
            elif file.st_size != table.SIZE_BYTES:
                raise LedgerError(f"{self.path} is no ledger; remove the file")
            self._map = mmap.mmap(self._fd, table.SIZE_BYTES)
            self._words = memoryview(self._map).cast("q")
            try:
                self._take_seat(budget)
            except BaseException:
                self._unmap()
                raise
        except OSError as error:
            raise LedgerError(f"the ledger {self.path} can't be made: {error.strerror}") from error
        else:
            return True
        finally:
            self._unlock()

    def _take_seat(self, budget: Budget) -> None:
        if not self._words[table.MAGIC_AT] and not any(self._words[: table.WORDS]):
            header = table.new_header(budget)
            self._words[1 : table.WORDS] = memoryview(struct.pack(f"={len(header) - 1}q", *header[1:])).cast("q")
            self._words[table.MAGIC_AT] = header[table.MAGIC_AT]
        table.check_header(self._words[: table.WORDS].tolist(), str(self.path))
        slots = self.slots()
        gone = self.gone(slots)
        for member in gone:
            self.free(table.belongings(slots, member))
        if set(table.members(slots)) == set(gone):  # all were killed: their limits go with them
            self._words[table.CORES_AT] = budget.cores
            self._words[table.MEMORY_AT] = budget.memory_bytes
            self._words[table.MILLIWATTS_AT] = budget.milliwatts
            self.limit(0, 0, 0)
        self.member = self._first_free()
        self._on_byte(self.member, fcntl.F_WRLCK)
        self.write(self.member, Slot(table.MEMBER, os.getpid(), _started(), self.member))

    # -- locks ------------------------------------------------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Have the table for oneself, against other processes and other threads. Raises `LedgerError`."""
        with self._threads:
            self._lock()
            try:
                yield
            finally:
                self._unlock()

    def _lock(self) -> None:
        deadline_s = 0.0
        while True:
            try:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _LOCK)
            except (BlockingIOError, PermissionError):
                now_s = time.monotonic()
                deadline_s = deadline_s or now_s + LOCK_TIMEOUT_S
                if now_s >= deadline_s:
                    raise LedgerError(
                        f"the ledger {self.path} was locked for {LOCK_TIMEOUT_S:g} s; is one of its processes stopped?"
                    ) from None
                time.sleep(PAUSE_S)
            else:
                return

    def _unlock(self) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _UNLOCK)

    def _on_byte(self, member: int, kind: int) -> None:
        fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _lock_of(_FIRST_MEMBER_BYTE + member, kind))

    def gone(self, slots: table.Table) -> list[int]:
        """Members whose process is dead. Takes no lock, but a system call for each member."""
        return [member for member in table.members(slots) if not self._is_there(member)]

    def _is_there(self, member: int) -> bool:
        if member == getattr(self, "member", None):
            return True
        asked = fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, _lock_of(_FIRST_MEMBER_BYTE + member, fcntl.F_WRLCK))
        return bool(_FLOCK.unpack(asked)[0] != fcntl.F_UNLCK)

    def reap(self, gone: list[int], before: table.Table) -> None:
        """Give back what dead members had. `before` is the table in which they were found dead."""
        with self.locked():
            slots = self.slots()
            for member in gone:
                if member in slots and slots[member] == before[member]:  # nobody else has reaped it and sits there now
                    self.free(table.belongings(slots, member))

    # -- what is in it ------------------------------------------------------------------------------------------------

    def budget(self, now_ns: int) -> Budget:
        """What may be granted, within a limit that holds at the time; at time `UNLIMITED` none does any more."""
        return table.budget_of(self._words, now_ns)

    def limit(self, cores: int, milliwatts: int, until_ns: int) -> None:
        """The last word makes it valid."""
        self._words[table.LIMITED_UNTIL_AT] = 0
        self._words[table.LIMIT_CORES_AT] = cores
        self._words[table.LIMIT_MILLIWATTS_AT] = milliwatts
        self._words[table.LIMITED_UNTIL_AT] = until_ns

    def slots(self) -> dict[int, Slot]:
        end = table.HEADER_BYTES + self._words[table.TOP_AT] * table.SLOT_BYTES
        return table.slots_of(self._map[table.HEADER_BYTES : end])

    def word(self, number: int, which: int) -> int:
        return self._words[table.WORDS * (number + 1) + which]

    def set_word(self, number: int, which: int, value: int) -> None:
        """One store of an aligned word: seen whole or not at all."""
        self._words[table.WORDS * (number + 1) + which] = value

    def write(self, number: int, slot: Slot) -> None:
        """All but the state, and then the state; the table must be locked."""
        at = table.HEADER_BYTES + number * table.SLOT_BYTES
        self._map[at + table.WORD_BYTES : at + table.SLOT_BYTES] = table.SLOT.pack(*slot)[table.WORD_BYTES :]
        if number >= self._words[table.TOP_AT]:
            self._words[table.TOP_AT] = number + 1
        self.set_word(number, table.STATE, slot.state)

    def add(self, slot: Slot) -> int:
        """Write into a free slot, with the next ticket; returns its number. The table must be locked."""
        number = self._first_free()
        ticket = self._words[table.TICKET_AT]
        self._words[table.TICKET_AT] = ticket + 1
        self.write(number, slot._replace(ticket=ticket))
        return number

    def free(self, numbers: list[int]) -> None:
        for number in numbers:
            self.set_word(number, table.STATE, table.FREE)

    def _first_free(self) -> int:
        return table.first_free(self.slots())

    # -- the end ------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """Give everything back; the last one removes the file, and the folder if nothing else is in it."""
        try:
            with self.locked():
                slots = self.slots()
                gone = self.gone(slots)
                for member in [*gone, self.member]:
                    self.free(table.belongings(slots, member))
                # Under the lock: who opens the file now sees, when it has the lock, that the file has no name any more.
                if set(table.members(slots)) <= {*gone, self.member} and self._has_its_name():
                    self.path.unlink()
                    with suppress(OSError):
                        self.path.parent.rmdir()
        except LedgerError:
            pass  # locked by somebody who is stopped: that our byte gets free gives everything back as well
        finally:
            self.forget()

    def forget(self) -> None:
        """Let go of the file without a change in it: what a child does that was forked with it open."""
        self._unmap()
        os.close(self._fd)

    def _has_its_name(self) -> bool:
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            return False
        mine = os.fstat(self._fd)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    def _unmap(self) -> None:
        self._words.release()
        self._map.close()


def is_dead(path: Path, *, remove: bool = False) -> bool:
    """Whether none of those who use the ledger at `path` lives, all of them killed; and remove it then, if asked to.

    Raises
    ------
    LedgerError
        It is no ledger, or not ours.
    """
    try:
        fd = os.open(path, (os.O_RDWR if remove else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LedgerError(f"the ledger {path} can't be opened: {error.strerror}") from error
    try:
        file = os.fstat(fd)
        _check_file(path, file)
        if file.st_size != table.SIZE_BYTES:
            raise LedgerError(f"{path} is no ledger")
        if remove:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _LOCK)  # who opens it meanwhile sees, once locked, that it has no name
        # One question for the table and all its members: a length of 0 reaches to the end.
        asked = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _TABLE_BYTE, 0, 0))
        nobody = bool(_FLOCK.unpack(asked)[0] == fcntl.F_UNLCK)
        if nobody and remove:
            path.unlink(missing_ok=True)
    except (BlockingIOError, PermissionError):
        return False
    else:
        return nobody
    finally:
        os.close(fd)


def _open(folder: Path, path: Path) -> int:
    while True:
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            _check_folder(folder)
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            if not folder.parent.is_dir():
                raise LedgerError(f"the ledger can't be made: there is no folder {folder.parent}") from None
            # the last member of another table removed the folder just now
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise LedgerError(f"{path} is a symbolic link, a ledger is not; remove it") from None
            raise LedgerError(f"the ledger {path} can't be opened: {error.strerror}") from error


def _check_folder(folder: Path) -> None:
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise LedgerError(f"{folder} is not a folder, the ledger needs one there; remove it")
    _check_owner(f"the folder {folder}", found, 0o700)


def _check_file(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise LedgerError(f"{path} is no ledger; remove it")
    _check_owner(f"the ledger {path}", found, 0o600)


def _check_owner(what: str, found: os.stat_result, mode: int) -> None:
    if found.st_uid != os.geteuid():
        raise LedgerError(f"{what} belongs to user {found.st_uid}, not to us ({os.geteuid()}); have it removed")
    if stat.S_IMODE(found.st_mode) & 0o077:
        is_now = f"{stat.S_IMODE(found.st_mode):04o}"
        raise LedgerError(f"{what} is open to others (mode {is_now}, must be {mode:04o}); chmod {mode:o} it")


def _started() -> int:
    """Of this process, in clock ticks since boot; the name in the parentheses may have spaces and parentheses."""
    fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[19])
