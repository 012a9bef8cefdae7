"""Threads that go through the stages of one pass together, inside one parallel region.

A stage is a number of items. A thread takes items until none are left, and goes on once all of them are done. Nobody
waits for a thread, only for items that threads have taken: one that comes late, or never, or shares its core with
another program, delays the others by one item at most, and the number of threads that come does not matter.

Of each stage the counters are a 64-byte line of zeros: items taken, then items done. Threads are handed the array that
the lines lie in, and take its address themselves: Numba frees an array at its last use, and an address is none.
"""

from __future__ import annotations

import os
import platform

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from .activations import address, inline
from .simd import I32, I64, call, pointer

LINE = 64
"""Bytes between the counters of stages."""

PATIENCE = 4000
"""Looks at a counter before the core is offered to others: about 40 µs."""

_hand_over = types.ExternalFunction("sched_yield" if os.name == "posix" else "SwitchToThread", types.int32())


@intrinsic
def _add_one(typingctx, address):
    """Raise a counter -> what it was; all that was written before is seen by who reads the counter after."""

    def codegen(context, builder, sig, args):
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), I64(1), "acq_rel")

    return types.int64(types.int64), codegen


@intrinsic
def _read(typingctx, address):
    """A counter, and with it all that was written before it was raised."""

    def codegen(context, builder, sig, args):
        return builder.load_atomic(pointer(builder, args[0], I64), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def _pause(typingctx):
    """Tell the core that this loop waits."""

    def codegen(context, builder, sig, args):
        machine = platform.machine().lower()
        if machine in ("x86_64", "amd64"):
            call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        elif machine in ("aarch64", "arm64"):
            call(builder, "llvm.aarch64.hint", ir.VoidType(), I32(1))
        return context.get_dummy_value()

    return types.void(), codegen


@inline
def no_stages(count):
    """Counters of stages that nobody has begun, and a line more, so that the first can start on a line."""
    return np.zeros((count + 1) * LINE, np.uint8)


@inline
def first_stage(counters):
    """Address of the first stage's counters; the next is `LINE` bytes on."""
    return (address(counters) + LINE - 1) // LINE * LINE


@inline
def claim(stage):
    """Take the next item of a stage; its number, or one too high if none is left."""
    return _add_one(stage)


@inline
def finish(stage):
    """Say that an item is done."""
    _add_one(stage + 8)


@inline
def meet(stage, items):
    """Wait until all items of a stage are done."""
    looks = 0
    while _read(stage + 8) < items:
        _pause()
        looks += 1
        if looks > PATIENCE:
            _hand_over()


@inline
def pieces(threads):
    """Items that a product is cut into."""
    return 1 if threads == 1 else 4 * threads


@inline
def piece(item, blocks, threads):
    """First row block of an item, and the one behind its last: `threads` large ones, then ever smaller ones."""
    if threads == 1:
        return 0, blocks
    level, lane = item // threads, item % threads
    left = blocks >> level
    here = left - (left >> 1) if level < 3 else left
    start = blocks - left
    return start + lane * here // threads, start + (lane + 1) * here // threads
