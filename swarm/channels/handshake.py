"""How two stations come to trust each other before the first record; each side's part of the talk is one coroutine.

caller → host: greeting; host → caller: greeting and proof; caller → host: proof. Greetings have a fixed size and hold
the version, both ids, a nonce and the session. `SO_PEERCRED` tells which process of which user is at the other end.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from dataclasses import dataclass

from swarm.channels import security
from swarm.errors import ChannelError, PeerLostError

VERSION = 1
MAGIC = b"swrm"
ID_BYTES = 8
NONCE_BYTES = 32
SESSION_BYTES = 8
PROOF_BYTES = 32
_GREETING = struct.Struct(f"<4sHH{ID_BYTES}s{ID_BYTES}s{SESSION_BYTES}s{NONCE_BYTES}s")
_ENCRYPTED = 1
_CREDENTIALS = struct.Struct("3i")


class HungUpError(PeerLostError):
    """The other end closed the connection amid the handshake."""


class OnlyLookedError(HungUpError):
    """The caller hung up without a word: another station, which wanted to know whether this one lives."""


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """The station at the other end of a link, as its proof and the kernel say."""

    id: str
    """16 hex digits."""
    pid: int | None
    """None where the kernel doesn't tell (other systems than Linux)."""
    encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Agreed:
    """What a handshake came to."""

    peer: PeerInfo
    session: bytes
    keys: security.Keys | None
    """None when nothing is sealed."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """What each side says first."""

    sender: str
    recipient: str
    encrypted: bool
    session: bytes
    nonce: bytes

    def pack(self) -> bytes:
        """As bytes of a fixed size."""
        ids = bytes.fromhex(self.sender), bytes.fromhex(self.recipient)
        return _GREETING.pack(MAGIC, VERSION, _ENCRYPTED if self.encrypted else 0, *ids, self.session, self.nonce)

    @classmethod
    def read(cls, data: bytes) -> Greeting:
        """Raises `ChannelError` when it is none, or of another version."""
        magic, version, flags, sender, recipient, session, nonce = _GREETING.unpack(data)
        if magic != MAGIC:
            raise ChannelError(f"no station is at the other end of a channel: it says {magic!r}")
        if version != VERSION:
            raise ChannelError(f"a station speaks version {version}, this one {VERSION}; run the same swarm everywhere")
        if flags & ~_ENCRYPTED:
            raise ChannelError(f"the greeting of station {sender.hex()} has unknown flags {flags:#x}")
        return cls(sender.hex(), recipient.hex(), bool(flags & _ENCRYPTED), session, nonce)


async def call(
    sock: socket.socket, token: bytes, own_id: str, peer_id: str, session: bytes, *, encrypt: bool
) -> Agreed:
    """The caller's part.

    Raises
    ------
    ChannelError
        The other end is not `peer_id`, has another token or version, or does not agree about encryption.
    HungUpError
        It went away meanwhile.
    """
    pid = pid_of(sock)
    mine = Greeting(own_id, peer_id, encrypt, session, secrets.token_bytes(NONCE_BYTES)).pack()
    await asyncio.get_running_loop().sock_sendall(sock, mine)
    answer = await _read_exactly(sock, _GREETING.size, f"station {peer_id} refused us, it may have another token")
    theirs = Greeting.read(answer)
    given = await _read_exactly(sock, PROOF_BYTES, f"station {peer_id} went away")
    said = mine + answer
    if not security.is_proof(given, token, b"host", said):
        raise ChannelError(f"station {peer_id} has another token: it belongs to another run")
    if theirs.sender != peer_id or theirs.recipient != own_id or theirs.session != session:
        raise ChannelError(f"station {theirs.sender} answered in place of {peer_id}")
    _check_encryption(peer_id, theirs.encrypted, encrypt)
    await asyncio.get_running_loop().sock_sendall(sock, security.proof(token, b"caller", said))
    return Agreed(PeerInfo(peer_id, pid, encrypt), session, security.Keys(token, said) if encrypt else None)


async def host(sock: socket.socket, token: bytes, own_id: str, *, encrypt: bool) -> Agreed:
    """The part of the one who is called.

    Raises
    ------
    ChannelError
        The caller is of another user, wants another station, does not know the token, or says nonsense.
    """
    pid = pid_of(sock)
    first = await asyncio.get_running_loop().sock_recv(sock, 1)
    if not first:
        raise OnlyLookedError("a caller hung up without a word")
    greeting = first + await _read_exactly(sock, _GREETING.size - 1, "a caller went away before it said who it is")
    theirs = Greeting.read(greeting)
    answer = Greeting(own_id, theirs.sender, encrypt, theirs.session, secrets.token_bytes(NONCE_BYTES)).pack()
    said = greeting + answer
    await asyncio.get_running_loop().sock_sendall(sock, answer + security.proof(token, b"host", said))
    given = await _read_exactly(sock, PROOF_BYTES, f"caller {theirs.sender} went away, it may have another token")
    if not security.is_proof(given, token, b"caller", said):
        raise ChannelError(f"caller {theirs.sender} (process {pid}) does not know the token of this run")
    if theirs.recipient != own_id:
        raise ChannelError(f"caller {theirs.sender} wants station {theirs.recipient}, this is {own_id}")
    _check_encryption(theirs.sender, theirs.encrypted, encrypt)
    keys = security.Keys(token, said) if encrypt else None
    return Agreed(PeerInfo(theirs.sender, pid, encrypt), theirs.session, keys)


def pid_of(sock: socket.socket) -> int | None:
    """The process at the other end, as the kernel knows it; None where it can't be asked.

    Raises
    ------
    ChannelError
        It belongs to another user.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return check_owner(pid, uid)


def check_owner(pid: int, uid: int) -> int:
    """`pid`, if the process runs under our user. Raises `ChannelError` if not."""
    import os

    if uid != os.getuid():
        raise ChannelError(f"process {pid} of user {uid} is at the other end of a channel, ours is {os.getuid()}")
    return int(pid)


def _check_encryption(peer_id: str, theirs: bool, ours: bool) -> None:
    if theirs != ours:
        which = "encrypts its channels, this one doesn't" if theirs else "doesn't encrypt its channels, this one does"
        raise ChannelError(f"station {peer_id} {which}; set it to the same in all processes")


async def _read_exactly(sock: socket.socket, size: int, if_it_ends: str) -> bytes:
    """Not a byte more: what follows are records, and file descriptors with them."""
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        try:
            part = await loop.sock_recv(sock, size - len(data))
        except ConnectionError:
            part = b""
        if not part:
            raise HungUpError(if_it_ends)
        data += part
    return data
