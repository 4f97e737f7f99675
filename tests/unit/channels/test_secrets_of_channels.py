"""Tokens, proofs, keys, and records that only the right one can open, once, in order."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.channels import references, security
from swarm.channels.handshake import Greeting, check_owner
from swarm.channels.security import Keys, Opener, Sealer
from swarm.errors import ChannelError, MissingPackageError

TOKEN = bytes(range(32))
KEY = bytes(32)


def test_keys_are_those_of_rfc_5869() -> None:
    """Appendix A.1 to A.3, the first 32 bytes: one block of HKDF."""
    info = bytes(range(0xF0, 0xFA))
    assert security.derive(b"\x0b" * 22, bytes(range(13)), info).hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
    )
    assert security.derive(bytes(range(80)), bytes(range(0x60, 0xB0)), bytes(range(0xB0, 0x100))).hex() == (
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c"
    )
    assert security.derive(b"\x0b" * 22, b"", b"").hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )


def test_a_token_is_kept_for_us_alone(tmp_path: Path) -> None:
    path, token = tmp_path / "token", security.new_token()
    security.write_token(path, token)
    assert path.stat().st_mode & 0o777 == 0o600
    assert security.read_token(path) == token
    with pytest.raises(ChannelError, match="can't be written"):
        security.write_token(path, token)
    path.chmod(0o640)
    with pytest.raises(ChannelError, match="open to others"):
        security.read_token(path)


@pytest.mark.parametrize("content", [b"", b"short", bytes(33)])
def test_a_file_that_is_no_token_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(ChannelError, match="must be 32"):
        security.read_token(path)


def test_a_link_in_place_of_a_token_is_refused(tmp_path: Path) -> None:
    security.write_token(tmp_path / "token", TOKEN)
    (tmp_path / "link").symlink_to(tmp_path / "token")
    with pytest.raises(ChannelError, match="can't be read"):
        security.read_token(tmp_path / "link")


def test_a_proof_is_good_for_one_role_and_one_talk() -> None:
    given_proof = security.proof(TOKEN, b"host", b"said")
    assert security.is_proof(given_proof, TOKEN, b"host", b"said")
    assert not security.is_proof(given_proof, TOKEN, b"caller", b"said")
    assert not security.is_proof(given_proof, TOKEN, b"host", b"said something else")
    assert not security.is_proof(given_proof, KEY, b"host", b"said")


@given(st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=300)), max_size=30), st.integers(1, 5))
def test_what_was_sealed_is_opened_in_order_over_changes_of_the_key(
    said: list[tuple[bytes, bytes]], rotate: int
) -> None:
    sealer, opener = Sealer(KEY, rotate_records=rotate), Opener(KEY)
    for number, (header, body) in enumerate(said):
        epoch = sealer.current_epoch()
        assert epoch == number // rotate
        assert opener.open(header, sealer.seal(header, body), epoch) == body


def test_replayed_left_out_swapped_or_forged_records_are_refused() -> None:
    sealer = Sealer(KEY)
    first, second, third = (sealer.seal(b"header", body) for body in (b"one", b"two", b"three"))
    for wrong in ([first, first], [first, third], [second], [first[:-1] + bytes([first[-1] ^ 1])], [b""], [b"x" * 40]):
        opener = Opener(KEY)
        for sealed in wrong[:-1]:
            opener.open(b"header", sealed, 0)
        with pytest.raises(ChannelError, match="forged, replayed, or out of order"):
            opener.open(b"header", wrong[-1], 0)
    with pytest.raises(ChannelError, match="forged"):
        Opener(KEY).open(b"another", first, 0)


def test_an_old_key_is_refused() -> None:
    sealer, opener = Sealer(KEY, rotate_records=1), Opener(KEY)
    for body in (b"one", b"two"):
        epoch = sealer.current_epoch()
        sealed = sealer.seal(b"", body)
        opener.open(b"", sealed, epoch)
    for epoch in (0, 3, 65535):
        with pytest.raises(ChannelError, match=f"epoch {epoch}"):
            opener.open(b"", sealed, epoch)


def test_a_key_is_changed_after_a_time_too() -> None:
    sealer, opener = Sealer(KEY, rotate_s=-1.0), Opener(KEY)
    for _ in range(200):
        epoch = sealer.current_epoch()
        assert opener.open(b"", sealer.seal(b"", b"body"), epoch) == b"body"
    assert sealer.epoch >= 2


def test_what_never_left_may_be_sealed_again() -> None:
    sealer, opener = Sealer(KEY), Opener(KEY)
    sealer.seal(b"", b"given up")
    sealer.take_back()
    assert opener.open(b"", sealer.seal(b"", b"sent"), 0) == b"sent"


def test_each_lane_and_each_talk_has_keys_of_its_own() -> None:
    sealed = Keys(TOKEN, b"said").sealer("caller to host").seal(b"", b"body")
    assert Keys(TOKEN, b"said").opener("caller to host").open(b"", sealed, 0) == b"body"
    for keys, lane in ((Keys(TOKEN, b"said"), "host to caller"), (Keys(TOKEN, b"other"), "caller to host")):
        with pytest.raises(ChannelError):
            keys.opener(lane).open(b"", sealed, 0)


def test_without_cryptography_encryption_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def fake(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("cryptography"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fake)
    with pytest.raises(MissingPackageError, match="pip install"):
        security.aead()


@given(st.binary(min_size=64, max_size=64))
def test_any_greeting_is_read_or_refused(noise: bytes) -> None:
    for data in (noise, b"swrm" + noise[4:], b"swrm\x01\x00" + noise[6:]):
        try:
            greeting = Greeting.read(data)
            assert greeting.pack() == data
        except ChannelError:
            pass


def test_a_process_of_another_user_is_refused() -> None:
    assert check_owner(77, os.getuid()) == 77
    with pytest.raises(ChannelError, match="process 77 of user"):
        check_owner(77, os.getuid() + 1)


@pytest.mark.parametrize("encrypt", [False, True])
@pytest.mark.parametrize("size", [0, 1, 512 << 10, (512 << 10) + 1, 3_000_000])
def test_a_reference_brings_its_frame(size: int, encrypt: bool) -> None:
    frame = os.urandom(size)
    fd, body = references.write(frame, encrypt=encrypt)
    assert references.check(fd, body, encrypted=encrypt) == size
    if encrypt and size > 100:
        assert os.pread(fd, 100, 0) != frame[:100]
    assert references.read(fd, body) == frame
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_references_that_are_not_what_they_say_are_refused(tmp_path: Path) -> None:
    fd, body = references.write(b"x" * 1000)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"changed", 0)
    for wrong in (b"", body[:-1], body + b"x", bytes(len(body)), b"\xff" * len(body)):
        with pytest.raises(ChannelError):
            references.check(fd, wrong, encrypted=False)
    with pytest.raises(ChannelError, match="not sealed as it must be"):
        references.check(fd, body, encrypted=True)
    with (tmp_path / "file").open("wb+") as file:
        file.write(b"x" * 1000)
        file.flush()
        with pytest.raises(ChannelError, match="not sealed"):
            references.check(file.fileno(), body, encrypted=False)
    wrong_sum = body[:8] + bytes([body[8] ^ 1]) + body[9:]
    with pytest.raises(ChannelError, match="not what its sender wrote"):
        references.read(fd, wrong_sum)


@given(st.binary(max_size=60), st.booleans())
def test_any_body_of_a_reference_is_read_or_refused(noise: bytes, encrypted: bool) -> None:
    fd, _ = references.write(b"frame")
    try:
        with pytest.raises(ChannelError):
            references.check(fd, noise, encrypted=encrypted)
    finally:
        os.close(fd)
