"""XXH64 as published, and the copy that comes with it."""

from __future__ import annotations

import ctypes

import numba
import numpy as np
import pytest

from swarm.channels.checksum import P1, copy_and_hash, seed_of

PRIME_32, PRIME_64 = 2654435761, 11400714785074694797

PUBLISHED = [
    # cli/xsum_sanity_check.c of xxHash, XSUM_XXH64_testdata: length, seed, XXH64
    (0, 0x0000000000000000, 0xEF46DB3751D8E999),
    (0, 0x000000009E3779B1, 0xAC75FDA2929B17EF),
    (1, 0x0000000000000000, 0xE934A84ADB052768),
    (1, 0x000000009E3779B1, 0x5014607643A9B4C3),
    (4, 0x0000000000000000, 0x9136A0DCA57457EE),
    (14, 0x0000000000000000, 0x8282DCC4994E35C8),
    (14, 0x000000009E3779B1, 0xC3BD6BF63DEB6DF0),
    (222, 0x0000000000000000, 0xB641AE8CB691C174),
    (222, 0x000000009E3779B1, 0x20CB8AB7AE10C14A),
]

ASCII = [
    # Of the documents of several implementations.
    (b"", 0, 0xEF46DB3751D8E999),
    (b"a", 0, 0xD24EC4F1A98C6E5B),
    (b"abc", 0, 0x44BC2CF5AD770999),
    (b"Nobody inspects the spammish repetition", 0, 0xFBCEA83C8A378BF1),
]


@numba.njit
def copy(to: int, start: int, length: int, seed: int) -> int:
    return copy_and_hash(to, start, length, np.uint64(seed))


def xxh64(data: bytes, seed: int) -> tuple[int, bytes]:
    source, target = ctypes.create_string_buffer(data, len(data) + 8), ctypes.create_string_buffer(len(data) + 8)
    told = copy(ctypes.addressof(target), ctypes.addressof(source), len(data), np.uint64(seed))
    assert target.raw[len(data) :] == bytes(8), "wrote beyond the end"
    return int(told), target.raw[: len(data)]


def sanity_buffer(length: int) -> bytes:
    """What the published vectors are of: the high byte of a product of primes."""
    generator, out = PRIME_32, bytearray()
    for _ in range(length):
        out.append(generator >> 56)
        generator = generator * PRIME_64 % (1 << 64)
    return bytes(out)


@pytest.mark.parametrize(("length", "seed", "expected"), PUBLISHED)
def test_the_published_vectors(length: int, seed: int, expected: int) -> None:
    assert xxh64(sanity_buffer(length), seed)[0] == expected


@pytest.mark.parametrize(("data", "seed", "expected"), ASCII)
def test_vectors_of_others(data: bytes, seed: int, expected: int) -> None:
    assert xxh64(data, seed)[0] == expected


@pytest.mark.parametrize("length", [*range(100), 1000, 4099, 65536])
def test_what_was_hashed_was_copied_and_nothing_else(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    assert xxh64(data, 1)[1] == data


@pytest.mark.parametrize("length", [1, 7, 8, 31, 32, 33, 256])
def test_each_bit_counts(length: int) -> None:
    data = np.random.default_rng(length).bytes(length)
    right, _ = xxh64(data, 5)
    for bit in range(8 * length):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        assert xxh64(bytes(changed), 5)[0] != right


def test_each_field_of_the_header_changes_the_seed() -> None:
    def seed(*fields: int) -> int:
        with np.errstate(over="ignore"):
            return int(seed_of.py_func(*map(np.uint64, fields)))

    told = {seed(256, 4096, 10**15), seed(257, 4096, 10**15), seed(256, 4160, 10**15), seed(256, 4096, 10**15 + 1)}
    assert len(told) == 4
    assert int(P1) % 2 == 1  # an odd factor maps no two numbers to one
