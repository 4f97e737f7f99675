"""Who may talk on a channel: the token of a run, keys derived from it, and the sealing of records.

The token never travels. Both stations prove that they know it by an HMAC over what both have said (SIGMA's idea, with a
key in common instead of signatures); session keys come from it by HKDF (RFC 5869). Records are sealed with
AES-256-GCM as in TLS 1.3 (RFC 8446, 5.3): the nonce is a counter that both sides keep, so that what is replayed, left
out or put in another order can't be opened.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.errors import ChannelError, MissingPackageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN_BYTES = 32
ROTATE_RECORDS = 1 << 20
"""Per key; NIST SP 800-38D allows 2^32, this costs nothing."""
ROTATE_S = 900.0
TAG_BYTES = 16
EPOCHS = 1 << 16
"""As many as the header of a record can tell apart; then from the beginning."""


def new_token() -> bytes:
    """The secret of a run."""
    return secrets.token_bytes(TOKEN_BYTES)


def write_token(path: Path, token: bytes) -> None:
    """Keep the token in a file that only we may read.

    Raises
    ------
    ChannelError
        There is a file already, or it can't be made.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ChannelError(f"token can't be written to {path} ({error.strerror}); choose a new file") from None
    with os.fdopen(fd, "wb") as file:
        file.write(token)


def read_token(path: Path) -> bytes:
    """The token that `write_token` kept.

    Raises
    ------
    ChannelError
        It can't be read, is no token, or others may read it too.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError as error:
        raise ChannelError(f"token can't be read from {path} ({error.strerror})") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise ChannelError(f"token file {path} is open to others (must be ours, with mode 0600); make a new one")
        token = file.read(TOKEN_BYTES + 1)
    return check_token(token, f"token file {path}")


def check_token(token: bytes, what: str = "token") -> bytes:
    """`token`, if it is long enough for a secret.

    Raises
    ------
    ChannelError
        It is not.
    """
    if len(token) != TOKEN_BYTES:
        how = "swarm.channels.security.new_token() makes one"
        raise ChannelError(f"{what} has {len(token)} bytes, must be {TOKEN_BYTES}; {how}")
    return token


def proof(token: bytes, role: bytes, said: bytes) -> bytes:
    """32 bytes that only who knows the token can make of what was said; `role` keeps one from echoing the other's."""
    return hmac.digest(token, b"swarm " + role + said, "sha256")


def is_proof(given: bytes, token: bytes, role: bytes, said: bytes) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given, proof(token, role, said))


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """A key of 32 bytes: HKDF-SHA256 (RFC 5869), one block.

    >>> derive(bytes([11] * 22), bytes(range(13)), bytes(range(240, 250))).hex()[:16]  # RFC 5869, A.1
    '3cb25f25faacd57a'
    """
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\1", "sha256")


def aead() -> type[AESGCM]:
    """The cipher.

    Raises
    ------
    MissingPackageError
        `cryptography` is not installed.
    """
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise MissingPackageError(
            "encrypted channels need the package cryptography, which is not installed here; "
            "pip install cryptography, or switch encryption off"
        ) from None
    return AESGCM


class Keys:
    """The keys of one session, one for each lane and direction.

    Parameters
    ----------
    said
        All that both stations said in the handshake: their ids and nonces are part of it.
    """

    def __init__(self, token: bytes, said: bytes) -> None:
        self._token, self._said = token, said

    def sealer(self, lane: str) -> Sealer:
        """For the one that writes to this lane."""
        return Sealer(derive(self._token, self._said, lane.encode()))

    def opener(self, lane: str) -> Opener:
        """For the one that reads from it."""
        return Opener(derive(self._token, self._said, lane.encode()))


class _Chain:
    """One key after another; an older one can't be found from a newer one."""

    def __init__(self, key: bytes) -> None:
        self._cipher_class = aead()
        self._key = key
        self._cipher = self._cipher_class(key)
        self._counter = 0
        self.epoch = 0

    def rotate(self) -> None:
        self._key = derive(self._key, b"", b"next")
        self._cipher = self._cipher_class(self._key)
        self._counter = 0
        self.epoch = (self.epoch + 1) % EPOCHS


class Sealer(_Chain):
    """Seals the records of one lane, in order."""

    def __init__(self, key: bytes, rotate_records: int = ROTATE_RECORDS, rotate_s: float = ROTATE_S) -> None:
        super().__init__(key)
        self.rotate_records = rotate_records
        self.rotate_s = rotate_s
        self._since_s = time.monotonic()

    def current_epoch(self) -> int:
        """Of the next record, which goes into its header."""
        # The clock is read now and then only; it costs as much as a tenth of the seal.
        is_old = self._counter % 64 == 63 and time.monotonic() - self._since_s > self.rotate_s
        if self._counter >= self.rotate_records or is_old:
            self.rotate()
            self._since_s = time.monotonic()
        return self.epoch

    def seal(self, header: bytes, body: bytes) -> bytes:
        """The body, sealed together with its header."""
        nonce = self._counter.to_bytes(12, "little")
        self._counter += 1
        return self._cipher.encrypt(nonce, body, header)

    def take_back(self) -> None:
        """What was sealed last has not left this process, and never will: its nonce is free again."""
        self._counter -= 1


class Opener(_Chain):
    """Opens what a `Sealer` of the same key sealed, in the same order, and nothing else."""

    def open(self, header: bytes, sealed: bytes, epoch: int) -> bytes:
        """The body.

        Raises
        ------
        ChannelError
            Forged, replayed, out of order, or sealed with a key of another time.
        """
        if epoch != self.epoch:
            if epoch != (self.epoch + 1) % EPOCHS:
                raise ChannelError(f"a sealed record has a key of epoch {epoch}, this is epoch {self.epoch}")
            self.rotate()
        try:
            body = self._cipher.decrypt(self._counter.to_bytes(12, "little"), sealed, header)
        except Exception as error:
            if type(error).__name__ not in ("InvalidTag", "ValueError"):  # the class is in a package that may be absent
                raise
            raise ChannelError("a sealed record can't be opened: forged, replayed, or out of order") from None
        self._counter += 1
        return body
