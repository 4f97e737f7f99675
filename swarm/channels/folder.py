"""Where the sockets of stations are: a folder that is ours alone."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from swarm.errors import ChannelError

SUFFIX = ".sock"
_NEW = ".new"
ADDRESS_BYTES = 107
"""Of a Unix socket on Linux (unix(7): 108 with the zero at its end); 103 on others."""


def usual_folder() -> Path:
    """Where the stations of this user on this host are; neither made nor checked."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _is_ours(Path(runtime)):
        return Path(runtime) / "swarm"
    return Path(tempfile.gettempdir()) / f"swarm-{os.getuid()}"


def station_folder() -> Path:
    """`usual_folder`, made when it is not there.

    Raises
    ------
    ChannelError
        There is something else in its place.
    """
    return private_folder(usual_folder())


def private_folder(path: Path) -> Path:
    """`path`, as a folder with mode 0700 that is ours.

    Raises
    ------
    ChannelError
        It is a link, a file, of another user, or open to others.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ChannelError(f"folder {path} for channels can't be made ({error.strerror})") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ChannelError(
            f"{path} is not safe for channels: must be a folder, no link, ours, with mode 0700 "
            f"(is {stat.filemode(found.st_mode)} of user {found.st_uid}); remove it, or set XDG_RUNTIME_DIR"
        )
    return path


def _is_ours(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


@contextlib.contextmanager
def address(path: Path) -> Iterator[str]:
    """What to bind or connect to for a socket at `path`, however long that is.

    Raises
    ------
    ChannelError
        The path is too long for this system.
    """
    if len(os.fsencode(path)) <= ADDRESS_BYTES:
        yield str(path)
        return
    try:
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except AttributeError:
        raise ChannelError(f"{path} is too long for a socket (at most {ADDRESS_BYTES} bytes); set TMPDIR") from None
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def listen(path: Path) -> socket.socket:
    """A socket that listens at `path` with mode 0600; it is not there before it listens.

    Raises
    ------
    ChannelError
        It can't be made.
    """
    new = path.with_suffix(_NEW)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with address(new) as where:
            sock.bind(where)
        new.chmod(0o600)
        sock.listen(128)
        new.rename(path)
    except OSError as error:
        sock.close()
        new.unlink(missing_ok=True)
        raise ChannelError(f"no station can listen at {path} ({error.strerror})") from None
    return sock


def is_dead(path: Path) -> bool:
    """Whether nobody listens at `path` any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, address(path) as where:
        sock.setblocking(False)
        return sock.connect_ex(where) in (errno.ECONNREFUSED, errno.ENOENT)


def remove_dead(folder: Path, but: Path) -> list[str]:
    """Remove the sockets of stations that have ended, `but` one's own; returns their names."""
    removed = []
    for path in folder.glob(f"*{SUFFIX}"):
        if path != but and is_dead(path):
            with contextlib.suppress(FileNotFoundError):  # another station was faster
                path.unlink()
                removed.append(path.stem)
    return removed
