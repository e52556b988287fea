"""Bearing geometry to defect frequencies."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.bearings import Bearing

ZA2115 = Bearing(n_balls=16, ball_mm=8.407, pitch_mm=71.501, contact_deg=15.17)


def test_rexnord_za2115_of_the_ims_rig():
    """The published defect frequencies of NASA's test bearing come out of its geometry."""
    f = ZA2115.frequencies(2000 / 60)
    assert f.bpfo == pytest.approx(236.4, abs=0.05)
    assert f.bpfi == pytest.approx(296.9, abs=0.05)
    assert f.bsf == pytest.approx(139.9, abs=0.05)
    assert f.ftf == pytest.approx(14.8, abs=0.05)


def test_skf_6205_of_the_case_western_rig():
    """The multiples of shaft speed that Case Western publishes for its drive-end bearing come out."""
    f = Bearing(n_balls=9, ball_mm=7.940, pitch_mm=39.04).frequencies(1.0)
    assert (f.bpfo, f.bpfi, f.ftf) == pytest.approx((3.5848, 5.4152, 0.39828), abs=2e-3)
    assert 2 * f.bsf == pytest.approx(4.7135, abs=2e-3)


@given(
    n=st.integers(3, 40),
    share=st.floats(0.01, 0.99),
    pitch=st.floats(1.0, 1e4),
    deg=st.floats(0.0, 89.0),
    speed=st.floats(1e-3, 1e4),
)
def test_relations_that_hold_for_every_geometry(n, share, pitch, deg, speed):
    """Balls pass both races n times a turn together, and the outer race n times a turn of the cage."""
    ball = share * 0.99 * pitch * math.sin(math.pi / n)
    f = Bearing(n, ball, pitch, deg).frequencies(speed)
    assert f.bpfo + f.bpfi == pytest.approx(n * speed)
    assert f.bpfo == pytest.approx(n * f.ftf)
    assert f.ftf <= speed / 2 <= f.bpfi


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"ball_mm": 80.0}, "ball_mm is 80; it must be above 0 and below pitch_mm 71.501"),
        ({"ball_mm": 0}, "ball_mm is 0; it must be above 0"),
        ({"n_balls": 2}, "n_balls is 2; it must be a whole number, at least 3"),
        ({"n_balls": 9.5}, "n_balls is 9.5"),
        ({"n_balls": 40}, "do not fit on a pitch circle of 71.501 mm; ball_mm must be at most 5.61"),
        ({"contact_deg": 90}, "contact_deg is 90; it must be from 0 to below 90"),
        ({"pitch_mm": float("nan")}, "pitch_mm is nan; expected a finite number"),
        ({"pitch_mm": "71.5"}, "pitch_mm is '71.5'; expected a finite number"),
        ({"balls": 3}, "unknown key 'balls'; known: n_balls, ball_mm, pitch_mm, contact_deg"),
    ],
)
def test_impossible_bearings_are_refused(change, says):
    """A geometry that cannot exist is refused with the relation it breaks and the value it has."""
    good = {"n_balls": 16, "ball_mm": 8.407, "pitch_mm": 71.501, "contact_deg": 15.17}
    with pytest.raises(ValueError, match="bearing") as caught:
        Bearing.from_mapping({**good, **change})
    assert says in str(caught.value)


def test_missing_key_and_wrong_speed_are_refused():
    """A bearing without a pitch diameter and a shaft that stands still are refused by name."""
    with pytest.raises(ValueError, match="bearing lacks pitch_mm"):
        Bearing.from_mapping({"n_balls": 9, "ball_mm": 7.9})
    with pytest.raises(ValueError, match="expected a mapping"):
        Bearing.from_mapping("6205")
    with pytest.raises(ValueError, match="speed_hz is 0"):
        ZA2115.frequencies(0)
