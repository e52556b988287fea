"""Splits: whole recordings, machines and stretches of time; never windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.errors import RecordingError
from edge_agent.features import Context, Family, FeatureSpec
from trainer.data import Clip, Table
from trainer.recipe import Split
from trainer.splits import sequences, split


def table(sizes, labels=None, machines=None, hop=100) -> Table:
    labels = labels or [None] * len(sizes)
    machines = machines or [None] * len(sizes)
    clips = tuple(Clip(f"r{i}", label, m) for i, (label, m) in enumerate(zip(labels, machines, strict=True)))
    recording = np.repeat(np.arange(len(sizes)), sizes)
    start = np.concatenate([i * 1e6 + np.arange(n) * hop / 100.0 for i, n in enumerate(sizes)])
    spec = FeatureSpec(100.0, 100, hop, 1, (Family("time_domain"),))
    n = len(recording)
    return Table(spec, ("a",), np.zeros((n, 1, 1), np.float32), start, recording, clips, np.ones((1, 51)))


@given(
    st.lists(st.integers(1, 5), min_size=12, max_size=30),
    st.integers(0, 1000),
    st.floats(0.1, 0.4),
)
def test_no_recording_appears_in_two_parts(sizes, seed, validation):
    """Split by recording, train, validation, calibration and anomalies share no recording."""
    labels = ["anomaly" if i % 4 == 3 else "normal" for i in range(len(sizes))]
    t = table(sizes, labels)
    parts = split(t, Split(by="recording", anomalies=2), validation=validation, seed=seed)
    owners = [set(t.recording[p]) for p in (parts.train, parts.validation, parts.calibrate, parts.anomalies)]
    for i, a in enumerate(owners):
        for b in owners[i + 1 :]:
            assert not a & b
    assert all(t.clips[r].healthy for part in owners[:3] for r in part)
    assert len(owners[3]) == 2


def test_no_machine_appears_in_two_parts():
    """Split by machine, whoever trains does not calibrate."""
    t = table([3] * 12, machines=[f"id_{i % 4:02d}" for i in range(12)])
    parts = split(t, Split("machine", (0.0, 0.5), (0.5, 1.0)), validation=0.0, seed=1)
    a, b = ({t.clips[r].machine for r in t.recording[p]} for p in (parts.train, parts.calibrate))
    assert len(a) == len(b) == 2
    assert not a & b
    named = split(t, Split("machine", ("id_00",), ("id_03",)), validation=0.0, seed=1)
    assert {t.clips[r].machine for r in t.recording[named.calibrate]} == {"id_03"}


@given(st.integers(20, 60), st.sampled_from([10, 25, 50, 100]))
def test_a_cut_through_time_leaves_out_windows_that_overlap_it(n, hop):
    """No sample of a training window is in a calibration window, however the windows overlap."""
    t = table([n], hop=hop)
    parts = split(t, Split("time", (0.0, 0.5), (0.5, 1.0)), validation=0.2, seed=0)
    learnt = np.concatenate([parts.train, parts.validation])
    assert t.start[parts.calibrate].min() >= t.start[learnt].max() + 1.0 - 1e-9


def test_counts_name_windows_in_time_order():
    """train: [0, 150] and calibrate: [150, 200] are files 0 to 149 and 150 to 199."""
    parts = split(table([984]), Split("time", (0, 150), (150, 200)), validation=0.0, seed=0)
    assert (parts.train[[0, -1]].tolist(), parts.calibrate[[0, -1]].tolist()) == ([0, 149], [150, 199])


def test_histories_cross_no_recording_no_part_and_no_pause():
    """Every history is consecutive, of one recording, within its part and without a longer pause."""
    t = table([6, 6])
    assert sequences(t, np.arange(12), Context("windows", 4)).tolist() == [
        [0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [6, 7, 8, 9], [7, 8, 9, 10], [8, 9, 10, 11]
    ]  # fmt: skip
    assert sequences(t, np.array([0, 1, 3, 4, 5]), Context("windows", 3)).tolist() == [[3, 4, 5]]
    paused = t.start.copy()
    paused[3:6] += 100.0
    from dataclasses import replace

    late = replace(t, start=paused)
    assert sequences(late, np.arange(6), Context("windows", 3, max_gap_s=50.0)).tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]


def test_an_empty_part_is_an_error_that_says_how_to_mend_it():
    """One recording cannot be split by recording; the message names the split by time."""
    with pytest.raises(RecordingError, match="by: time"):
        split(table([50]), Split("recording"), validation=0.0, seed=0)


def test_fewer_anomalies_than_wanted_are_used_and_said():
    """Asked for five labelled anomalies where two are, both are used and a note says so."""
    t = table([1] * 12, ["anomaly"] * 2 + ["normal"] * 10)
    parts = split(t, Split("recording", anomalies=5), validation=0.0, seed=0)
    assert len(parts.anomalies) == 2
    assert "5" in parts.note
    assert "2" in parts.note


@pytest.mark.parametrize(("recordings", "expected"), [(20, 10), (15, 10), (60, 18), (12, 4)])
def test_calibration_grows_to_what_the_limit_needs_where_nothing_is_said(recordings, expected):
    """Of 20 clips ten calibrate instead of six; 60 keep 0.3; 12 cannot give ten beside a third that trains."""
    parts = split(
        table([1] * recordings), Split(), validation=0.15, seed=0, enough=lambda part: len(part) >= 10
    )
    assert len(parts.calibrate) == expected
    assert len(parts.train) + len(parts.validation) == recordings - expected
    assert parts.train.size


def test_a_split_that_was_asked_for_stays():
    """Given parts are kept, whether they suffice or not."""
    how = Split(train=(0.0, 0.7), calibrate=(0.7, 1.0))
    parts = split(table([1] * 20), how, validation=0.0, seed=0, enough=lambda part: len(part) >= 10)
    assert len(parts.calibrate) == 6


def test_one_long_recording_calibrates_on_enough_windows():
    """Where time is cut, calibration grows too: 10 of 24 windows instead of 7."""
    parts = split(table([24]), Split(), validation=0.0, seed=0, enough=lambda part: len(part) >= 10)
    assert (parts.by, len(parts.calibrate)) == ("time", 10)
