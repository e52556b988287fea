"""Figures of `evaluate`: against scikit-learn, numeric integration and hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from edge_agent.alarms import AlarmPolicy
from trainer.data import Clip
from trainer.evaluate import Scored, Truth, auc, events, figures, pauc, read_labels
from trainer.words import detection

cases = st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=4, max_size=60).filter(
    lambda rows: len({flag for _, flag in rows}) == 2
)


@given(cases)
def test_auc_equals_scikit_learns(rows):
    """AUC with ties is scikit-learn's to rounding."""
    scores, flags = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    assert auc(scores, flags) == pytest.approx(roc_auc_score(flags, scores), abs=1e-12)


@given(cases)
def test_pauc_is_the_integral_of_the_roc_curve_up_to_the_limit(rows):
    """pAUC equals numeric integration of scikit-learn's curve over [0, 0.1], divided by 0.1."""
    scores, flags = np.array([r[0] for r in rows], float), np.array([r[1] for r in rows])
    fpr, tpr, _ = roc_curve(flags, scores, drop_intermediate=False)
    # The middles of a fine grid never lie on a vertical step.
    grid = (np.arange(200_000) + 0.5) / 200_000 * 0.1
    expected = np.interp(grid, fpr, tpr).mean()
    assert pauc(scores, flags) == pytest.approx(expected, abs=1e-4)


def test_pauc_knows_chance_and_perfection():
    """A score that knows nothing has 0.05 at limit 0.1, a perfect one 1; this is not McClish's scale."""
    flags = np.arange(2000) % 2 == 1
    assert pauc(flags.astype(float), flags) == 1.0
    assert pauc(np.zeros(2000), flags) == pytest.approx(0.05)
    assert np.isnan(pauc(np.zeros(3), np.zeros(3, bool)))
    assert np.isnan(auc(np.zeros(3), np.ones(3, bool)))


def test_events_are_those_of_the_alarm_engine():
    """Three crossings of five raise one event at the third; two do not."""
    policy = AlarmPolicy(vote=(3, 5))
    assert events([0, 2, 2, 0, 0, 0, 0], range(7), policy) == []
    assert events([0, 2, 0, 2, 2, 2, 2], range(7), policy) == [4]


def scored(name, ratios, label=None, start=0.0, step=10.0):
    ratios = np.asarray(ratios, float)
    return Scored(Clip(name, label, None), ratios, ratios, start + step * (1 + np.arange(len(ratios))))


def test_a_snapshot_every_ten_minutes_stands_for_ten_minutes():
    """144 one-second snapshots at 10 min are a day, not two minutes, of normal data."""
    ratios = np.zeros(144)
    ratios[50:55] = 2.0
    result = figures([scored("a", ratios, "normal", step=600.0)], 1.024, None, AlarmPolicy())
    assert (result["crossings_per_day"], result["false_alarms_per_day"]) == (5.0, 1.0)


def test_false_alarms_are_counted_per_day_of_normal_data():
    """8640 normal windows of 10 s are one day; its crossings and its one voted event are the day's figures."""
    ratios = np.zeros(8640)
    ratios[[10, 100, 200, 201, 202]] = 2.0
    result = figures([scored("a", ratios, "normal")], 10.0, None, AlarmPolicy())
    assert (result["crossings_per_day"], result["false_alarms_per_day"]) == (5.0, 1.0)
    assert result["auc"] is None


def test_detection_delay_counts_from_the_onset_to_the_event():
    """A recording that turns at 50 s and crosses from 70 s on is detected 40 s after its onset."""
    truth = {"a": Truth(None, 50.0)}
    result = figures([scored("a", [0] * 6 + [2] * 6)], 10.0, truth, AlarmPolicy())
    assert result["detections"] == [
        {
            "found": True,
            "onset": "1970-01-01T00:00:50.000Z",
            "delay_s": 40.0,
            "event": "1970-01-01T00:01:30.000Z",
        }
    ]
    assert result["false_alarms"] == 0
    missed = figures([scored("a", [0] * 12)], 10.0, truth, AlarmPolicy())
    assert missed["detections"][0]["found"] is False


def test_labels_come_from_a_csv_and_mistakes_name_the_line(tmp_path):
    """file, label and onset are read; a wrong label is refused with its line."""
    from edge_agent.errors import RecordingError

    path = tmp_path / "labels.csv"
    path.write_text("file,label,onset\nx/a.wav,anomaly,\nb.wav,,1970-01-01T00:00:10Z\n")
    assert read_labels(path) == {"a.wav": Truth("anomaly"), "b.wav": Truth(None, 10.0)}
    path.write_text("file,label\na.wav,broken\n")
    with pytest.raises(RecordingError, match=r"labels.csv:2.*broken"):
        read_labels(path)


def test_recordings_without_a_label_are_counted_nowhere_else():
    """An unlabelled recording is neither normal nor anomalous: it changes no figure but `windows`."""
    named = [scored("a", [0, 2, 2, 2], "normal")]
    with_unknown = figures([*named, scored("b", [3, 3, 3, 3])], 10.0, None, AlarmPolicy())
    alone = figures(named, 10.0, None, AlarmPolicy())
    assert with_unknown.pop("windows") == 8
    assert alone.pop("windows") == 4
    assert with_unknown == alone


def test_a_detection_without_an_onset_counts_from_the_first_anomalous_window():
    """Only where the labels give an onset is it said that a fault began then."""
    rows = [scored("a", [0] * 6, "normal"), scored("b", [2] * 6, "anomaly")]
    found = figures(rows, 10.0, None, AlarmPolicy())["detections"][0]
    assert detection(found) == "event 30 s after the first anomalous window"
    turned = figures([scored("a", [0] * 6 + [2] * 6)], 10.0, {"a": Truth(None, 60.0)}, AlarmPolicy())
    assert detection(turned["detections"][0]) == "event 30 s after the fault began"
