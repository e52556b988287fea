"""Drift: one notice of a slow change below the limit, none of a stationary machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import healthy, make_indicator_bundle
from scipy.signal import lfilter

from edge_agent import bundle as bundles
from edge_agent import drift, offline, pipeline
from edge_agent.signals import Chunk

ROOT = Path(__file__).parents[1]
IMS = Path(os.environ.get("DATA") or ROOT.parent / "shared" / "data") / "ims_set2.npz"


def ar(n: int, r: float, seed: int) -> np.ndarray:
    """(n,) Gaussian of variance 1 with lag-1 correlation r."""
    noise = np.random.default_rng(seed).standard_normal(n + 300)
    return lfilter([np.sqrt(1.0 - r * r)], [1.0, -r], noise)[300:]


def watch(reference: drift.Reference, z: np.ndarray) -> list[tuple[int, drift.Told]]:
    """What is told of the log scores 0.3 z - 1, with the window it is told at; one window a second."""
    state, told = drift.Drift(), []
    for i, value in enumerate(z):
        state, one = drift.step(state, reference, float(np.exp(0.3 * value - 1.0)), float(i))
        if one is not None:
            told.append((i, one))
    return told


def reference(n: int, r: float, seed: int) -> drift.Reference | None:
    """Of n such scores."""
    return drift.reference(np.exp(0.3 * ar(n, r, seed) - 1.0))


@pytest.mark.parametrize("r", [0.0, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("n", [50, 200, 1000])
def test_quiet_on_a_stationary_machine(r: float, n: int) -> None:
    """Twelve machines of 3000 windows, correlated up to 0.9, give not one notice, however short the baseline."""
    for k in range(12):
        ref = reference(n, r, seed=100 * n + k)
        if ref is not None:
            assert watch(ref, ar(3000, r, seed=7 + k)) == []


def test_a_slow_rise_is_told_once_with_its_beginning() -> None:
    """A rise by 2.5 standard deviations over 500 windows from window 1000 on: one notice, since about then."""
    for k in range(5):
        ref = reference(1000, 0.6, seed=k)
        assert ref is not None
        z = ar(5000, 0.6, seed=50 + k) + np.clip((np.arange(5000) - 1000) / 500, 0.0, 2.5)
        told = watch(ref, z)
        assert len(told) == 1
        at, one = told[0]
        assert 1100 < at < 3000
        assert 950 <= one.since <= 1700
        assert one.way == drift.HIGHER
        assert one.factor > np.exp(0.3)


def test_a_fall_is_told_as_well() -> None:
    """Lower than ever is a change too: a sensor that comes loose."""
    ref = reference(1000, 0.0, seed=1)
    assert ref is not None
    told = watch(ref, ar(2000, 0.0, seed=2) - 2.5)
    assert [one.way for _, one in told] == [drift.LOWER]


def test_told_again_only_after_it_returned() -> None:
    """Away, back and away again are two notices; away for ever is one."""
    ref = reference(1000, 0.0, seed=3)
    assert ref is not None
    away, back = np.full(1500, 2.5), np.zeros(1500)
    assert len(watch(ref, ar(4500, 0.0, 4) + np.concatenate([away, back, away]))) == 2
    assert len(watch(ref, ar(4500, 0.0, 4) + 2.5)) == 1


def test_a_burst_is_no_drift() -> None:
    """Fifty windows far above normal are the alarm's affair, not drift's."""
    ref = reference(1000, 0.0, seed=5)
    assert ref is not None
    z = ar(1500, 0.0, seed=6)
    z[500:550] += 20.0
    assert watch(ref, z) == []


def test_correlation_time_of_known_processes() -> None:
    """White noise has about 1, AR(1) about (1 + r) / (1 - r)."""
    assert drift.correlation_time(ar(20000, 0.0, 1)) == pytest.approx(1.0, abs=0.15)
    assert drift.correlation_time(ar(20000, 0.6, 1)) == pytest.approx(4.0, rel=0.2)
    assert drift.correlation_time(ar(20000, 0.9, 1)) == pytest.approx(19.0, rel=0.25)
    assert drift.correlation_time(np.full(50, 3.0)) == 1.0
    assert drift.correlation_time(np.zeros(0)) == 1.0


def test_too_little_is_no_reference() -> None:
    """Few scores, equal ones, or many that are worth few independent ones cannot carry a watch."""
    assert drift.reference(np.full(100, 0.5)) is None
    assert drift.reference(np.arange(1.0, 11.0)) is None
    assert reference(60, 0.95, seed=2) is None


def test_a_score_of_zero_is_taken(tmp_path: Path) -> None:
    """A score of exactly 0 (an indicator of silence) counts as far below, and breaks nothing."""
    state, told = drift.step(drift.Drift(), drift.Reference(0.0, 0.1, 200), 0.0, 1.0)
    assert told is None
    assert np.isfinite(state.slow)


def test_in_the_pipeline_a_drifting_machine_gives_one_notice_and_no_alarm(tmp_path: Path) -> None:
    """RMS that grows by 7 % below the limit: one event of type notice, kind drift, with since; then silence."""
    ready = offline.pipeline_for(make_indicator_bundle(tmp_path / "rms"))
    state = pipeline.initial(ready)
    told, alarms = [], []
    for i in range(700):
        level = 1.0 + 0.07 * min(max(i - 100, 0) / 200.0, 1.0)
        chunk = Chunk(healthy(256, seed=i, level=level), t=1e9 + 0.256 * i, seq=i, fs_hz=1000.0)
        state, outcome = pipeline.step_chunk(ready, state, chunk, 1e9 + i)
        told += [(i, n) for n in outcome.notices]
        alarms += outcome.machine
        if i % 50 == 0:
            state = pipeline.load(ready, pipeline.dump(state, tail=False))
    assert alarms == []
    assert [n.extra["notice"]["kind"] for _, n in told] == ["drift"]
    event = pipeline.event(ready, told[0][1], None, True, state)
    assert event["type"] == "notice"
    assert event["severity"] is None
    assert "2001-09-09T01:46" < event["notice"]["since"] < event["ts"]
    assert event["notice"]["direction"] == "higher"


def test_what_lies_above_the_limit_is_not_drift(tmp_path: Path) -> None:
    """Three times as loud for ever is an alarm, and no notice beside it."""
    ready = offline.pipeline_for(make_indicator_bundle(tmp_path / "rms"))
    ready = replace(ready, reference=drift.reference(np.abs(1.0 + 0.05 * ar(400, 0.0, 9))))
    state, told, alarms = pipeline.initial(ready), [], []
    for i in range(400):
        chunk = Chunk(healthy(256, seed=i, level=3.0), t=1e9 + 0.256 * i, seq=i, fs_hz=1000.0)
        state, outcome = pipeline.step_chunk(ready, state, chunk, 1e9 + i)
        told += outcome.notices
        alarms += outcome.machine
    assert told == []
    assert next(t.type for t in alarms) == "new"


@pytest.mark.skipif(not IMS.is_file(), reason=f"{IMS} is not there")
def test_quiet_on_the_healthy_part_of_ims() -> None:
    """NASA IMS bearing 1, files 0 to 500, under the committed bundle: no drift is told."""
    ready = offline.pipeline_for(bundles.load(ROOT / "models" / "bearing-lstm-ae"))
    assert ready.reference is not None
    with np.load(IMS) as z:
        samples = z["x_milli"][:500, :, 0].astype(np.float32) / 1000.0
    state, told = pipeline.initial(ready), []
    for i, x in enumerate(samples):
        t = 1e9 + 600.0 * i
        state, outcome = pipeline.step_chunk(ready, state, Chunk(x[None], t=t, fs_hz=20000.0), t + 1.0)
        told += outcome.notices
    assert told == []
    assert state.drift.n > 450
