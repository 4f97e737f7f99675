"""XXH64 of a payload, computed while it is copied: the bytes that are checked are the bytes that arrive.

Source: the specification of xxHash, 0.2.0 (github.com/Cyan4973/xxHash, doc/xxhash_spec.md), XXH64.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from swarm.channels.atomics import load, load_8, load_32, store, store_8, store_32

njit: Any = numba.njit

P1 = np.uint64(0x9E3779B185EBCA87)
P2 = np.uint64(0xC2B2AE3D27D4EB4F)
P3 = np.uint64(0x165667B19E3779F9)
P4 = np.uint64(0x85EBCA77C2B2AE63)
P5 = np.uint64(0x27D4EB2F165667C5)


@njit
def _turn(value: np.uint64, bits: int) -> np.uint64:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@njit
def _round(lane: np.uint64, value: np.uint64) -> np.uint64:
    return _turn(lane + value * P2, 31) * P1


@njit
def _merge(total: np.uint64, lane: np.uint64) -> np.uint64:
    return (total ^ _round(np.uint64(0), lane)) * P1 + P4


@njit
def copy_and_hash(to: int, start: int, length: int, seed: np.uint64) -> np.uint64:
    """Copy `length` bytes from the address `start` to the address `to`; returns their XXH64."""
    at, rest = start, length
    shift = to - start
    if length >= 32:
        one, two, three, four = seed + P1 + P2, seed + P2, seed, seed - P1
        while rest >= 32:
            a, b, c, d = load(at), load(at + 8), load(at + 16), load(at + 24)
            store(at + shift, a)
            store(at + shift + 8, b)
            store(at + shift + 16, c)
            store(at + shift + 24, d)
            one, two, three, four = _round(one, a), _round(two, b), _round(three, c), _round(four, d)
            at += 32
            rest -= 32
        total = _turn(one, 1) + _turn(two, 7) + _turn(three, 12) + _turn(four, 18)
        total = _merge(_merge(_merge(_merge(total, one), two), three), four)
    else:
        total = seed + P5
    total += np.uint64(length)
    while rest >= 8:
        a = load(at)
        store(at + shift, a)
        total = _turn(total ^ _round(np.uint64(0), a), 27) * P1 + P4
        at += 8
        rest -= 8
    if rest >= 4:
        a = load_32(at)
        store_32(at + shift, a)
        total = _turn(total ^ (a * P1), 23) * P2 + P3
        at += 4
        rest -= 4
    while rest > 0:
        a = load_8(at)
        store_8(at + shift, a)
        total = _turn(total ^ (a * P5), 11) * P1
        at += 1
        rest -= 1
    total = (total ^ (total >> np.uint64(33))) * P2
    total = (total ^ (total >> np.uint64(29))) * P3
    return total ^ (total >> np.uint64(32))


@njit
def seed_of(size_and_flags: np.uint64, sequence: np.uint64, sent_ns: np.uint64) -> np.uint64:
    """The seed by which the checksum covers the header too: it differs whenever one of its fields does."""
    return ((sequence * P1) ^ sent_ns) * P2 + size_and_flags
