"""A private temporary folder that outlives its owner at most until the next one is made."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "swarm-cluster-"


class PrivateFolder:
    """A folder with mode 0700, locked while its owner lives.

    The lock is `flock`, which the kernel gives back however the owner ends: so a new owner can tell the folders of
    those who were killed, and removes them. `distributed.diskutils.WorkSpace` does the same.

    Parameters
    ----------
    parent
        Where to make it; None for the system's temporary folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        import fcntl  # not on Windows, where nothing of this package runs

        parent = parent or Path(tempfile.gettempdir())
        parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(parent)
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        # Locked before it gets the name that others look for: no lock is ever seen free while its owner lives.
        new = self.path / "lock.new"
        self._lock = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        new.rename(self.path / "lock")

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)  # a process that was killed may have left files in use on NFS
        os.close(self._lock)

    def keep(self) -> None:
        """Leave the logs for a person to read; remove the rest."""
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.suffix != ".log":
                entry.unlink()
        os.close(self._lock)


def remove_abandoned(parent: Path) -> None:
    """Remove the folders whose owner has ended without removing them."""
    import fcntl

    for folder in parent.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            lock = os.open(folder / "lock", os.O_RDWR)
        except OSError:  # gone meanwhile; or it has no lock: being made, or kept on purpose
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # its owner lives
            pass
        finally:
            os.close(lock)
