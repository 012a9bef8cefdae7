"""Compiled functions that others call by a symbol, so that each becomes machine code once.

Numba links LLVM's code of a function into everything that calls it, and optimises it there again. A loop over `prange`
alone makes four callers out of one. Those that call a function of `apart` only name it, and the process is told where
its machine code lies before they are linked.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding
from numba import njit
from numba.core import cgutils
from numba.core.compiler import CompileResult
from numba.extending import intrinsic

_PREFIX = "andes_numba."
_COMPILED: dict[str, CompileResult] = {}
"""Symbol -> what this process compiled for it."""

_LOADED: dict[str, CompileResult] = {}
"""Symbol -> what came from disk; code that names it stays, so it does too."""


def apart(function: Callable[..., Any]) -> Any:
    """For functions that only compiled ones call, by a symbol; arguments must be given by position."""
    compiled = njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)

    def call(typingctx: Any, *kinds: Any) -> Any:
        symbol = _PREFIX + hashlib.sha256(f"{function.__module__}.{function.__qualname__}{kinds}".encode()).hexdigest()
        compiled.compile(kinds)
        result = compiled.overloads[kinds]
        if symbol not in _COMPILED:
            _COMPILED[symbol] = result
            _tell(symbol, result)

        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            kind = context.call_conv.get_function_type(sig.return_type, sig.args)
            callee = cgutils.get_or_insert_function(builder.module, kind, symbol)
            status, value = context.call_conv.call_function(builder, callee, sig.return_type, sig.args, args)
            with cgutils.if_unlikely(builder, status.is_error):
                context.call_conv.return_status_propagate(builder, status)
            return value

        return result.signature.return_type(*kinds), codegen

    # Numba binds arguments to what this says
    context = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    call.__signature__ = inspect.Signature([context, *inspect.signature(function).parameters.values()])  # type: ignore[attr-defined]
    call.__name__ = function.__name__
    return intrinsic(call)


def _tell(symbol: str, result: CompileResult) -> None:
    """Tell LLVM where the machine code of a symbol lies."""
    llvmlite.binding.add_symbol(symbol, result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


def _named(result: CompileResult) -> Iterator[str]:
    """Symbols that a function compiled here calls, and those that these call: each behind what it calls itself."""
    for function in result.library._get_module_for_linking().functions:
        if function.is_declaration and function.name.startswith(_PREFIX):
            yield from _named(_COMPILED[function.name])
            yield function.name


def reduced(result: CompileResult) -> Any:
    """A function compiled here as it is kept on disk, with all that it calls by a symbol."""
    parts = {symbol: _machine_code(_COMPILED[symbol]) for symbol in _named(result)}
    return parts, _machine_code(result)


def rebuilt(context: Any, kept: Any) -> CompileResult:
    """The inverse of `reduced`."""
    parts, whole = kept
    for symbol, part in parts.items():
        if symbol not in _COMPILED and symbol not in _LOADED:
            _LOADED[symbol] = CompileResult._rebuild(context, *part)
            _tell(symbol, _LOADED[symbol])
    return CompileResult._rebuild(context, *whole)


def _machine_code(result: CompileResult) -> Any:
    """A compiled function without what calls it: of LLVM's code only the names, by which Numba finds machine code."""
    (name, kind, (machine_code, bitcode)), *rest = result._reduce()
    module = llvmlite.binding.parse_bitcode(bitcode)
    functions = (f'define void @"{f.name}"() {{ ret void }}' for f in module.functions if not f.is_declaration)
    variables = (f'@"{v.name}" = global i8 0' for v in module.global_variables if not v.is_declaration)
    names = llvmlite.binding.parse_assembly("\n".join([*functions, *variables]))
    return (name, kind, (machine_code, names.as_bitcode())), *rest
