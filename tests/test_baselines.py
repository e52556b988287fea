"""The training-free baselines against scikit-learn, on real features and hand-made cases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.covariance import EmpiricalCovariance, ShrunkCovariance
from sklearn.neighbors import NearestNeighbors

from edge_agent.errors import RecordingError
from edge_agent.features import FeatureSpec
from edge_agent.recordings import Recording
from edge_agent.signals import Chunk
from trainer import baselines
from trainer.baselines import Describer, Mahalanobis, Neighbours
from trainer.evaluate import auc

FS = 4000.0
SPEC = FeatureSpec(FS, 4000, 4000, 1, ())


def noise(n, *, seed=0, burst=0.0, channels=1, n_samples=4000):
    """(n, channels, n_samples) noise; `burst` adds a tone at 1500 Hz."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / FS
    x = rng.standard_normal((n, channels, n_samples)) * rng.uniform(0.8, 1.2, (n, 1, 1))
    return (x + burst * np.sin(2 * np.pi * 1500.0 * t)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbours_are_scikit_learns(k):
    """The mean distance to the k nearest standardised references is NearestNeighbors'."""
    rng = np.random.default_rng(0)
    train, test = rng.standard_normal((40, 6)) * [1, 10, 100, 1, 1, 1] + 5, rng.standard_normal((9, 6))
    standard = (train - train.mean(0)) / train.std(0)
    found = NearestNeighbors(n_neighbors=k).fit(standard).kneighbors((test - train.mean(0)) / train.std(0))[0]
    assert Neighbours.fit(train, k).score(test) == pytest.approx(found.mean(1))


@given(st.integers(2, 60), st.integers(1, 15), st.integers(0, 99))
def test_mahalanobis_is_scikit_learns_with_the_stated_shrinkage(n, d, seed):
    """For any number of windows and features the distance is ShrunkCovariance's at a = d / (n + d), and finite."""
    rng = np.random.default_rng(seed)
    train = rng.standard_normal((n, d)) @ rng.standard_normal((d, d))
    test = rng.standard_normal((4, d))
    fitted = Mahalanobis.fit(train)
    mean, std = train.mean(0), train.std(0)
    oracle = ShrunkCovariance(shrinkage=d / (n + d)).fit((train - mean) / std)
    assert fitted.shrinkage == d / (n + d)
    assert np.square(fitted.score(test)) == pytest.approx(oracle.mahalanobis((test - mean) / std), rel=1e-6)


def test_with_many_windows_the_shrinkage_is_hardly_there():
    """On 20 000 windows of independent features the distance is EmpiricalCovariance's to a per mille."""
    rng = np.random.default_rng(1)
    train, test = rng.standard_normal((20_000, 5)), 3.0 * rng.standard_normal((20, 5))
    plain = np.sqrt(EmpiricalCovariance().fit(train).mahalanobis(test))
    assert Mahalanobis.fit(train).score(test) == pytest.approx(plain, rel=1e-3)


@pytest.mark.parametrize("name", baselines.NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_tone_beside_the_noise_is_far_from_healthy(name, channels):
    """Windows with a tone never seen lie beyond all healthy windows that were not fitted to."""
    fitted = baselines.fit(
        name, FeatureSpec(FS, 4000, 4000, channels, ()), noise(60, seed=1, channels=channels)
    )
    healthy, faulty = (
        fitted.score(noise(20, seed=2 + i, burst=b, channels=channels)) for i, b in enumerate((0.0, 2.0))
    )
    assert auc(np.concatenate([healthy, faulty]), np.arange(40) >= 20) > 0.95


@pytest.mark.parametrize("name", baselines.NAMES)
def test_equal_windows_and_silence_give_finite_distances(name):
    """Healthy windows that are all the same, even silent ones, put a number on every other window."""
    for same in (np.zeros((5, 1, 4000), np.float32), np.repeat(noise(1), 5, axis=0)):
        fitted = baselines.fit(name, SPEC, same)
        assert fitted.score(same) == pytest.approx(0.0, abs=1e-6)
        other = fitted.score(noise(2, seed=8))
        assert np.isfinite(other).all()
        assert (other > 0.0).all()


@pytest.mark.parametrize("n_samples", [16, 100, 512, 1000])
def test_short_windows_have_a_mean_spectrum_too(n_samples):
    """Down to 16 samples the spectrum has as many bands as it can carry."""
    spec = FeatureSpec(FS, n_samples, n_samples, 1, ())
    fitted = baselines.fit("mean_spectrum_knn", spec, noise(8, n_samples=n_samples))
    assert np.isfinite(fitted.score(noise(3, seed=4, n_samples=n_samples))).all()


def test_recordings_score_as_their_windows_do():
    """A recording of five windows gives the vectors of those windows, with the time at which each ends."""
    x = noise(5, seed=3)
    chunk = Chunk(x.reshape(1, -1), t=1e9, fs_hz=FS)
    recording = Recording("a", Path("a"), FS, None, lambda: iter([chunk]))
    described = Describer.of(SPEC)(recording)
    assert described.end == pytest.approx(1e9 + np.arange(1, 6))
    for name in baselines.NAMES:
        features = baselines.features_of(name, SPEC)
        assert described.vectors[name] == pytest.approx(baselines.describe(features, x))


def test_too_little_to_compare_with_is_said():
    """Healthy recordings shorter than a window, and vectors too few for k, are refused with their numbers."""
    short = Recording(
        "a", Path("a"), FS, None, lambda: iter([Chunk(np.zeros((1, 100), np.float32), fs_hz=FS)])
    )
    with pytest.raises(RecordingError, match="1 healthy recordings hold 0 windows"):
        Describer.of(SPEC).fit([short])
    with pytest.raises(ValueError, match="at least 3"):
        Neighbours.fit(np.zeros((2, 4)), 3)
    with pytest.raises(ValueError, match="unknown"):
        baselines.features_of("isolation_forest", SPEC)
