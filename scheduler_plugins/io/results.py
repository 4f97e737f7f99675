"""The result store: graphs and finished results of durable runs, in files that outlive every process.

One folder for each run, one file for each key, named by a digest of the key. A file is complete and as it was written,
or it is not used: it carries its format version, its key, its length and a checksum over all of that. The checksum is
there against accidents. It is no signature: what the store holds is unpickled, so whoever can write to it can run code
as you. Folders and files are made for their owner alone, and a folder that others may write to is refused.

Every function blocks, and is for a thread beside the event loop.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import struct
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote

from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist

from swarm.errors import DamagedResultError, ResultStoreError

MAGIC = b"SWARMRES"
VERSION = 1
"""Of the format. A file of another version is not read: its result is computed again."""
_HEADER = struct.Struct("<8sHBxIQ")
"""Magic, version, kind, length of the key, length of the payload. The checksum follows, then key and payload."""
_CHECKSUM_BYTES = 16
_KINDS = {"result": 1, "graph": 2}
Kind = Literal["result", "graph"]

GRAPHS = "graph-"
"""Beginning of the names of files with graphs; those of results are hexadecimal."""
_NEW = ".new-"
"""Beginning of the names of files that are being written."""
ABANDONED_S = 3600.0
"""Age after which a file that is being written belongs to nobody any more."""

Buffer = bytes | bytearray | memoryview


def name_of(key: Any) -> str:
    """The name of the file of a key; equal keys have equal names in every process.

    >>> name_of(("x", 1)) == name_of(("x", 1.0)) != name_of(("x", "1"))
    True
    """
    return hashlib.blake2b(_text(key).encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def _text(key: Any) -> str:
    """Of a key as Dask allows them: str, bytes, int, float or a tuple of these. Equal keys have equal texts."""
    if isinstance(key, tuple):
        return f"({','.join(map(_text, key))},)"
    if isinstance(key, float) and key.is_integer():
        return repr(int(key))
    if isinstance(key, str | bytes):
        return repr(key)
    return repr(int(key)) if isinstance(key, int) else repr(float(key))


@dataclass(frozen=True, slots=True)
class Written:
    """What it took to store something."""

    size_bytes: int
    took_s: float


@dataclass(frozen=True, slots=True)
class StoredRun:
    """What the store holds of a run."""

    run: str
    size_bytes: int
    changed_at_s: float
    """Unix time."""


def _place(run: str) -> str:
    """The name of the folder of a run, whatever its name is.

    >>> _place("heat-1-0af3c4"), _place("../a b")
    ('heat-1-0af3c4', '%2E.%2Fa%20b')
    """
    quoted = quote(run, safe="")
    return f"%2E{quoted[1:]}" if quoted.startswith(".") else quoted


def pack(kind: Kind, key: Any, payload: Sequence[Buffer]) -> list[Buffer]:
    """The buffers of a file, in order."""
    named = _text(key).encode("utf-8", "surrogatepass")
    views = [memoryview(part).cast("B") for part in payload]
    header = _HEADER.pack(MAGIC, VERSION, _KINDS[kind], len(named), sum(view.nbytes for view in views))
    return [header, _checksum([header, named, *views]), named, *views]


def unpack(kind: Kind, key: Any, content: Buffer, where: str) -> memoryview:
    """The payload of a file.

    Raises
    ------
    DamagedResultError
        It is not, byte for byte, what `pack` made of that key.
    """
    view = memoryview(content).cast("B")
    start = _HEADER.size + _CHECKSUM_BYTES
    if len(view) < start:
        raise DamagedResultError(f"{where} is cut off: it has {len(view)} bytes, and its header alone {start}")
    magic, version, number, key_length, length = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise DamagedResultError(f"{where} is no file of a result store")
    if version != VERSION:
        raise DamagedResultError(f"{where} has format version {version}, this swarm knows {VERSION}")
    if len(view) != start + key_length + length:
        raise DamagedResultError(f"{where} has {len(view)} bytes, must have {start + key_length + length}")
    if _checksum([view[: _HEADER.size], view[start:]]) != view[_HEADER.size : start]:
        raise DamagedResultError(f"{where} is damaged: its checksum differs")
    named = _text(key).encode("utf-8", "surrogatepass")
    if number != _KINDS[kind] or view[start : start + key_length] != named:
        raise DamagedResultError(f"{where} holds something else than the {kind} of {key!r}")
    return view[start + key_length :]


def _checksum(parts: Sequence[Buffer]) -> bytes:
    total = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    for part in parts:
        total.update(part)
    return total.digest()


class ResultStore:
    """Reads and writes files of runs below a folder, or below any URL that fsspec knows.

    On a local file system a file is written beside its place, synchronised and renamed, and then its folder is
    synchronised; other stores (S3 and the like) show an object when it is complete.

    Parameters
    ----------
    url
        A path, `file:///…` or `s3://bucket/folder`. What is missing is made with the first file.

    Raises
    ------
    ResultStoreError
        No file system is known for the URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            from fsspec.core import url_to_fs

            fs, root = url_to_fs(url)  # which knows `~`
        except (ImportError, ValueError, OSError) as error:
            raise ResultStoreError(
                f"result_store {url!r} can't be used ({error}); give a path, or install it"
            ) from None
        self._folder: _Folder | _Objects
        is_local = "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
        if is_local:
            self.url = root  # from the root on, for processes that run elsewhere
        self._folder = _Folder(Path(root)) if is_local else _Objects(fs, root)

    def __repr__(self) -> str:
        return f"<ResultStore at {self.url}>"

    def write(self, run: str, key: Any, value: Any) -> Written:
        """Store a result.

        Raises
        ------
        ResultStoreError
            The store is full, gone, or not safe.
        TypeError, ValueError, pickle.PicklingError
            The value can't be serialised.
        """
        began_s = time.perf_counter()
        payload = serialize_bytelist(value, on_error="raise")  # as Dask writes what it spills
        return self._write(run, name_of(key), pack("result", key, payload), began_s)

    def read(self, run: str, key: Any) -> Any:
        """A result, as it was.

        Raises
        ------
        DamagedResultError
            It was stored, and is not what was stored.
        FileNotFoundError
            It was never stored.
        ResultStoreError
            The store is gone, or not safe.
        """
        name = name_of(key)
        at = _place(run)
        where = self._folder.where(at, name)
        content = self._asked(lambda: self._folder.read(at, name))
        payload = unpack("result", key, content, where)
        try:
            return deserialize_bytes(payload)
        except Exception as error:  # the bytes are those that were written; Dask, or a class, has changed since
            raise DamagedResultError(f"{where} can't be read by this version of its type ({error!r})") from error

    def write_graph(self, run: str, number: int, content: bytes) -> Written:
        """Store a graph, the `number`th of a run; raises as `write`."""
        began_s = time.perf_counter()
        return self._write(run, f"{GRAPHS}{number:06d}", pack("graph", (run, number), [content]), began_s)

    def read_graphs(self, run: str) -> list[bytes]:
        """All graphs of a run, in order; raises as `read`."""
        at = _place(run)
        names = sorted(name for name in self.names(run) if name.startswith(GRAPHS))
        if not names:
            raise FileNotFoundError(errno.ENOENT, "no graph is stored", self._folder.where(at, GRAPHS))
        return [
            bytes(unpack("graph", (run, int(name.removeprefix(GRAPHS))), content, self._folder.where(at, name)))
            for name in names
            for content in [self._asked(lambda name=name: self._folder.read(at, name))]
        ]

    def names(self, run: str) -> dict[str, int]:
        """Name → size in bytes of all files of a run that are complete; empty when there are none."""
        try:
            found: dict[str, int] = self._asked(lambda: self._folder.names(_place(run)))
        except FileNotFoundError:
            return {}
        return found

    def put_aside(self, run: str, key: Any) -> None:
        """Take a damaged file out of the way; the name tells a person what it was."""
        with contextlib.suppress(FileNotFoundError):
            self._asked(lambda: self._folder.put_aside(_place(run), name_of(key)))

    def runs(self) -> list[StoredRun]:
        """All runs of which something is stored, those that changed longest ago first."""
        try:
            found: list[StoredRun] = self._asked(self._folder.runs)
        except FileNotFoundError:
            return []
        found = [StoredRun(unquote(each.run), each.size_bytes, each.changed_at_s) for each in found]
        return sorted(found, key=lambda stored: (stored.changed_at_s, stored.run))

    def remove(self, run: str) -> None:
        """Remove all of a run."""
        with contextlib.suppress(FileNotFoundError):
            self._asked(lambda: self._folder.remove(_place(run)))

    def make_room(self, quota_bytes: float, keep: Collection[str]) -> tuple[list[str], int]:
        """Remove the runs that changed longest ago, but none of `keep`, until the quota is held.

        Returns the runs that were removed, and the bytes that are left.
        """
        stored = self.runs()
        left = sum(each.size_bytes for each in stored)
        removed = []
        for each in stored:
            if left <= quota_bytes:
                break
            if each.run not in keep:
                self.remove(each.run)
                removed.append(each.run)
                left -= each.size_bytes
        return removed, left

    def _write(self, run: str, name: str, parts: Sequence[Buffer], began_s: float) -> Written:
        self._asked(lambda: self._folder.write(_place(run), name, parts))
        size = sum(memoryview(part).nbytes for part in parts)
        return Written(size, time.perf_counter() - began_s)

    def _asked(self, do: Any) -> Any:
        try:
            return do()
        except FileNotFoundError:
            raise
        except OSError as error:
            from scheduler_plugins.io.journal import why

            raise ResultStoreError(f"{self.url} fails ({why(error)})") from error


class _Folder:
    """Runs in a folder of a local file system, or of one that behaves like that (NFS)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def where(self, run: str, name: str) -> str:
        return str(self._root / run / name)

    def write(self, run: str, name: str, parts: Sequence[Buffer]) -> None:
        folder = self._root / run
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        with _opened(self._root), _opened(folder) as at:
            new = f"{_NEW}{secrets.token_hex(8)}"
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
            try:
                try:
                    for part in parts:
                        _write_all(file, part)
                    os.fsync(file)
                finally:
                    os.close(file)
                os.rename(new, name, src_dir_fd=at, dst_dir_fd=at)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(new, dir_fd=at)
                raise
            os.fsync(at)  # a rename is on the disk when its folder is

    def read(self, run: str, name: str) -> bytearray:
        with _opened(self._root), _opened(self._root / run) as at:
            # A pipe in its place is not waited for, and a link is not followed.
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=at)
            try:
                found = os.fstat(file)
                _check_owner(found, f"{self._root / run / name}")
                if not stat.S_ISREG(found.st_mode):
                    raise OSError(errno.EINVAL, "it is not a file")
                # Mutable, for arrays that share this memory are to be writable as the original was.
                content = bytearray(found.st_size)
                view, got = memoryview(content), 0
                while got < len(content) and (count := os.readv(file, [view[got:]])):
                    got += count
                view.release()
                del content[got:]
                return content
            finally:
                os.close(file)

    def names(self, run: str) -> dict[str, int]:
        now_s = time.time()
        found = {}
        with _opened(self._root), _opened(self._root / run) as at:
            for name in os.listdir(at):  # noqa: PTH208 - `at` is a descriptor
                try:
                    status = os.stat(name, dir_fd=at, follow_symlinks=False)
                    if not name.startswith("."):
                        found[name] = status.st_size
                    elif name.startswith(_NEW) and now_s - status.st_mtime > ABANDONED_S:
                        os.unlink(name, dir_fd=at)
                except FileNotFoundError:  # renamed or removed meanwhile
                    continue
        return found

    def put_aside(self, run: str, name: str) -> None:
        with _opened(self._root), _opened(self._root / run) as at:
            os.rename(name, f".damaged-{name}", src_dir_fd=at, dst_dir_fd=at)

    def runs(self) -> list[StoredRun]:
        found = []
        with _opened(self._root):
            for folder in self._root.iterdir():
                if folder.name.startswith(".") or not folder.is_dir() or folder.is_symlink():
                    continue
                size, changed_at_s = 0, 0.0
                for file in [folder, *folder.iterdir()]:
                    with contextlib.suppress(FileNotFoundError):
                        status = file.lstat()
                        size += status.st_size if file is not folder else 0
                        changed_at_s = max(changed_at_s, status.st_mtime)
                found.append(StoredRun(folder.name, size, changed_at_s))
        return found

    def remove(self, run: str) -> None:
        import shutil

        with _opened(self._root) as root, _opened(self._root / run):
            gone = f".removed-{secrets.token_hex(8)}"
            os.rename(run, gone, src_dir_fd=root, dst_dir_fd=root)  # all of it or nothing is seen
            for attempt in range(ATTEMPTS):
                try:
                    shutil.rmtree(self._root / gone)
                    break
                except OSError as error:  # somebody who had it open has put one more file there
                    if error.errno != errno.ENOTEMPTY or attempt == ATTEMPTS - 1:
                        raise


ATTEMPTS = 100
"""To remove a folder into which others still write; each of them has one file under way."""


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """A folder that nobody but us can put files into."""
    at = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_owner(os.fstat(at), f"{folder}")
        yield at
    finally:
        os.close(at)


def _check_owner(found: os.stat_result, where: str) -> None:
    if found.st_uid not in (os.getuid(), 0):
        raise ResultStoreError(
            f"{where} belongs to another user, results are not safe there: name another result_store"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ResultStoreError(f"{where} may be written to by others, results are not safe there: chmod go-w {where}")


def _write_all(file: int, part: Buffer) -> None:
    view = memoryview(part).cast("B")
    while len(view):
        view = view[os.write(file, view) :]


class _Objects:
    """Runs in an object store, or whatever else fsspec reaches."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")

    def where(self, run: str, name: str) -> str:
        return f"{self._root}/{run}/{name}"

    def write(self, run: str, name: str, parts: Sequence[Buffer]) -> None:
        self._fs.makedirs(f"{self._root}/{run}", exist_ok=True)
        self._fs.pipe_file(self.where(run, name), b"".join(parts))

    def read(self, run: str, name: str) -> bytearray:
        return bytearray(self._fs.cat_file(self.where(run, name)))

    def names(self, run: str) -> dict[str, int]:
        # A listing from before the last write is worth nothing.
        found = self._fs.ls(f"{self._root}/{run}", detail=True, refresh=True)
        names = {entry["name"].rpartition("/")[2]: int(entry["size"] or 0) for entry in found}
        return {name: size for name, size in names.items() if name and not name.startswith(".")}

    def put_aside(self, run: str, name: str) -> None:
        # Not `mv`, nor `rm` below: they take names for patterns.
        self._fs.cp_file(self.where(run, name), self.where(run, f".damaged-{name}"))
        self._fs.rm_file(self.where(run, name))

    def runs(self) -> list[StoredRun]:
        found = []
        for entry in self._fs.ls(self._root, detail=True, refresh=True):
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if entry["type"] == "directory" and not name.startswith("."):
                files = self._fs.ls(entry["name"], detail=True, refresh=True)
                times = [
                    _seconds(file.get("LastModified") or file.get("created") or file.get("mtime")) for file in files
                ]
                size = sum(int(file["size"] or 0) for file in files)
                found.append(StoredRun(name, size, max(times, default=0.0)))
        return found

    def remove(self, run: str) -> None:
        for entry in self._fs.ls(f"{self._root}/{run}", detail=True, refresh=True):
            self._fs.rm_file(entry["name"])
        with contextlib.suppress(FileNotFoundError, NotImplementedError):  # object stores have no folders
            self._fs.rmdir(f"{self._root}/{run}")


def _seconds(moment: Any) -> float:
    return moment.timestamp() if hasattr(moment, "timestamp") else float(moment or 0)
