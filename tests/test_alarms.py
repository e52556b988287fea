"""The alarm engine, as stories and as laws over random scores."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import alarms, episodes
from edge_agent.alarms import ACKED, LATCHED, NORM, RTNUN, SHLVD, UNACK, Alarm, AlarmPolicy

KEY = "pi-07/pump-1-de"


def run(ratios, policy=AlarmPolicy(), alarm=Alarm(), t0=0.0, every_s=10.0):
    """Feed ratios at a fixed pace; returns the last alarm and (index, transition) pairs."""
    seen = []
    for i, ratio in enumerate(ratios):
        alarm, transition = alarms.step(alarm, policy, ratio, t0 + every_s * (i + 1), KEY)
        if transition:
            seen.append((i, transition))
    return alarm, seen


def kinds(seen):
    """(index, type, state, severity) of every transition."""
    return [(i, t.type, t.state, t.severity) for i, t in seen]


def test_three_of_five_raises_at_the_third_crossing():
    """Two crossings are not an alarm; the third within five windows is."""
    _, seen = run([0.5, 1.2, 0.5, 1.2, 0.5, 0.5, 1.2, 0.5])
    assert kinds(seen) == []
    _, seen = run([0.5, 1.2, 0.5, 1.2, 1.0])
    assert kinds(seen) == [(4, "new", UNACK, "warning")]


def test_alternating_scores_give_one_alarm_and_one_end():
    """1.2 and 0.5 of the limit in turn for 24 h, then 0.5: one `new`, one `end`, no chatter."""
    _, seen = run([1.2, 0.5] * 4320 + [0.5] * 20)
    assert [t.type for _, t in seen] == ["new", "end"]
    assert seen[0][1].alarm_id == seen[1][1].alarm_id


def test_deadband_holds_an_alarm_just_below_the_limit():
    """Ratios of 0.95 neither raise nor return an alarm; 0.89 five times returns it."""
    alarm, seen = run([1.2] * 5 + [0.95] * 50)
    assert alarm.state == UNACK
    alarm, seen = run([0.89] * 5, alarm=alarm, t0=1e4)
    assert kinds(seen) == [(4, "end", NORM, "warning")]


def test_an_alarm_that_healthy_scores_would_hold_is_foreseen():
    """Where healthy ratios lie above the return, an alarm stays for as long as they do; with the deadband that is named it ends.
    Where one in four does, it ends within the windows that Feller's formula gives, and nothing is foreseen."""
    rng = random.Random(1)
    narrow = [0.97 + 0.005 * rng.gauss(0, 1) for _ in range(2000)]
    share, deadband = alarms.stays(narrow, AlarmPolicy())
    assert share == 1.0
    assert 0.01 <= deadband <= 0.03
    raised, _ = run([1.2] * 5)
    assert run(narrow, alarm=raised, t0=100.0)[0].state == UNACK
    mended = AlarmPolicy(deadband=deadband)
    assert alarms.stays(narrow, mended) is None
    alarm, seen = run(narrow, mended, raised, t0=100.0)
    assert kinds(seen)[0][0] < 100
    assert alarm.state == NORM
    lengths = []
    for _ in range(300):
        _, seen = run([0.95 if rng.random() < 0.25 else 0.5 for _ in range(400)], alarm=raised, t0=100.0)
        lengths.append(seen[0][0] + 1)
    assert sum(lengths) / 300 == pytest.approx((0.75**-5 - 1) / 0.25, rel=0.15)
    assert alarms.stays([0.95, 0.5, 0.5, 0.5] * 10, AlarmPolicy()) is None
    assert alarms.stays([], AlarmPolicy()) is None
    assert alarms.stays([1.3] * 9, AlarmPolicy()) == (1.0, 0.0)


def test_severity_rises_once_and_never_falls_within_an_alarm():
    """A warning becomes an alarm at three of five above 1.5; falling back to a warning is not told."""
    _, seen = run([1.2] * 3 + [2.0] * 5 + [1.2] * 10)
    assert kinds(seen) == [(2, "new", UNACK, "warning"), (5, "update", UNACK, "alarm")]


def test_delays_count_in_event_time():
    """on_delay_s 60 and off_delay_s 120 at 10 s windows: six and twelve windows later."""
    policy = AlarmPolicy(vote=(1, 1), on_delay_s=60, off_delay_s=120)
    _, seen = run([1.2] * 10 + [0.5] * 20, policy)
    assert [(i, t.type) for i, t in seen] == [(6, "new"), (22, "end")]
    _, seen = run([1.2] * 6 + [0.5] + [1.2] * 6, policy)
    assert seen == [], "the delay starts again when the vote fails in between"


def test_a_fault_that_stays_is_told_once():
    """A step fault held for a week of 10 s windows is one event."""
    alarm, seen = run([0.4] * 10 + [1.3] * 60_480)
    assert len(seen) == 1
    assert alarm.state == UNACK


TABLE_STORIES = [
    # policy, commands and ratios in turn, expected (type, state)
    ({}, ["raise", "ack", "return"], [("new", UNACK), ("update", ACKED), ("end", NORM)]),
    ({"latching": True}, ["raise", "return", "reset"], [("new", UNACK), ("update", LATCHED), ("end", NORM)]),
    (
        {"latching": True},
        ["raise", "ack", "return"],
        [("new", UNACK), ("update", ACKED), ("update", LATCHED)],
    ),
    (
        {"latching": True},
        ["raise", "return", "raise", "return", "reset"],
        [("new", UNACK), ("update", LATCHED), ("update", UNACK), ("update", LATCHED), ("end", NORM)],
    ),
    ({"require_ack": True}, ["raise", "return", "ack"], [("new", UNACK), ("update", RTNUN), ("end", NORM)]),
    ({"require_ack": True}, ["raise", "ack", "return"], [("new", UNACK), ("update", ACKED), ("end", NORM)]),
    (
        {"require_ack": True},
        ["raise", "return", "raise", "ack", "return"],
        [("new", UNACK), ("update", RTNUN), ("update", UNACK), ("update", ACKED), ("end", NORM)],
    ),
    ({}, ["shelve", "raise", "return", "unshelve"], [("update", SHLVD), ("end", NORM)]),
    ({}, ["shelve", "raise", "unshelve"], [("update", SHLVD), ("new", UNACK)]),
    (
        {},
        ["raise", "shelve", "unshelve", "return"],
        [("new", UNACK), ("update", SHLVD), ("new", UNACK), ("end", NORM)],
    ),
    ({}, ["raise", "shelve", "return", "expire"], [("new", UNACK), ("update", SHLVD), ("end", NORM)]),
    ({}, ["raise", "shelve", "expire"], [("new", UNACK), ("update", SHLVD), ("new", UNACK)]),
]


@pytest.mark.parametrize(("policy", "story", "expected"), TABLE_STORIES, ids=lambda v: "-".join(map(str, v)))
def test_state_table(policy, story, expected):
    """Every row of the contract's table, reached by scores, a person or the clock."""
    alarm, told, t = Alarm(), [], 0.0
    for word in story:
        t += 1000
        if word in ("raise", "return"):
            alarm, seen = run([1.2 if word == "raise" else 0.2] * 5, AlarmPolicy(**policy), alarm, t)
            told += [s for _, s in seen]
        elif word == "expire":
            alarm, nothing = alarms.expire(alarm, t - 1, KEY)
            assert nothing is None, "before its time shelving does not end"
            alarm, transition = alarms.expire(alarm, t + 86400, KEY)
            told.append(transition)
        else:
            alarm, transition = alarms.command(alarm, word, t, KEY, by="kim", for_s=8 * 3600.0)
            told.append(transition)
    assert [(t.type, t.state) for t in told] == expected
    assert len({t.event_id for t in told}) == len(told)
    assert len({t.alarm_id for t in told}) == 1


def test_shelving_a_healthy_sensor_invents_no_warning():
    """Shelved and released while nothing is wrong, neither transition nor state has a severity."""
    alarm, shelved = alarms.command(Alarm(), "shelve", 1.0, KEY, for_s=60.0)
    assert (shelved.type, shelved.state, shelved.severity, alarm.severity) == ("update", SHLVD, None, None)
    alarm, released = alarms.expire(alarm, 61.0, KEY)
    assert (released.type, released.state, released.severity) == ("end", NORM, None)
    assert alarm.alarm_id is None


@pytest.mark.parametrize(("ratio", "severity"), [(1.2, "warning"), (2.0, "alarm")])
def test_what_is_raised_while_shelved_is_told_at_expiry(ratio, severity):
    """A fault that comes during the silence is `new` at its end, as grave as it became meanwhile."""
    alarm, _ = alarms.command(Alarm(), "shelve", 1.0, KEY, for_s=600.0)
    alarm, seen = run([ratio] * 5, alarm=alarm, t0=10.0)
    assert seen == []
    alarm, told = alarms.expire(alarm, 601.0, KEY)
    assert (told.type, told.state, told.severity, alarm.severity) == ("new", UNACK, severity, severity)


@pytest.mark.parametrize(
    ("state", "condition", "name", "says"),
    [
        (NORM, False, "ack", "the alarm is NORM: there is none to see to .*; possible now: shelve"),
        (NORM, False, "reset", "the alarm is NORM"),
        (UNACK, True, "reset", "possible now: ack, shelve"),
        (ACKED, True, "ack", "the alarm is ACKED"),
        (LATCHED, True, "reset", "the condition still holds"),
        (UNACK, True, "unshelve", "the alarm is UNACK"),
        (NORM, False, "explode", "explode refused"),
    ],
)
def test_a_refused_command_says_what_is_possible(state, condition, name, says):
    """Acknowledge is not reset, and neither is accepted where the table has no row for it."""
    with pytest.raises(alarms.Refused, match=says):
        alarms.command(Alarm(state=state, condition=condition), name, 1.0, KEY)


@pytest.mark.parametrize("for_s", [None, 0.0, -5.0, float("nan"), 1e12])
def test_shelving_without_an_end_is_refused(for_s):
    """Shelving always expires: no duration, or an absurd one, is refused."""
    with pytest.raises(alarms.Refused, match="expected seconds above 0"):
        alarms.command(Alarm(), "shelve", 1.0, KEY, for_s=for_s)


def test_who_acknowledged_is_kept_while_acknowledged():
    """by and why of an acknowledge stand in the state until the alarm moves on."""
    alarm, _ = run([1.2] * 5)
    alarm, transition = alarms.command(alarm, "ack", 60.0, KEY, by="kim", comment="bearing ordered")
    assert (alarm.acked_by, alarm.ack_why) == ("kim", "bearing ordered")
    assert (transition.by, transition.comment) == ("kim", "bearing ordered")
    alarm, _ = run([0.1] * 5, alarm=alarm, t0=100)
    assert (alarm.state, alarm.acked_by) == (NORM, None)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"vote": (6, 5)}, "1 <= k <= n"),
        ({"vote": (0, 5)}, "1 <= k <= n"),
        ({"on_delay_s": -1.0}, "0 to 1e6"),
        ({"deadband": 0.95}, "0 to 0.9"),
        ({"alarm_ratio": 0.5}, "at least warning_ratio"),
    ],
)
def test_policy_out_of_bounds_is_refused(setting, says):
    """Each setting states its bounds and the value that came."""
    with pytest.raises(ValueError, match=says):
        AlarmPolicy(**setting)


policies = st.builds(
    AlarmPolicy,
    vote=st.tuples(st.integers(1, 6), st.integers(1, 6)).map(lambda v: (min(v), max(v))),
    on_delay_s=st.sampled_from([0.0, 15.0, 40.0]),
    off_delay_s=st.sampled_from([0.0, 15.0, 40.0]),
    deadband=st.sampled_from([0.0, 0.1, 0.5]),
    latching=st.booleans(),
    require_ack=st.booleans(),
)


@given(policies, st.lists(st.floats(0.0, 3.0), max_size=150), st.integers(0, 150))
def test_stopping_and_going_on_changes_nothing(policy, ratios, cut):
    """A run cut in two at any window gives the transitions of the whole run, identities included."""
    whole = run(ratios, policy)
    first, seen = run(ratios[:cut], policy)
    last, more = run(ratios[cut:], policy, first, t0=10.0 * len(ratios[:cut]))
    assert whole == (last, seen + [(i + len(ratios[:cut]), t) for i, t in more])


@given(policies, st.lists(st.floats(0.0, 3.0), max_size=150))
def test_laws_of_the_engine(policy, ratios):
    """Events alternate lawfully, every `new` rests on k crossings, and identities never repeat."""
    alarm, seen = run(ratios, policy)
    k, n = policy.vote
    for i, transition in seen:
        recent = ratios[max(0, i - n + 1) : i + 1]
        if transition.type == "new":
            assert sum(r >= 1.0 for r in recent) >= k
        if transition.type == "end":
            assert all(r < 1.0 - policy.deadband for r in recent)
    assert len({t.event_id for _, t in seen}) == len(seen)
    for (_, a), (_, b) in itertools.pairwise(seen):
        assert (b.type == "new") == (a.type == "end")
        assert (a.alarm_id == b.alarm_id) == (a.type != "end")
    assert (alarm.alarm_id is None) == (alarm.state == NORM)


def test_identities_are_ulids_in_time_order():
    """26 characters of Crockford's alphabet; later sorts after earlier; other sensors differ."""
    early, late = alarms.ulid(1.7e9, "a"), alarms.ulid(1.7e9 + 1, "a")
    assert len(early) == 26
    assert set(early) <= set("0123456789ABCDEFGHJKMNPQRSTVWXYZ")
    assert early < late
    assert alarms.ulid(1.7e9, "b") != early
    assert alarms.ulid(1.7e9, "a") == early


def test_a_score_that_is_no_number_is_a_bug_not_a_vote():
    """NaN never reaches the vote: it raises instead of silently counting as normal."""
    with pytest.raises(ValueError, match="expected a finite number"):
        alarms.step(replace(Alarm(), ratios=(1.0,)), AlarmPolicy(), float("nan"), 1.0, KEY)


@pytest.mark.parametrize(("back_at", "new"), [(5, 11), (24, 8)])
def test_a_delay_goes_on_though_the_sensors_clock_goes_back(back_at: int, new: int) -> None:
    """A sensor that restarts in 1970 while a delay runs: the alarm comes, and ends, after the delay from then on; the fast twin agrees."""
    policy = AlarmPolicy(on_delay_s=60.0, off_delay_s=60.0)
    t = np.concatenate([1.79e9 + 10.0 * np.arange(back_at), 60.0 + 10.0 * np.arange(35 - back_at)])
    ratios, alarm, told = [*[2.0] * 20, *[0.2] * 15], Alarm(), []
    for i, (ratio, at) in enumerate(zip(ratios, t.tolist(), strict=True)):
        alarm, transition = alarms.step(alarm, policy, ratio, at, "t/a")
        told += [] if transition is None else [(i, transition.type)]
    assert told == [(new, "new"), (30, "end")]
    assert [(i, tr.type) for i, tr in episodes.replay(ratios, t, policy, "t/a")] == told


@pytest.mark.parametrize("more", [{"latching": True}, {"require_ack": True}])
def test_an_alarm_raised_again_is_as_grave_as_before(more: dict[str, bool]) -> None:
    """`alarm`, latched, then crossing by a little: still `alarm` under its id, and no rise of what did not fall."""
    policy, alarm, told = AlarmPolicy(**more), Alarm(), []
    ratios = [*[2.0] * 5, *[0.2] * 6, *[1.2] * 5, *[2.0] * 5]
    for i, ratio in enumerate(ratios):
        alarm, transition = alarms.step(alarm, policy, ratio, 10.0 * i, "t/a")
        if transition is not None:
            told.append((transition.type, transition.state, transition.severity, transition.alarm_id))
    assert [t[2] for t in told] == ["alarm"] * 3
    assert len({t[3] for t in told}) == 1
    assert [tr.type for _, tr in episodes.replay(ratios, 10.0 * np.arange(21), policy, "t/a")] == [t[0] for t in told]
