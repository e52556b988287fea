"""Checks that every feature family passes, found by its folder: a new file is held to them unasked.

A family whose `build` needs parameters offers some in a module constant `EXAMPLE`.
"""

from __future__ import annotations

import importlib
import inspect

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from edge_agent.features import build, kinds

FS, N = 20000.0, 8192


def variants():
    more = {
        "time_domain": [{"log": True}, {"remove_dc": True}, {"names": ["abs_mean"]}],
        "spectral": [
            {"mode": "psd"},
            {"mode": "psd", "n_bands": 1050, "range_hz": [1, 2000], "log": True},
            {"bands": [[0, 100], [50, 10000]], "n_fft": 1000},
            {"mode": "stft_means", "log": True},
        ],
        "envelope": [{"relative": True}, {"pick": "sum", "log": True}, {"n_harmonics": 12}],
        "log_mel": [
            {"deltas": 2, "energy": True, "preemphasis": 0.97},
            {"spectrum": "magnitude", "center": True},
            {"mfsc": 60},
        ],
        "scalogram": [
            {"size": 224},
            {"z_score": False, "normalise": "none"},
            {"size": 50, "scales": 40, "log": True},
            {"normalise": "none", "log": True},
        ],
        "vector1200": [{"log": True}],
        "image3": [{"size": 35}],
        "raw": [{"frame": 100, "decimate": 3}],
    }
    for kind in kinds():
        example = dict(getattr(importlib.import_module(f"edge_agent.features.{kind}"), "EXAMPLE", {}))
        for extra in ({}, *more.get(kind, [])):
            yield pytest.param(
                kind, {**example, **extra}, id=f"{kind}-{'-'.join(map(str, extra)) or 'default'}"
            )


every_family = pytest.mark.parametrize(("kind", "params"), list(variants()))


@every_family
def test_finite_on_every_finite_input(kind, params):
    """Silence, constants, one impulse, the largest float32 and the smallest all give finite features."""
    extractor = build(kind, FS, N, params)
    impulse = np.zeros(N, np.float32)
    impulse[N // 2] = 1.0
    largest = np.finfo(np.float32).max
    loud = np.where(np.arange(N) % 3 == 0, largest, -largest).astype(np.float32)
    inputs = {
        "silence": np.zeros(N, np.float32),
        "minus zero": np.full(N, -0.0, np.float32),
        "constant": np.full(N, 0.1, np.float32),
        "large constant": np.full(N, -1e30, np.float32),
        "impulse": impulse,
        "largest": loud,
        "smallest": np.full(N, np.finfo(np.float32).smallest_subnormal),
    }
    with np.errstate(all="raise", under="ignore"):
        for name, x in inputs.items():
            assert np.isfinite(extractor(x)).all(), name


@every_family
def test_shape_dtype_and_names(kind, params):
    """The result is (..., n_frames, F) float32 with one unique name a feature, for any leading axes."""
    extractor = build(kind, FS, N, params)
    x = np.random.default_rng(1).standard_normal((2, 3, N)).astype(np.float32)
    v = extractor(x)
    assert v.shape == (2, 3, extractor.n_frames, len(extractor.names))
    assert v.dtype == np.float32
    assert extractor(x[0, 0]).shape == v.shape[2:]
    assert extractor(x[:0]).shape == (0, *v.shape[1:])
    assert len(set(extractor.names)) == len(extractor.names)


@every_family
def test_batch_equals_one_by_one(kind, params):
    """Many windows at once give bit for bit what they give one by one, whatever their memory layout."""
    extractor = build(kind, FS, N, params)
    stream = np.random.default_rng(2).standard_normal((5 * N // 2, 2)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(stream, N, axis=0)[:: N // 2]  # (4, 2, N), strided
    batch = extractor(windows)
    one_by_one = [[extractor(np.ascontiguousarray(x)) for x in pair] for pair in windows]
    assert_array_equal(batch, np.array(one_by_one))


@every_family
def test_input_is_left_alone_and_calls_do_not_depend_on_each_other(kind, params):
    """An extractor neither writes into the window nor remembers the one before."""
    extractor = build(kind, FS, N, params)
    x, y = np.random.default_rng(3).standard_normal((2, N)).astype(np.float32)
    kept = x.copy()
    first = extractor(x).copy()
    extractor(y)
    assert_array_equal(extractor(x), first)
    assert_array_equal(x, kept)


@every_family
def test_wrong_window_length_is_refused(kind, params):
    """A window of another length is refused with both lengths, never padded or cut."""
    with pytest.raises(ValueError, match=rf"\({N - 1},\).*{N}"):
        build(kind, FS, N, params)(np.zeros(N - 1, np.float32))


@pytest.mark.parametrize("kind", kinds())
def test_unknown_parameter_is_refused(kind):
    """A parameter that the family does not have is refused with the known ones."""
    with pytest.raises(ValueError, match="unknown parameter 'colour'; known: "):
        build(kind, FS, N, {"colour": 1})


@pytest.mark.parametrize("kind", kinds())
def test_parameters_of_the_wrong_type_are_refused(kind):
    """Any parameter given as a nonsense object raises ValueError that names it, never another exception."""
    module = importlib.import_module(f"edge_agent.features.{kind}")
    example = dict(getattr(module, "EXAMPLE", {}))
    for name in set(inspect.signature(module.build).parameters) - {"fs_hz", "n_samples"}:
        for nonsense in ("nonsense", -7, [1, 2, 3], {"nonsense": 1}):
            with pytest.raises(ValueError) as caught:
                build(kind, FS, N, {**example, name: nonsense})
            assert name in str(caught.value) or "nonsense" in str(caught.value), (name, nonsense)


def test_unknown_family_is_refused():
    """A family that does not exist is refused with the known ones."""
    with pytest.raises(ValueError, match=r"'spectrum' is unknown; known: .*time_domain"):
        build("spectrum", FS, N, {})
