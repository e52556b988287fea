"""The alarm engine over a whole series at once: the fast twin of `alarms.step`, event for event.

    ratios ─► votes of k of n ─► held for the delays ─► the few windows where the condition turns ─► alarms.turn ─► events

A month of windows takes some ten milliseconds. Nobody acknowledges, resets or shelves in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_agent import alarms
from edge_agent.alarms import Alarm, AlarmPolicy, Transition

Index = NDArray[np.int64]
Flags = NDArray[np.bool_]

#: An alarm chatters where it is raised so often within CHATTER_WINDOWS windows, at least CHATTER_S. ISA-18.2 and EEMUA 191
#: count three within a minute; a vote over windows of ten seconds could never come so often.
CHATTER, CHATTER_WINDOWS, CHATTER_S = 3, 60, 60.0


@dataclass(frozen=True)
class Spell:
    """One time over which a machine's alarm stood, by its scores. begin, end in s; end None: it still stands."""

    begin: float
    end: float | None
    severity: str = alarms.WARNING


@dataclass(frozen=True)
class Turns:
    """Where the condition turns: window numbers, which of them raise, and the first grave window of each raise (-1: none)."""

    at: Index
    raises: Flags
    grave: Index


def turns(ratios: ArrayLike, t: ArrayLike, policy: AlarmPolicy, breaks: Iterable[int] = ()) -> Turns:
    """The turns of the condition over scored windows that vote.

    ratios : (n,) score / threshold, finite; t : (n,) ends of the windows, s
    breaks : numbers of windows before which the votes are forgotten (0 to n), as after a commissioning
    """
    x, ms = np.asarray(ratios, np.float64), np.rint(np.asarray(t, np.float64) * 1000.0).astype(np.int64)
    if not np.isfinite(x).all():
        i = int(np.argmin(np.isfinite(x)))
        raise ValueError(f"ratio is {float(x[i])!r}; expected a finite number: only scored windows are voted on")
    k, n = policy.vote
    begins = np.zeros(x.size, bool)
    begins[[i for i in {0, *breaks} if i < x.size]] = True
    number = np.arange(x.size)
    begin = np.maximum.accumulate(np.where(begins, number, 0))
    first = np.maximum(begin, number - n + 1)
    raised = _held(_count(x >= policy.warning_ratio, first) >= k, begins, ms, policy.on_delay_s)
    back = alarms.return_ratio(policy)
    returned = _held((_count(x >= back, first) == 0) & (number - begin >= n - 1), begins, ms, policy.off_delay_s)
    at = flips(raised, returned)
    grave = np.flatnonzero(_count(x >= policy.alarm_ratio, first) >= k)
    raises = np.arange(at.size) % 2 == 0
    return Turns(at, raises, _first_within(grave, at))


def flips(raised: Flags, returned: Flags) -> Index:
    """Window numbers at which a condition that was off goes on, off, on ...; raised and returned exclude each other."""
    marked = np.flatnonzero(raised | returned)
    on = raised[marked]
    turned = on != np.r_[False, on[:-1]]
    return np.asarray(marked[turned], np.int64)


def replay(
    ratios: ArrayLike, t: ArrayLike, policy: AlarmPolicy, key: str, breaks: Iterable[int] = ()
) -> list[tuple[int, Transition]]:
    """(window number, transition) of all that `alarms.step` tells over these windows, from a sensor never seen before."""
    found, out, alarm = turns(ratios, t, policy, breaks), [], Alarm()
    times = np.asarray(t, np.float64)
    for j, (i, raises) in enumerate(zip(found.at.tolist(), found.raises.tolist(), strict=True)):
        grave = int(found.grave[j])
        steps = [(i, alarms.RAISE, grave == i)] if raises else [(i, alarms.RETURN, False)]
        if raises and grave > i:
            steps.append((grave, alarms.SEVERITY, True))
        for number, what, is_grave in steps:
            if what == alarms.SEVERITY and alarm.severity == alarms.ALARM:
                continue  # raised again, and as grave as before
            alarm, transition = alarms.turn(alarm, policy, what, float(times[number]), key, is_grave)
            if transition is not None:
                out.append((number, transition))
    return out


def onsets(ratios: ArrayLike, t: ArrayLike, policy: AlarmPolicy) -> list[int]:
    """Numbers of the windows at which a new alarm begins."""
    return [i for i, transition in replay(ratios, t, policy, "") if transition.type == "new"]


def spells(ratios: ArrayLike, t: ArrayLike, policy: AlarmPolicy, breaks: Iterable[int] = ()) -> list[Spell]:
    """When the machine's alarm stood, whatever was latched or awaited an acknowledgement afterwards."""
    found, times = turns(ratios, t, policy, breaks), np.asarray(t, np.float64)
    at = times[found.at].tolist()
    severity = [alarms.WARNING if g < 0 else alarms.ALARM for g in found.grave]
    return [
        Spell(begin, at[2 * j + 1] if 2 * j + 1 < len(at) else None, severity[2 * j])
        for j, begin in enumerate(at[::2])
    ]


def chattering(begins: Sequence[float], every_s: float) -> list[tuple[float, float, int]]:
    """(first, last, n) of each burst of raises that lie close: CHATTER or more within the time for it.

    begins : ascending, s; every_s : from window to window
    """
    within = max(CHATTER_S, CHATTER_WINDOWS * every_s)
    bursts: list[tuple[int, int]] = []
    for last in range(CHATTER - 1, len(begins)):
        first = last - CHATTER + 1
        if begins[last] - begins[first] > within:
            continue
        if bursts and first <= bursts[-1][1]:
            bursts[-1] = (bursts[-1][0], last)
        else:
            bursts.append((first, last))
    return [(begins[a], begins[b], b - a + 1) for a, b in bursts]


@dataclass(frozen=True)
class Change:
    """One alarm told otherwise: `gained` has no `before`, `lost` no `after`, `moved` both."""

    kind: str
    before: Spell | None
    after: Spell | None

    @property
    def t(self) -> float:
        """When it began, or would have begun if that was earlier, s."""
        return min(s.begin for s in (self.before, self.after) if s is not None)


def compare(before: Sequence[Spell], after: Sequence[Spell], since: float, every_s: float) -> list[Change]:
    """What differs between two lists of spells, each in time order, from `since` on.

    Spells that stood at one moment are the same alarm, each in at most one pair; one of them that begins and ends within a
    window (every_s) of the other has not moved.
    """
    old, new = (
        [replace(s, begin=max(s.begin, since)) for s in spells if s.end is None or s.end >= since]
        for spells in (before, after)
    )
    changes: list[Change] = []
    i = j = 0
    while i < len(old) or j < len(new):
        if j == len(new) or (i < len(old) and _over(old[i], new[j])):
            changes.append(Change("lost", old[i], None))
            i += 1
        elif i == len(old) or _over(new[j], old[i]):
            changes.append(Change("gained", None, new[j]))
            j += 1
        else:
            if _moved(old[i], new[j], every_s):
                changes.append(Change("moved", old[i], new[j]))
            i, j = i + 1, j + 1
    return changes


def _over(a: Spell, b: Spell) -> bool:
    """Whether a had ended before b began."""
    return a.end is not None and a.end < b.begin


def _moved(a: Spell, b: Spell, every_s: float) -> bool:
    if (a.end is None) != (b.end is None) or a.severity != b.severity:
        return True
    return abs(a.begin - b.begin) >= every_s or (
        a.end is not None and b.end is not None and abs(a.end - b.end) >= every_s
    )


def _count(flags: Flags, first: Index) -> Index:
    """(n,) how many of the flags are set from window number first[i] to i."""
    total = np.concatenate([[0], np.cumsum(flags)])
    return np.asarray(total[1:] - total[first], np.int64)


def _held(flags: Flags, begins: Flags, ms: Index, delay_s: float) -> Flags:
    """Which windows lie in a run of flags that has lasted for the delay; a run does not go on over `begins`. Where the time goes
    back within it, the delay counts from the least."""
    if not flags.size:
        return flags
    start = flags & (begins | ~np.concatenate([[False], flags[:-1]]))
    since = np.maximum.accumulate(np.where(start, np.arange(flags.size), 0))
    begun = ms[since]
    for back in (np.flatnonzero(np.diff(ms) < 0) + 1).tolist():
        if flags[back] and not start[back]:
            run = slice(back, back + int(np.argmax(np.append(since[back:] != since[back], True))))
            begun[run] = np.minimum(begun[run], np.minimum.accumulate(ms[run]))
    return np.asarray(flags & (ms - begun >= alarms.milliseconds(delay_s)))


def _first_within(grave: Index, at: Index) -> Index:
    """For each turn the first grave window before the next turn; -1 where there is none."""
    if not at.size:
        return at
    following = np.append(at[1:], np.iinfo(np.int64).max)
    found = np.append(grave, np.iinfo(np.int64).max)[np.searchsorted(grave, at)]
    return np.where(found < following, found, -1)
