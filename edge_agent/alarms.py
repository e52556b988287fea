"""Scores in, alarm transitions out: the state machine as a table (ISA-18.2 words).

    ratios ─► vote k of n ─► raise held on_delay_s ──► condition on ─┐
              none of n at or above limit*(1-deadband)               ├─► TABLE ─► next state, event
              held off_delay_s ──────────────────────► condition off ┘
    ack, reset, shelve, unshelve (a person) and expiry (the clock) ──┘

Pure: time and identity come in as arguments, `step` and `command` return the next value.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edge_agent.values import replace

NORM, UNACK, ACKED, RTNUN, LATCHED, SHLVD = "NORM", "UNACK", "ACKED", "RTNUN", "LATCHED", "SHLVD"
STATES = (NORM, UNACK, ACKED, RTNUN, LATCHED, SHLVD)
WARNING, ALARM = "warning", "alarm"

#: (state, input) -> (next state, event type). Inputs that a state does not list change nothing; a
#: command that a state does not list is refused. "return" is split by policy, "expire" and
#: "unshelve" by whether the condition holds.
TABLE: dict[tuple[str, str], tuple[str, str]] = {
    (NORM, "raise"): (UNACK, "new"),
    (UNACK, "severity"): (UNACK, "update"),
    (ACKED, "severity"): (ACKED, "update"),
    (UNACK, "ack"): (ACKED, "update"),
    (UNACK, "return_latching"): (LATCHED, "update"),
    (ACKED, "return_latching"): (LATCHED, "update"),
    (UNACK, "return_require_ack"): (RTNUN, "update"),
    (ACKED, "return_require_ack"): (NORM, "end"),
    (UNACK, "return_plain"): (NORM, "end"),
    (ACKED, "return_plain"): (NORM, "end"),
    (RTNUN, "ack"): (NORM, "end"),
    (LATCHED, "reset"): (NORM, "end"),
    (RTNUN, "raise"): (UNACK, "update"),
    (LATCHED, "raise"): (UNACK, "update"),
    **{(state, "shelve"): (SHLVD, "update") for state in STATES},
    (SHLVD, "expire_raised"): (UNACK, "new"),
    (SHLVD, "expire_normal"): (NORM, "end"),
}

#: What the votes of a window can turn; "return" is split by policy in the table.
RAISE, RETURN, SEVERITY = "raise", "return", "severity"
COMMANDS = ("ack", "reset", "shelve", "unshelve")
#: Event types of the machine alarm; all others are told beside it and change nothing of it.
MACHINE = ("new", "update", "end")
QUALITY, NOTICE = "quality", "notice"
#: Healthy windows within which an alarm should end by itself.
STAYS = 500


@dataclass(frozen=True)
class AlarmPolicy:
    """When an alarm comes and goes. Ratios are score / threshold, delays in s of event time.

    vote     : (k, n): at least k of the last n scored windows at or above warning_ratio
    deadband : share of the limit that the ratio must fall below it to return
    """

    vote: tuple[int, int] = (3, 5)
    on_delay_s: float = 0.0
    off_delay_s: float = 0.0
    deadband: float = 0.1
    warning_ratio: float = 1.0
    alarm_ratio: float = 1.5
    latching: bool = False
    require_ack: bool = False

    def __post_init__(self) -> None:
        k, n = self.vote
        _check("vote", self.vote, 1 <= k <= n <= 100, "[k, n] with 1 <= k <= n <= 100")
        for name in ("on_delay_s", "off_delay_s"):
            value = getattr(self, name)
            _check(name, value, 0 <= value <= 1e6, "0 to 1e6 s")
        _check("deadband", self.deadband, 0 <= self.deadband <= 0.9, "0 to 0.9 of the limit")
        _check("warning_ratio", self.warning_ratio, 0 < self.warning_ratio <= 1e6, "above 0, at most 1e6")
        _check(
            "alarm_ratio",
            self.alarm_ratio,
            self.warning_ratio <= self.alarm_ratio <= 1e6,
            f"at least warning_ratio ({self.warning_ratio:g}), at most 1e6",
        )


@dataclass(frozen=True)
class Alarm:
    """One sensor's alarm, whole: what a restart needs to go on.

    ratios       : of the last n scored windows, oldest first
    raise_since  : event time at which the vote began to hold, None while it does not
    return_since : event time at which the return condition began to hold
    condition    : whether the machine is abnormal now, by vote, delay and deadband; goes on while shelved
    since        : event time at which this alarm was raised
    n_events     : transitions so far; makes every event_id unique
    """

    state: str = NORM
    severity: str | None = None
    alarm_id: str | None = None
    since: float | None = None
    ratios: tuple[float, ...] = ()
    raise_since: float | None = None
    return_since: float | None = None
    condition: bool = False
    shelved_until: float | None = None
    acked_by: str | None = None
    ack_why: str | None = None
    n_events: int = 0


@dataclass(frozen=True)
class Transition:
    """One step of the table, or something told beside it, once: the event before it has its measured values.

    severity : None while the sensor is shelved and nothing was wrong with it, and for what is told beside
    extra    : further fields of the event; None where there are none
    """

    type: str
    event_id: str
    alarm_id: str
    t: float
    state: str
    severity: str | None
    since: float
    by: str | None = None
    comment: str | None = None
    extra: dict[str, Any] | None = None


class Refused(Exception):  # noqa: N818 - an answer to a person, not a fault
    """A command that the present state does not allow; the text says what would be possible."""


def step(
    alarm: Alarm, policy: AlarmPolicy, ratio: float, t: float, key: str
) -> tuple[Alarm, Transition | None]:
    """Take one scored window.

    ratio : score / threshold, finite; t : end of the window, s; key : "agent/sensor", for identities.
    At most one transition comes of one window. The state is NORM again after return, never straight
    from a raise, so a window cannot both raise and end an alarm.
    """
    if not math.isfinite(ratio):
        raise ValueError(f"ratio is {ratio!r}; expected a finite number: only scored windows are voted on")
    k, n = policy.vote
    ratios = (*alarm.ratios, ratio)[-n:]
    voted = sum(r >= policy.warning_ratio for r in ratios) >= k
    # Where the votes were forgotten (another limit, another bundle), one low window is no return.
    clear = len(ratios) == n and all(r < return_ratio(policy) for r in ratios)
    # Where the sensor's clock was set back, a delay counts from the new time: it must not wait for the old one to come again.
    raise_since = (t if alarm.raise_since is None else min(alarm.raise_since, t)) if voted else None
    return_since = (t if alarm.return_since is None else min(alarm.return_since, t)) if clear else None
    alarm = replace(alarm, ratios=ratios, raise_since=raise_since, return_since=return_since)
    grave = sum(r >= policy.alarm_ratio for r in ratios) >= k
    if not alarm.condition and _held(raise_since, t, policy.on_delay_s):
        return turn(alarm, policy, RAISE, t, key, grave)
    if alarm.condition and _held(return_since, t, policy.off_delay_s):
        return turn(alarm, policy, RETURN, t, key)
    if alarm.condition and grave and alarm.severity != ALARM:
        return turn(alarm, policy, SEVERITY, t, key, grave)
    return alarm, None


def turn(
    alarm: Alarm, policy: AlarmPolicy, what: str, t: float, key: str, grave: bool = False
) -> tuple[Alarm, Transition | None]:
    """What the votes say: RAISE, RETURN, or SEVERITY (it has become grave); at most one a window."""
    if what == RETURN:
        alarm = replace(alarm, condition=False)
        how = "latching" if policy.latching else "require_ack" if policy.require_ack else "plain"
        return _apply(alarm, f"{RETURN}_{how}", t, key)
    # An alarm that is raised again before it was acknowledged or reset is still as grave as it was.
    was = alarm.severity if what == RAISE and alarm.state in (RTNUN, LATCHED) else None
    alarm = replace(alarm, condition=True, severity=ALARM if grave or was == ALARM else WARNING)
    return _apply(alarm, what, t, key)


def return_ratio(policy: AlarmPolicy) -> float:
    """Below it every one of the last n ratios must lie for an alarm to return."""
    return policy.warning_ratio * (1.0 - policy.deadband)


def stays(healthy: Sequence[float], policy: AlarmPolicy) -> tuple[float, float] | None:
    """Whether an alarm would stay for good on a machine that is healthy again: (share of its ratios that hinder the return,
    deadband that lets nineteen of twenty pass, at least 0); None where it ends within `STAYS` windows or nothing is known.

    Independent windows that hinder with probability p need ((1 - p)^-n - 1) / p of them until n in a row do not (Feller,
    An Introduction to Probability Theory I, XIII.7).
    """
    ratios, n = sorted(healthy), policy.vote[1]
    p = sum(ratio >= return_ratio(policy) for ratio in ratios) / max(len(ratios), 1)
    if p == 0.0 or (p < 1.0 and ((1.0 - p) ** -n - 1.0) / p <= STAYS):
        return None
    high = ratios[math.ceil(0.95 * len(ratios)) - 1] / policy.warning_ratio
    return p, max(0.0, math.floor(1000.0 * (1.0 - high)) / 1000.0)


def milliseconds(t: float) -> int:
    """A time or delay as delays are counted: in the whole milliseconds that a row of the database has, so that stored
    rows give the same alarms again."""
    return round(t * 1000.0)


def _held(since: float | None, t: float, delay_s: float) -> bool:
    return since is not None and milliseconds(t) - milliseconds(since) >= milliseconds(delay_s)


def command(
    alarm: Alarm,
    name: str,
    t: float,
    key: str,
    *,
    by: str | None = None,
    comment: str | None = None,
    for_s: float | None = None,
) -> tuple[Alarm, Transition]:
    """A person's command at receipt time t. Raises `Refused` with the reason; nothing changes then."""
    if name == "shelve":
        if for_s is None or not (math.isfinite(for_s) and 0 < for_s <= 365 * 86400):
            given = for_s if for_s is None else f"{for_s:g} s ({for_s / 86400.0:.3g} days)"
            raise Refused(f"shelve refused: for_s is {given}; expected seconds above 0, at most 365 days")
        alarm = replace(alarm, shelved_until=t + for_s)
    cause = name
    if name == "unshelve":
        cause = "expire_raised" if alarm.condition else "expire_normal"
    if name == "ack":
        alarm = replace(alarm, acked_by=by, ack_why=comment)
    holds = name == "reset" and alarm.condition and alarm.state != SHLVD
    if (alarm.state, cause) not in TABLE or holds:
        why = ", the condition still holds (it can be reset once the machine is back to normal)" if holds else ""
        why = ": there is none to see to (`edge-agent alarms` lists those that ended)" if alarm.state == NORM else why
        possible = [
            c for c in COMMANDS if (alarm.state, c) in TABLE or (c == "unshelve" and alarm.state == SHLVD)
        ]
        raise Refused(f"{name} refused: the alarm is {alarm.state}{why}; possible now: {', '.join(possible)}")
    after, transition = _apply(alarm, cause, t, key, by, comment)
    assert transition is not None  # the table lists it
    return after, transition


def expire(alarm: Alarm, t: float, key: str) -> tuple[Alarm, Transition | None]:
    """End a shelving whose time has come (t: receipt clock, s); otherwise change nothing."""
    if alarm.state != SHLVD or alarm.shelved_until is None or t < alarm.shelved_until:
        return alarm, None
    return _apply(alarm, "expire_raised" if alarm.condition else "expire_normal", t, key)


def beside(
    kind: str,
    alarm: Alarm,
    key: str,
    n: int,
    t: float,
    extra: dict[str, Any],
    *,
    episode: str | None = None,
    since: float | None = None,
) -> Transition:
    """A transition of type `quality` or `notice`: told once, and the machine alarm stays as it is.

    n       : running number of its kind within the sensor; makes the identities unique
    episode : alarm_id of what began earlier, `since` when; None: this is a beginning, now
    """
    if kind not in (QUALITY, NOTICE):
        raise ValueError(f"kind is {kind!r}; expected {QUALITY!r} or {NOTICE!r}")
    alarm_id = episode or ulid(t, key, kind, "episode", n)
    event_id = ulid(t, key, kind, "event", n)
    return Transition(
        kind, event_id, alarm_id, t, alarm.state, None, t if since is None else since, extra=extra
    )


def ulid(t: float, *parts: object) -> str:
    """A ULID (26 characters of Crockford's base 32) that is the same for the same arguments.

    48 bits of time in ms, then 80 bits of a hash in place of randomness: a transition that is computed
    again after a crash keeps its identity.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=10).digest()
    number = (max(0, round(t * 1000.0)) % (1 << 48)) << 80 | int.from_bytes(digest, "big")
    alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
    return "".join(alphabet[number >> shift & 31] for shift in range(125, -1, -5))


def _apply(
    alarm: Alarm, cause: str, t: float, key: str, by: str | None = None, comment: str | None = None
) -> tuple[Alarm, Transition | None]:
    found = TABLE.get((alarm.state, cause))
    if found is None:
        return alarm, None
    state, kind = found
    n = alarm.n_events + 1
    # A shelving of a quiet sensor has an identity too: its expiry must be told as the end of something.
    alarm_id = alarm.alarm_id or ulid(t, key, "alarm", n)
    since = alarm.since if alarm.since is not None else t
    transition = Transition(
        kind, ulid(t, key, "event", n, kind, state), alarm_id, t, state, alarm.severity, since, by, comment
    )
    active = state != NORM
    return (
        replace(
            alarm,
            state=state,
            alarm_id=alarm_id if active else None,
            since=since if active else None,
            severity=alarm.severity if active else None,
            shelved_until=alarm.shelved_until if state == SHLVD else None,
            acked_by=alarm.acked_by if state == ACKED else None,
            ack_why=alarm.ack_why if state == ACKED else None,
            n_events=n,
        ),
        transition,
    )


def _check(name: str, value: object, ok: bool, expected: str) -> None:
    if not ok:
        raise ValueError(f"alarm {name} is {value!r}; expected {expected}")
