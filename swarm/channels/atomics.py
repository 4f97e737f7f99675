"""What numba lacks for shared memory: atomics, futex and clock, as intrinsics on plain addresses.

An address is an `int64`. Loads and stores that two processes race for are atomic and say their order;
everything between them is plain memory. Functions of libc are called by name,
so that compiled kernels can be kept on disk (`cache=True`).
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types

from swarm.errors import ChannelError

FUTEX_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine())
"""Number of the system call `futex`: arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h."""

RELAX: dict[str, tuple[str, list[int]]] = {"x86_64": ("llvm.x86.sse2.pause", []), "aarch64": ("llvm.aarch64.isb", [15])}
"""What a core does while it looks again and again: `isb` waits about as long as `pause`, `yield` does nothing."""

if not sys.platform.startswith("linux") or FUTEX_CALL is None:
    raise ChannelError(
        f"rings in shared memory need Linux on x86-64 or aarch64, this is {sys.platform} on {platform.machine()}; "
        "agents talk over sockets here"
    )
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ChannelError("rings in shared memory need Python's GIL, which is off here; agents talk over sockets")

FUTEX_WAKE = 1
FUTEX_WAIT_BITSET = 9  # with an absolute time of CLOCK_MONOTONIC, which FUTEX_WAIT does not take
ANY_BIT = 0xFFFFFFFF
CLOCK_MONOTONIC = 1
EVERYBODY = 0x7FFFFFFF

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
TIMESPEC = ir.LiteralStructType([I64, I64])
BILLION = ir.Constant(I64, 1_000_000_000)

intrinsic: Any = extending.intrinsic
Emit = Callable[[Any, ir.IRBuilder, Any, Any], Any]


def _pointer(builder: ir.IRBuilder, address: Any, to: ir.Type) -> Any:
    return builder.inttoptr(address, to.as_pointer())


def _libc(builder: ir.IRBuilder, result: ir.Type, name: str, *arguments: ir.Type) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


@intrinsic
def load_acquire(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """The 64 bits at `address`; nothing that follows is done before."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], I64), "acquire", 8)

    return types.int64(types.int64), emit


@intrinsic
def store_release(_typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Set the 64 bits at `address`; nothing that precedes is done after."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], _pointer(builder, args[0], I64), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), emit


@intrinsic
def load_state(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """The 32 bits at `address`, a word that others wait on."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        word = builder.load_atomic(_pointer(builder, args[0], I32), "monotonic", 4)
        return builder.zext(word, I64)

    return types.int64(types.int64), emit


@intrinsic
def exchange_state(_typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Set the 32 bits at `address`, a word that others wait on; returns what was there."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        word = builder.trunc(args[1], I32)
        was = builder.atomic_rmw("xchg", _pointer(builder, args[0], I32), word, "seq_cst")
        return builder.zext(was, I64)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def compare_exchange(_typing: Any, address: Any, expected: Any, value: Any) -> tuple[Any, Emit]:
    """Set the 64 bits at `address` if they are as expected; returns what was there."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        pair = builder.cmpxchg(_pointer(builder, args[0], I64), args[1], args[2], "seq_cst")
        return builder.extract_value(pair, 0)

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def fence(_typing: Any) -> tuple[Any, Emit]:
    """Sequentially consistent: what precedes is seen by all before anything that follows is looked at."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def relax(_typing: Any) -> tuple[Any, Emit]:
    """Let the other thread of this core work for a moment."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
        name, arguments = RELAX[platform.machine()]
        builder.call(_libc(builder, ir.VoidType(), name, *[I32] * len(arguments)), [I32(n) for n in arguments])
        return context.get_dummy_value()

    return types.void(), emit


@intrinsic
def load(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """The 64 bits at `address`, aligned or not, unsigned."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.load(_pointer(builder, args[0], I64), align=1)

    return types.uint64(types.int64), emit


@intrinsic
def load_32(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """The 32 bits at `address`, aligned or not, unsigned."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(_pointer(builder, args[0], I32), align=1), I64)

    return types.uint64(types.int64), emit


@intrinsic
def load_8(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """The byte at `address`."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.zext(builder.load(_pointer(builder, args[0], I8), align=1), I64)

    return types.uint64(types.int64), emit


@intrinsic
def store(_typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Set the 64 bits at `address`, aligned or not."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], I64), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), emit


@intrinsic
def store_32(_typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Set the 32 bits at `address`, aligned or not."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], I32), _pointer(builder, args[0], I32), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), emit


@intrinsic
def store_8(_typing: Any, address: Any, value: Any) -> tuple[Any, Emit]:
    """Set the byte at `address`."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[1], I8), _pointer(builder, args[0], I8), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), emit


@intrinsic
def monotonic_ns(_typing: Any) -> tuple[Any, Emit]:
    """CLOCK_MONOTONIC, ns: one clock for all processes of the host."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
        now = cgutils.alloca_once(builder, TIMESPEC)
        call = _libc(builder, I32, "clock_gettime", I32, TIMESPEC.as_pointer())
        builder.call(call, [ir.Constant(I32, CLOCK_MONOTONIC), now])
        seconds, rest = builder.extract_value(builder.load(now), 0), builder.extract_value(builder.load(now), 1)
        return builder.add(builder.mul(seconds, BILLION), rest)

    return types.int64(), emit


def _futex(builder: ir.IRBuilder, address: Any, operation: int, value: Any, until: Any) -> Any:
    """The system call; -1 means that it did not wait or was interrupted, which the caller finds out by looking."""
    call = _libc(builder, I64, "syscall", I64, I64, I64, I64, I64, I64, I64)
    number, bits = ir.Constant(I64, FUTEX_CALL), ir.Constant(I64, ANY_BIT)
    return builder.call(call, [number, address, ir.Constant(I64, operation), value, until, ir.Constant(I64, 0), bits])


@intrinsic
def futex_wait(_typing: Any, address: Any, expected: Any, until_ns: Any) -> tuple[Any, Emit]:
    """Sleep while the 32 bits at `address` are as expected, until `until_ns` of CLOCK_MONOTONIC, or for no reason."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        until = cgutils.alloca_once(builder, TIMESPEC)
        zero, one = ir.Constant(I32, 0), ir.Constant(I32, 1)
        builder.store(builder.sdiv(args[2], BILLION), builder.gep(until, [zero, zero]))
        builder.store(builder.srem(args[2], BILLION), builder.gep(until, [zero, one]))
        return _futex(builder, args[0], FUTEX_WAIT_BITSET, args[1], builder.ptrtoint(until, I64))

    return types.int64(types.int64, types.int64, types.int64), emit


@intrinsic
def futex_wake(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """Wake all that sleep on `address`, in whichever process."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return _futex(builder, args[0], FUTEX_WAKE, ir.Constant(I64, EVERYBODY), ir.Constant(I64, 0))

    return types.int64(types.int64), emit


@intrinsic
def leading_zeros(_typing: Any, value: Any) -> tuple[Any, Emit]:
    """How many of the 64 bits are zero before the first that is one."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), emit
