"""Which of the agents of one kind acts for the host: who holds the lock of a file. The others stand by."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from swarm.errors import AgentError

NOTE_BYTES = 4096
"""Of the file: always written whole, by one call, so that a note is never half of one."""


class HostSeat:
    """A seat for one, kept by flock(2): the kernel frees it when its holder dies, however that happens.

    A child that was forked without exec keeps the lock as long as it lives; Dask starts its processes anew.

    Whoever holds it can leave a note in the file. A killed holder's note is there for the next.

    Parameters
    ----------
    path
        Of the file; the folder above must belong to us alone, and is made if need be. It should be in memory: a note
        must not outlive the host.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    @property
    def is_ours(self) -> bool:
        return self._fd is not None

    def take(self) -> bool:
        """True if we have the seat, from before or from now on.

        Raises
        ------
        AgentError
            The folder or the file is not ours, or is something else; says which.
        """
        while self._fd is None:
            fd = self._open()
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return False
            if self._is_named(fd):
                self._fd = fd
            else:  # its last holder left, and removed the file, between our open and our lock
                os.close(fd)
        return True

    def note(self, about: dict[str, Any]) -> None:
        """Leave a note for the next, of at most 4 kB as JSON; only with the seat."""
        assert self._fd is not None
        text = json.dumps(about).encode()
        if len(text) > NOTE_BYTES:
            raise ValueError(f"a note of {len(text)} bytes, at most {NOTE_BYTES} are kept")
        os.pwrite(self._fd, text.ljust(NOTE_BYTES), 0)

    def noted(self) -> dict[str, Any]:
        """The last note, also of a holder that was killed; empty if there is none, or it is garbage."""
        assert self._fd is not None
        try:
            found = json.loads(os.pread(self._fd, NOTE_BYTES, 0) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def leave(self) -> None:
        """Free the seat and remove the file, and the folder if it is empty then. Doing it twice does no harm."""
        fd, self._fd = self._fd, None
        if fd is None:
            return
        try:
            if self._is_named(fd):
                self.path.unlink()
            with suppress(OSError):  # others have files in it
                self.path.parent.rmdir()
        finally:
            os.close(fd)

    def _open(self) -> int:
        folder = self.path.parent
        try:
            with suppress(FileExistsError):
                folder.mkdir(mode=0o700)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise AgentError(f"{folder} must be a folder of ours with mode 0700; remove it, or chmod 700 it")
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise AgentError(f"{self.path} can't be opened: {error.strerror}; remove it") from error
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise AgentError(f"{self.path} is no file; remove it")
        return fd

    def _is_named(self, fd: int) -> bool:
        try:
            named = self.path.lstat()
        except FileNotFoundError:
            return False
        mine = os.fstat(fd)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)
