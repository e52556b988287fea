"""Three transforms of scipy.fft without what `import scipy.fft` brings along.

That import loads scipy.special and, through it, numpy's test tools, f2py and random generators: 0.3 s, and
19 MiB of an agent that does with 68. The transforms themselves lie in one extension module of scipy, pypocketfft,
with the same functions in scipy 1.10, 1.14 and 1.17 (tried). It is loaded by its place; where a scipy keeps it
elsewhere or has changed it, scipy.fft does the same work at its price.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.signals import F32

C64 = NDArray[np.complex64]
C128 = NDArray[np.complex128]

_NAME = "scipy.fft._pocketfft.pypocketfft"


def rfft(x: F32) -> C64:
    """(..., n) float32 -> (..., n // 2 + 1) complex64, not scaled: 1, 0, 0, 0 gives 1, 1, 1."""
    result: C64 = _pocketfft.r2c(x, (-1,), True, 0, None, 1)
    return result


def ifft(x: C64) -> C64:
    """(..., n) complex64, which is overwritten -> its inverse transform times n: 1, 1, 1, 1 gives 4, 0, 0, 0."""
    result: C64 = _pocketfft.c2c(x, (-1,), False, 0, x, 1)
    return result


def irfft(x: C64, out: F32) -> F32:
    """(rows, n // 2 + 1) complex64 into `out`, (rows, n): the inverse of `rfft` times n; 1, 1, 1 gives 4, 0, 0, 0."""
    result: F32 = _pocketfft.c2r(x, (-1,), out.shape[-1], False, 0, out, 1)
    return result


class _Public:
    """What `rfft`, `ifft` and `irfft` use of pypocketfft, by way of scipy.fft."""

    def __init__(self) -> None:
        self._fft: Any = importlib.import_module("scipy.fft")

    def r2c(self, x: Any, *_: Any) -> Any:
        return self._fft.rfft(x)

    def c2c(self, x: Any, *_: Any) -> Any:
        return self._fft.ifft(x, norm="forward", overwrite_x=True)

    def c2r(self, x: Any, axes: Any, n: int, forward: bool, norm: int, out: Any, *_: Any) -> Any:
        out[...] = self._fft.irfft(x, n, norm="forward")
        return out


def _private() -> ModuleType | None:
    """scipy's extension module, loaded and registered as itself; None where it is not in its place."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    scipy = importlib.util.find_spec("scipy")
    for place in (scipy.submodule_search_locations or ()) if scipy else ():
        for suffix in EXTENSION_SUFFIXES:
            path = Path(place) / "fft" / "_pocketfft" / f"pypocketfft{suffix}"
            if path.is_file():
                loader = ExtensionFileLoader(_NAME, str(path))
                spec = importlib.util.spec_from_file_location(_NAME, path, loader=loader)
                if spec is None:
                    return None
                module = importlib.util.module_from_spec(spec)
                loader.exec_module(module)
                # A later `import scipy.fft` then finds it instead of loading it twice.
                return sys.modules.setdefault(_NAME, module)
    return None


def _understood(module: Any) -> bool:
    """Whether the functions take these arguments and give what the docstrings above say."""
    try:
        spectrum = module.r2c(np.array([1, 0, 0, 0], np.float32), (-1,), True, 0, None, 1)
        ones = np.ones(4, np.complex64)
        back = module.c2c(ones, (-1,), False, 0, ones, 1)
        real = np.empty(4, np.float32)
        module.c2r(np.ones(3, np.complex64), (-1,), 4, False, 0, real, 1)
    except Exception:  # noqa: BLE001 - a changed signature fails in any way, and scipy.fft takes over
        return False
    return bool(
        spectrum.dtype == back.dtype == np.complex64
        and np.array_equal(spectrum, [1, 1, 1])
        and np.array_equal(back, [4, 0, 0, 0])
        and np.array_equal(real, [4, 0, 0, 0])
    )


def _load() -> Any:
    try:
        module = _private()
    except ImportError:
        module = None
    return module if module is not None and _understood(module) else _Public()


_pocketfft = _load()
