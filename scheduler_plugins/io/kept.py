"""Files that are kept from run to run: for their owner only, replaced as a whole, put aside when they make no sense.

Every function is for a thread beside the event loop.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from swarm.errors import ModelsError

KEPT_ASIDE = 3
"""Files that were put aside and are kept for a person to look at."""


def opened(path: Path) -> BinaryIO:
    """For reading. No link is followed, and no pipe is waited for.

    Raises
    ------
    ValueError
        It is not a file.
    OSError
        There is none, or it is not ours to read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError("it is not a file")
    return os.fdopen(descriptor, "rb")


def put_aside(path: Path, reason: Exception, instead: str) -> ModelsError:
    """Rename a file that is of no use. Returns what to tell: the reason, what is done `instead`, and where it is."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns():020d}")
    where = f"it was kept as {aside.name}"
    try:
        path.rename(aside)
        for surplus in sorted(path.parent.glob(f"{path.name}.damaged-*"))[:-KEPT_ASIDE]:
            surplus.unlink()
    except OSError as error:
        where = f"it stays where it is ({error})"
    return ModelsError(f"{path}: {reason}; {instead}, {where}")


@contextmanager
def replacing(path: Path, what: str) -> Iterator[BinaryIO]:
    """Write a file anew, all of it or not at all: after a crash the old one is there, or the new one.

    Raises
    ------
    ModelsError
        Anybody may write to the folder, so that `what` is not safe there.
    OSError
        The disk is full, the folder is not ours.
    """
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & stat.S_IWOTH:
        what_to_do = f"chmod o-w {folder}"
        raise ModelsError(f"{folder} may be written to by everybody, {what} are not safe there: {what_to_do}")
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
        _sync(folder)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


def _sync(folder: Path) -> None:
    """A rename is on the disk when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
