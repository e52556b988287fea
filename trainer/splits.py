"""Which windows train and which calibrate: whole recordings, machines or stretches of time.

    by time       |──── train ────|val|░|── calibrate ──|  ...       one cut; windows that overlap it are left out
    by recording  whole recordings, shuffled by the seed within each machine
    by machine    whole machines

Windows of one recording resemble each other far more than those of the next: a split by window would
calibrate on what was trained on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_agent.errors import RecordingError
from edge_agent.features import Context
from trainer.data import Table
from trainer.recipe import CALIBRATE, TRAIN, Split

Indices = np.ndarray[Any, np.dtype[np.int64]]

#: "auto" deals out whole recordings from this many healthy ones on; below, it cuts through time.
AUTO_RECORDINGS = 10
#: Shares that train where the recipe leaves it open, the first that leaves enough to calibrate is taken. A
#: limit that cannot be fitted is worth less than a network that has seen a third of the data.
CUTS = (TRAIN[1], *(k / 100 for k in range(69, 33, -1)), 1 / 3)


@dataclass(frozen=True)
class Parts:
    """Window numbers of each part, ascending. `anomalies`: of labelled faulty recordings, for weak_ae.

    note: what was done in place of what was asked, for the card; empty where nothing was
    """

    by: str
    train: Indices
    validation: Indices
    calibrate: Indices
    anomalies: Indices = field(default_factory=lambda: np.zeros(0, np.int64))
    note: str = ""


def split(
    table: Table,
    how: Split,
    *,
    validation: float,
    seed: int,
    enough: Callable[[Indices], bool] = lambda calibrate: True,
) -> Parts:
    """Deal out the healthy windows of a table, and `how.anomalies` faulty recordings.

    enough : whether these windows can calibrate; where `how` gives neither part, calibration grows from
             0.3 to 2/3 of the data until they can, and stays at 0.3 where they never do
    Raises RecordingError, with the numbers, where a part would be empty.
    """
    healthy = table.healthy()
    n_recordings = len(np.unique(table.recording[healthy]))
    by = how.by
    if by == "auto":
        by = "recording" if n_recordings >= AUTO_RECORDINGS else "time"

    def deal(how: Split) -> tuple[Indices, Indices, Indices]:
        if by == "time":
            return _by_time(table, how, np.flatnonzero(healthy), validation)
        return _by_unit(table, how, by, healthy, validation, seed)

    if how.train is None and how.calibrate is None:
        for cut in (*CUTS, CUTS[0]):
            train, held, calibrate = deal(replace(how, train=(0.0, cut), calibrate=(cut, 1.0)))
            if train.size and calibrate.size and enough(calibrate):
                break
    else:
        train, held, calibrate = deal(
            replace(how, train=how.train or TRAIN, calibrate=how.calibrate or CALIBRATE)
        )
    for name, part in (("train", train), ("calibrate", calibrate)):
        if not part.size:
            hint = (
                "; with one recording only, use split: {by: time}"
                if n_recordings < 2 and by != "time"
                else ""
            )
            raise RecordingError(
                f"split by {by}: no window for {name} among {int(healthy.sum())} healthy windows of "
                f"{n_recordings} recordings; expected at least one: change split.{name}{hint}"
            )
    anomalies, note = _anomalies(table, how.anomalies, seed)
    return Parts(by, train, held, calibrate, anomalies, note)


def sequences(table: Table, part: Indices, context: Context) -> Indices:
    """(m, width) window numbers of every gap-free history that lies whole within `part`.

    A history crosses no recording and, where `max_gap_s` is set, no longer pause.
    """
    width = context.width
    breaks = np.ones(len(part), bool)
    if len(part) > 1:
        a, b = part[:-1], part[1:]
        joined = (b - a == 1) & (table.recording[a] == table.recording[b])
        if context.max_gap_s is not None:
            length = table.spec.n_samples / table.spec.fs_hz
            joined &= table.start[b] - (table.start[a] + length) <= context.max_gap_s
        breaks[1:] = ~joined
    run_start = np.maximum.accumulate(np.where(breaks, np.arange(len(part)), 0))
    ends = np.flatnonzero(np.arange(len(part)) - run_start >= width - 1)
    histories: Indices = part[ends[:, None] + np.arange(1 - width, 1)[None, :]]
    return histories


def _bounds(limits: Any, n: int) -> tuple[int, int]:
    low, high = limits
    if isinstance(low, int) and isinstance(high, int):
        return min(low, n), min(high, n)
    return round(low * n), round(high * n)


def _by_time(
    table: Table, how: Split, healthy: Indices, validation: float
) -> tuple[Indices, Indices, Indices]:
    a, b = _bounds(how.train, len(healthy))
    c, d = _bounds(how.calibrate, len(healthy))
    inner = b - round((b - a) * validation)
    train, held, calibrate = healthy[a:inner], healthy[inner:b], healthy[c:d]
    return train, _clear_of(table, held, train), _clear_of(table, calibrate, healthy[a:b])


def _clear_of(table: Table, part: Indices, before: Indices) -> Indices:
    """`part` without windows that share samples with a window of `before`."""
    length = table.spec.n_samples / table.spec.fs_hz
    keep = np.ones(len(part), bool)
    for r in np.intersect1d(table.recording[part], table.recording[before]):
        mine, theirs = table.recording[part] == r, table.start[before[table.recording[before] == r]]
        gap = np.abs(table.start[part[mine]][:, None] - theirs[None, :]).min(1)
        keep[np.flatnonzero(mine)[gap < length * (1.0 - 1e-9)]] = False
    return part[keep]


def _by_unit(
    table: Table, how: Split, by: str, healthy: Any, validation: float, seed: int
) -> tuple[Indices, Indices, Indices]:
    """Recordings (within each machine) or machines; validation is dealt out of train by the same units."""
    rng = np.random.default_rng([seed, 1])
    used = [i for i, c in enumerate(table.clips) if c.healthy]
    machines = sorted({table.clips[i].machine or "" for i in used})
    train: set[int] = set()
    held: set[int] = set()
    calibrate: set[int] = set()
    if by == "machine":
        if len(machines) < 2:
            raise RecordingError(
                f"split by machine: one machine only ({machines[0] or 'no id in any name'}); expected at least two"
            )
        order = [machines[i] for i in rng.permutation(len(machines))]
        picked = [_pick(limits, order) for limits in (how.train, how.calibrate)]
        owners = [{i for i in used if (table.clips[i].machine or "") in names} for names in picked]
        shuffled = [int(i) for i in rng.permutation(sorted(owners[0]))]
        n_held = round(len(shuffled) * validation)
        held, train, calibrate = set(shuffled[:n_held]), set(shuffled[n_held:]), owners[1]
    else:
        for machine in machines:
            own = [i for i in used if (table.clips[i].machine or "") == machine]
            shuffled = [own[i] for i in rng.permutation(len(own))]
            a, b = _bounds(how.train, len(own))
            c, d = _bounds(how.calibrate, len(own))
            inner = b - round((b - a) * validation)
            train |= set(shuffled[a:inner])
            held |= set(shuffled[inner:b])
            calibrate |= set(shuffled[c:d])
    return tuple(  # type: ignore[return-value]
        np.flatnonzero(np.isin(table.recording, sorted(part)) & healthy) for part in (train, held, calibrate)
    )


def _pick(limits: Any, order: list[str]) -> set[str]:
    if isinstance(limits[0], str):
        if unknown := sorted(set(limits) - set(order)):
            raise RecordingError(
                f"split by machine: {unknown[0]!r} is not there; found {', '.join(sorted(order))}"
            )
        return set(limits)
    a, b = _bounds(limits, len(order))
    return set(order[a:b])


def _anomalies(table: Table, wanted: int, seed: int) -> tuple[Indices, str]:
    faulty = [i for i, c in enumerate(table.clips) if not c.healthy]
    rng = np.random.default_rng([seed, 2])
    chosen = [faulty[i] for i in rng.permutation(len(faulty))[:wanted]]
    note = ""
    if len(chosen) < wanted:
        note = f"{wanted} labelled anomalous recordings were asked for, {len(chosen)} were there and are used"
    return np.flatnonzero(np.isin(table.recording, chosen)), note
