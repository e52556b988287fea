"""The three transforms of the features: those of scipy.fft, however they were loaded."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import fft

from edge_agent import fft as own


@pytest.mark.parametrize("shape", [(8192,), (63, 256), (3, 300), (2, 2, 17), (1,)])
def test_transforms_equal_scipys(shape: tuple[int, ...]) -> None:
    """rfft and the unscaled inverse give scipy.fft's numbers bit for bit, for any leading axes and length."""
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    spectrum = own.rfft(x)
    assert spectrum.dtype == np.complex64
    assert np.array_equal(spectrum, fft.rfft(x))
    assert np.array_equal(own.ifft(spectrum.copy()), fft.ifft(spectrum, norm="forward"))


@pytest.mark.parametrize(("rows", "n"), [(1, 16), (5, 300), (33, 9216), (3, 17)])
def test_real_inverse_equals_scipys(rows: int, n: int) -> None:
    """irfft writes scipy.fft's unscaled inverse into the array given, also where its rows lie apart."""
    x = own.rfft(np.random.default_rng(2).standard_normal((rows, n)).astype(np.float32))
    wide = np.zeros((rows, n + 8), np.float32)
    got = own.irfft(x.copy(), wide[:, :n])
    assert np.array_equal(got, fft.irfft(x, n, norm="forward"))
    assert np.array_equal(wide[:, :n], got)
    assert not wide[:, n:].any()


def test_rows_of_a_view_are_transformed_as_they_lie() -> None:
    """Overlapping frames, which are a strided view, give the same as their copy."""
    frames = np.lib.stride_tricks.sliding_window_view(np.arange(100, dtype=np.float32), 16)[::4]
    assert np.array_equal(own.rfft(frames), fft.rfft(frames.copy()))


def test_another_scipy_falls_back_to_its_public_functions() -> None:
    """A module with a changed signature or other numbers is refused; the public way gives the same numbers."""
    assert not own._understood(SimpleNamespace())
    assert not own._understood(SimpleNamespace(r2c=lambda x: x, c2c=lambda x: x))
    doubled = SimpleNamespace(
        r2c=lambda x, *_: 2 * fft.rfft(x), c2c=lambda x, *_: fft.ifft(x, norm="forward")
    )
    assert not own._understood(doubled)
    public = own._Public()
    assert own._understood(public)
    x = np.random.default_rng(1).standard_normal((2, 64)).astype(np.float32)
    spectrum = public.r2c(x, (-1,), True, 0, None, 1)
    assert np.array_equal(spectrum, own.rfft(x))
    back = np.empty_like(x)
    public.c2r(spectrum, (-1,), 64, False, 0, back, 1)
    assert np.array_equal(back, own.irfft(spectrum, np.empty_like(x)))
