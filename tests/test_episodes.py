"""The fast twin of the alarm engine against the engine itself, and what differs between two lists of alarms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import alarms, episodes
from edge_agent.alarms import Alarm, AlarmPolicy
from edge_agent.episodes import Change, Spell

KEY = "pi-07/pump-1-de"
RATIOS = st.sampled_from([0.2, 0.8, 0.89, 0.9, 0.95, 1.0, 1.2, 1.49, 1.5, 3.0])
POLICIES = st.builds(
    AlarmPolicy,
    vote=st.sampled_from([(1, 1), (1, 3), (2, 2), (3, 5), (5, 5), (2, 100)]),
    on_delay_s=st.sampled_from([0.0, 10.0, 12.5, 60.0]),
    off_delay_s=st.sampled_from([0.0, 10.0, 33.0, 60.0]),
    deadband=st.sampled_from([0.0, 0.1, 0.3, 0.9]),
    warning_ratio=st.sampled_from([0.9, 1.0, 1.2]),
    alarm_ratio=st.sampled_from([1.2, 1.5, 3.0]),
    latching=st.booleans(),
    require_ack=st.booleans(),
)
#: Steps from window to window: regular, a hop of no whole millisecond, and gaps.
STEPS = st.lists(st.sampled_from([10.0, 10.0, 10.0, 1 / 3, 47.0, 3600.0]), min_size=1, max_size=400)


def folded(ratios, t, policy, breaks=()):
    """The slow twin: `alarms.step` window by window."""
    alarm, out = Alarm(), []
    for i, (ratio, end) in enumerate(zip(ratios, t, strict=True)):
        if i in breaks:
            alarm = alarms.Alarm(**{**alarm.__dict__, "ratios": (), "raise_since": None, "return_since": None})
        alarm, transition = alarms.step(alarm, policy, ratio, end, KEY)
        if transition is not None:
            out.append((i, transition))
    return out


@given(STEPS, POLICIES, st.data())
def test_the_fast_engine_tells_what_the_engine_tells(steps, policy, data):
    """Over random scores, gaps, policies and forgotten votes every transition is the same, identity included."""
    t = 1.79e9 + np.cumsum(steps)
    calm = data.draw(st.sampled_from([1, 5, 20]))
    ratios = np.repeat(data.draw(st.lists(RATIOS, min_size=len(steps), max_size=len(steps))), calm)[: len(steps)]
    breaks = data.draw(st.sets(st.integers(0, len(steps)), max_size=3))
    slow = folded(ratios.tolist(), t.tolist(), policy, breaks)
    assert episodes.replay(ratios, t, policy, KEY, breaks) == slow
    if not (policy.latching or policy.require_ack):
        ends = [i for i, tr in slow if tr.type == "end"]
        found = episodes.spells(ratios, t, policy, breaks)
        assert [s.begin for s in found] == [t[i] for i, tr in slow if tr.type == "new"]
        assert [s.end for s in found if s.end is not None] == [t[i] for i in ends]


@given(STEPS, POLICIES, st.lists(RATIOS, min_size=400, max_size=400))
def test_stored_times_give_the_same_alarms(steps, policy, ratios):
    """Times rounded to milliseconds, as rows have them, change no transition's window, type or identity."""
    t, x = 1.79e9 + np.cumsum(steps), ratios[: len(steps)]
    stored = np.round(t, 3)
    of_rows = [(i, tr.event_id, tr.type, tr.state) for i, tr in episodes.replay(x, stored, policy, KEY)]
    assert of_rows == [(i, tr.event_id, tr.type, tr.state) for i, tr in folded(x, t.tolist(), policy)]


def test_delays_of_a_hop_of_no_whole_millisecond():
    """At 3 windows a second 60 s are 180 windows, whatever the 53 bits of a time since 1970 make of it."""
    t = 1.79e9 + np.arange(400) / 3.0
    policy = AlarmPolicy(vote=(1, 1), on_delay_s=60.0)
    assert episodes.onsets(np.full(400, 1.2), t, policy) == [180]
    assert [i for i, _ in folded([1.2] * 400, t.tolist(), policy)] == [180]


def test_a_ratio_that_is_no_number_is_refused():
    """NaN among the ratios is a mistake of the caller, as in the engine."""
    with pytest.raises(ValueError, match="ratio is nan"):
        episodes.replay([1.0, float("nan")], [0.0, 1.0], AlarmPolicy(), KEY)
    assert episodes.replay([], [], AlarmPolicy(), KEY) == []


def test_a_shorter_vote_gains_and_a_longer_one_loses():
    """Vote 1 of 1 over single spikes gives an alarm each; 3 of 5 gives none of them."""
    t = np.arange(0.0, 1000.0, 10.0)
    x = np.where(np.arange(100) % 20 == 10, 2.0, 0.5)
    short, long = (episodes.spells(x, t, AlarmPolicy(vote=vote)) for vote in ((1, 1), (3, 5)))
    assert [s.begin for s in short] == [100.0, 300.0, 500.0, 700.0, 900.0]
    assert {(c.kind, c.t) for c in episodes.compare(long, short, 0.0, 10.0)} == {("gained", s.begin) for s in short}
    assert [c.kind for c in episodes.compare(short, long, 200.0, 10.0)] == ["lost"] * 4


def test_what_has_moved_and_what_has_not():
    """A change of less than a window is none; of one window or of severity it is; what began before `since` begins there."""
    before = [Spell(0.0, 50.0), Spell(100.0, 200.0), Spell(300.0, 400.0), Spell(500.0, None)]
    after = [Spell(20.0, 55.0), Spell(109.0, 200.0), Spell(320.0, 400.0), Spell(500.0, None, "alarm")]
    assert episodes.compare(before, after, 40.0, 10.0) == [
        Change("moved", before[2], after[2]),
        Change("moved", before[3], after[3]),
    ]
    assert episodes.compare(before, before, 0.0, 10.0) == []


def test_two_that_become_one():
    """Two alarms that a longer off delay joins are one that has moved and one that is lost."""
    before, after = [Spell(0.0, 50.0), Spell(80.0, 100.0)], [Spell(0.0, 120.0)]
    assert [c.kind for c in episodes.compare(before, after, 0.0, 10.0)] == ["moved", "lost"]
    assert [c.kind for c in episodes.compare(after, before, 0.0, 10.0)] == ["moved", "gained"]


def test_chattering_is_three_within_sixty_windows():
    """Three raises within 60 windows chatter, two do not, and neighbouring bursts are one."""
    assert episodes.chattering([0.0, 300.0, 600.0], 10.0) == [(0.0, 600.0, 3)]
    assert episodes.chattering([0.0, 300.0, 601.0], 10.0) == []
    assert episodes.chattering([0.0, 10.0, 20.0, 30.0, 90.0, 1e4, 1e4 + 1, 1e4 + 2], 0.1) == [
        (0.0, 30.0, 4),
        (1e4, 1e4 + 2, 3),
    ]
