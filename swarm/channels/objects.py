"""Objects of Python in compiled kernels: a message is read from and written to `bytes` without a copy in between.

All of these but `take_gil` need the GIL. An object is its address, an `int64`; 0 is an exception that is under way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import extending
from numba.core import cgutils, types
from numba.core.datamodel.models import OpaqueModel
from numba.extending import box, register_model

intrinsic: Any = extending.intrinsic
Emit = Callable[[Any, ir.IRBuilder, Any, Any], Any]

I64 = ir.IntType(64)
OBJECT = ir.IntType(8).as_pointer()


class PythonObject(types.Opaque):
    """A new reference, which the kernel gives to its caller."""


python_object: Any = PythonObject("PythonObject")
register_model(PythonObject)(OpaqueModel)


@box(PythonObject)
def _hand_over(_type: Any, value: Any, _context: Any) -> Any:
    return value


def _call(builder: ir.IRBuilder, result: ir.Type, name: str, *arguments: Any) -> Any:
    """Call a function of Python's stable C API."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _object(builder: ir.IRBuilder, address: Any) -> Any:
    return builder.inttoptr(address, OBJECT)


@intrinsic
def given(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """What a kernel returns to give away the object at `address`; 0 raises what is under way."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return _object(builder, args[0])

    return python_object(types.int64), emit


@intrinsic
def new_none(_typing: Any) -> tuple[Any, Emit]:
    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
        return builder.ptrtoint(context.get_python_api(builder).make_none(), I64)

    return types.int64(), emit


@intrinsic
def new_int(_typing: Any, value: Any) -> tuple[Any, Emit]:
    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.ptrtoint(_call(builder, OBJECT, "PyLong_FromLongLong", args[0]), I64)

    return types.int64(types.int64), emit


@intrinsic
def new_bytes(_typing: Any, length: Any) -> tuple[Any, Emit]:
    """A `bytes` of this length, whose content is for the caller to fill in."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        nothing = ir.Constant(OBJECT, None)
        return builder.ptrtoint(_call(builder, OBJECT, "PyBytes_FromStringAndSize", nothing, args[0]), I64)

    return types.int64(types.int64), emit


@intrinsic
def bytes_size(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """Length of a `bytes`; -1 with TypeError under way if it is none."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return _call(builder, I64, "PyBytes_Size", _object(builder, args[0]))

    return types.int64(types.int64), emit


@intrinsic
def bytes_start(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """Where the content of a `bytes` begins."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.ptrtoint(_call(builder, OBJECT, "PyBytes_AsString", _object(builder, args[0])), I64)

    return types.int64(types.int64), emit


@intrinsic
def new_list(_typing: Any) -> tuple[Any, Emit]:
    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
        return builder.ptrtoint(_call(builder, OBJECT, "PyList_New", ir.Constant(I64, 0)), I64)

    return types.int64(), emit


@intrinsic
def append(_typing: Any, target: Any, address: Any) -> tuple[Any, Emit]:
    """Append to a list; -1 with an exception under way if that fails."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        done = _call(builder, ir.IntType(32), "PyList_Append", _object(builder, args[0]), _object(builder, args[1]))
        return builder.sext(done, I64)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def item(_typing: Any, source: Any, index: Any) -> tuple[Any, Emit]:
    """An item of a list, which goes on owning it."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        return builder.ptrtoint(_call(builder, OBJECT, "PyList_GetItem", _object(builder, args[0]), args[1]), I64)

    return types.int64(types.int64, types.int64), emit


@intrinsic
def drop(_typing: Any, address: Any) -> tuple[Any, Emit]:
    """Give a reference back."""

    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        _call(builder, ir.VoidType(), "Py_DecRef", _object(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def release_gil(_typing: Any) -> tuple[Any, Emit]:
    """Let other threads run Python; returns what `take_gil` wants."""

    def emit(_context: Any, builder: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
        return builder.ptrtoint(_call(builder, OBJECT, "PyEval_SaveThread"), I64)

    return types.int64(), emit


@intrinsic
def take_gil(_typing: Any, thread: Any) -> tuple[Any, Emit]:
    def emit(context: Any, builder: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        _call(builder, ir.VoidType(), "PyEval_RestoreThread", _object(builder, args[0]))
        return context.get_dummy_value()

    return types.void(types.int64), emit
