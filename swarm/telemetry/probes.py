"""Short, real tries of what a machine may or may not let a process do. Each cleans up after itself.

All raise `SourceAbsent` with "why; how to get it" when the machine refuses.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib.util
import mmap
import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

from swarm.telemetry.sources.source import SourceAbsent

# Numbers from the kernel's system call tables, (perf_event_open, futex).
SYSTEM_CALLS = {"x86_64": (298, 202), "aarch64": (241, 98)}

# include/uapi/linux/perf_event.h
PERF_TYPE_HARDWARE, PERF_COUNT_HW_INSTRUCTIONS = 0, 1
PERF_ATTR_BYTES = 64
"""PERF_ATTR_SIZE_VER0, which every kernel takes."""
PERF_DISABLED, PERF_EXCLUDE_KERNEL, PERF_EXCLUDE_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
PERF_ENABLE, PERF_DISABLE = 0x2400, 0x2401

FUTEX_WAIT_PRIVATE = 0 | 128

OPENCL = """
import sys, pyopencl
try:
    platforms = pyopencl.get_platforms()
except pyopencl.Error:
    sys.exit("pyopencl is installed, yet it finds no driver")
for platform in platforms:
    devices = len(platform.get_devices())
    print(f"{platform.name}: {devices} device{'s' * (devices != 1)}")
"""
OPENCL_WAIT_S = 5.0


def count_instructions() -> int:
    """Instructions that a small loop of this thread took, by perf_event_open(2)."""
    kind_and_size = struct.pack("IIQ", PERF_TYPE_HARDWARE, PERF_ATTR_BYTES, PERF_COUNT_HW_INSTRUCTIONS)
    flags = PERF_DISABLED | PERF_EXCLUDE_KERNEL | PERF_EXCLUDE_HYPERVISOR
    attr = (kind_and_size + struct.pack("QQQQ", 0, 0, 0, flags)).ljust(PERF_ATTR_BYTES, b"\0")
    this_thread, any_cpu, no_group, no_flags = 0, -1, -1, 0
    try:
        fd = _system_call(0, attr, this_thread, any_cpu, no_group, no_flags)
    except OSError as error:
        raise SourceAbsent(_why_no_counters(error)) from error
    try:
        fcntl.ioctl(fd, PERF_ENABLE, 0)
        sum(range(1000))
        fcntl.ioctl(fd, PERF_DISABLE, 0)
        (count,) = struct.unpack("Q", os.read(fd, 8))
    finally:
        os.close(fd)
    if not count:
        raise SourceAbsent("the counter stays at 0; all hardware counters may be taken, by a profiler for instance")
    return int(count)


def _why_no_counters(error: OSError) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        return (
            "the kernel forbids it to this user; set sysctl kernel.perf_event_paranoid=2,"
            " and in a container add --cap-add PERFMON or a seccomp profile that allows perf_event_open"
        )
    if error.errno in {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP}:
        return "the processor shows no counters; in a virtual machine the host must pass them on (vPMU)"
    return f"perf_event_open says: {error.strerror}"


def futex() -> None:
    """futex(2): a wait on a word that has another value returns at once with EAGAIN."""
    word = ctypes.c_int(1)
    try:
        _system_call(1, ctypes.byref(word), FUTEX_WAIT_PRIVATE, 0, None, None, 0)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return
        raise SourceAbsent(f"futex says: {error.strerror}") from error


def eventfd() -> None:
    """eventfd(2): write to one, read it back."""
    if not hasattr(os, "eventfd"):
        raise SourceAbsent("eventfd is part of Linux")
    fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        os.eventfd_write(fd, 3)
        if os.eventfd_read(fd) != 3:
            raise SourceAbsent("eventfd does not give back what was written to it")
    finally:
        os.close(fd)


def shared_memory(directory: Path) -> None:
    """Make a segment of one page, write through one mapping, read through another, remove it."""
    path = directory / f"swarm-doctor-{os.getpid()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        how = "mount a tmpfs there, writable by this user"
        raise SourceAbsent(f"can't make a segment in {directory}: {error.strerror}; {how}") from error
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        with mmap.mmap(fd, mmap.PAGESIZE) as writer, mmap.mmap(fd, mmap.PAGESIZE) as reader:
            writer[:5] = b"swarm"
            if reader[:5] != b"swarm":
                raise SourceAbsent(f"two mappings of one segment in {directory} do not show the same bytes")
    finally:
        os.close(fd)
        path.unlink()


def opencl() -> list[str]:
    """One line per OpenCL platform, from pyopencl in a process of its own: drivers keep devices open or crash."""
    if importlib.util.find_spec("pyopencl") is None:
        raise SourceAbsent("the package pyopencl is not installed; pip install 'dask-swarm[opencl]'")
    ask = [sys.executable, "-I", "-c", OPENCL]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, timeout=OPENCL_WAIT_S, check=False)  # noqa: S603 - no input
    except subprocess.TimeoutExpired as error:
        raise SourceAbsent(f"the OpenCL driver gives no answer within {OPENCL_WAIT_S:g} s") from error
    if done.returncode:
        why = (done.stderr.strip().splitlines() or [f"the OpenCL driver crashed ({done.returncode})"])[-1]
        raise SourceAbsent(f"{why}; install one, for processors: apt install pocl-opencl-icd")
    return done.stdout.splitlines()


def _system_call(which: int, *arguments: object) -> int:
    numbers = SYSTEM_CALLS.get(platform.machine())
    if numbers is None or sys.platform != "linux":
        raise SourceAbsent(f"its system call is not known for {sys.platform} on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    wide = (ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    result = libc.syscall(ctypes.c_long(numbers[which]), *wide)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
