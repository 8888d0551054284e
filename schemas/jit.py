"""The one place that decides how kernels compile.

A kernel is a free function over arrays: outputs last and allocated by the caller, no exceptions
inside, no Python objects.  Each has a slow, obvious twin with the same signature, which is its
specification in tests.  ``NEVSTREAM_KERNELS`` chooses what the whole system runs on:

``compiled``
    numba, cached on disk (the default)
``bounds``
    numba with bounds checking: slower, an out-of-bounds read becomes an ``IndexError``
``reference``
    the twins, plain Python: for debugging and for proving that twin and kernel agree

The on-disk cache races between processes that compile the same kernel at once (numba issues 4807
and 10128), so the parent process calls :func:`warm` before it starts workers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import numba

from schemas import kernel_cache

F = TypeVar("F", bound=Callable[..., Any])

MODES = ("compiled", "bounds", "reference")
MODE = kernel_cache.mode()
if MODE not in MODES:
    raise RuntimeError(
        f"NEVSTREAM_KERNELS={MODE!r} is not a kernel mode: set it to one of {', '.join(MODES)}, or unset it"
    )

_CACHE_DIR = kernel_cache.prepare(MODE)
if _CACHE_DIR is not None:
    numba.config.CACHE_DIR = str(_CACHE_DIR)  # type: ignore[attr-defined]

# error_model="numpy": a division by zero gives inf/nan instead of raising inside a kernel.
# fastmath stays off: it would let NaN checks be optimised away.
_OPTIONS: dict[str, Any] = {
    "cache": _CACHE_DIR is not None,  # no place to write to: every process compiles for itself
    "nogil": True,
    "error_model": "numpy",
    "boundscheck": MODE == "bounds",
}


def compiled(function: F) -> F:
    """Compile ``function`` whatever the mode (tests compare it with its twin; helpers of kernels)."""
    return numba.njit(**_OPTIONS)(function)  # type: ignore[no-any-return]


def kernel(twin: Callable[..., Any]) -> Callable[[F], F]:
    """Decorate a kernel that has ``twin`` as its plain-Python specification.

    Returns the compiled function, or ``twin`` itself under ``NEVSTREAM_KERNELS=reference``.  The
    compiled one stays reachable for tests as ``kernel.compiled``, the twin as ``kernel.twin``.
    """

    def decorate(function: F) -> F:
        fast = compiled(function)
        chosen: Any = twin if MODE == "reference" else fast
        chosen.compiled = fast
        chosen.twin = twin
        return chosen  # type: ignore[no-any-return]

    return decorate


def warm(steps: Iterable[tuple[str, Callable[[], None]]], report: Callable[[str, float], None]) -> float:
    """Run each (name, function) once so that its kernels are compiled and cached.

    ``report`` is told each step's name and seconds as it ends.  Returns the seconds in all.
    """
    total = 0.0
    for name, step in steps:
        begun = time.perf_counter()
        step()
        took = time.perf_counter() - begun
        total += took
        report(name, took)
    return total
