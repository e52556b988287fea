"""Chunks in, gap-free windows of fixed length out.

    chunks    |----a----|----b----|        (lost)        |----d----|----e----|
    windows   |-------0-------|                          |-------2-------|
                    |-------1-------|  tail dropped            |-------3-------|

Samples on both sides of a gap are never put into one window: the tail before it is discarded and the
next window begins with the first sample after it. What is a gap is decided by the sequence number where
the message has one, else by its time, else by the receipt clock. The expected time of a chunk is the
end of the chunk before it by that chunk's own timestamp, so a sensor clock that is 50 ppm off never
adds up to a gap.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from edge_agent.errors import PayloadError
from edge_agent.signals import F32, Chunk, Window
from edge_agent.values import replace

#: Chunks whose repetition is recognised. A broker sends again what was in flight, by default 20 messages.
REMEMBERED = 32
#: Late chunks in a row, running forwards among themselves, that prove the sensor's clock or counter was set back.
LATE_RUN = 5
#: The receipt clock of a running agent goes back by less than this unless it is told (`clock_set`).
BACKWARDS_S = 5.0
#: A repeated chunk lies so near to where its number would lie, in s and of the time back to it.
AGAIN_S, AGAIN = 2.0, 0.1
#: With consecutive sequence numbers, a time this far ahead (plus one chunk) is a pause in sampling.
PAUSE_S = 1.0
#: A sequence number without a time further back than this is a restart, not a late chunk.
RESTART = 1024
#: A time further ahead of the receipt clock than this is a sensor clock that was never set right.
FUTURE_S = 366 * 86400.0
#: 2026-01-01: an earlier receipt clock belongs to a board that has not found its own time yet.
PLAUSIBLE_S = 1767225600.0
#: 9999-01-01.
LAST_T = 253370764800.0


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """What to cut: `n_samples` every `hop_samples` (smaller, equal or larger) at `fs_hz`.

    silent_after_s : for chunks without any time: a silence longer than this is a gap
    """

    fs_hz: float
    n_samples: int
    hop_samples: int
    n_channels: int
    silent_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not 0.0 < self.fs_hz < float("inf"):
            raise ValueError(f"fs_hz is {self.fs_hz}; expected a finite number above 0")
        for name in ("n_samples", "hop_samples", "n_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")


@dataclass(frozen=True, eq=False)
class WindowerState:
    """All that is remembered between two chunks; plain values, so it can be stored.

    tail       : the samples from the next window's first sample on, one (n_channels, m) float32 piece a
                 message, together fewer than n_samples
    times      : time of the first sample of each piece, in s
    skip       : samples still to pass over before the next window begins (hop larger than the window)
    last_t     : time of the first sample of the chunk before, in s; None before the first chunk
    next_t     : time at which the chunk before ends, in s
    next_seq   : expected sequence number; None where the chunk before had none
    recent     : sequence numbers (times where there are none) of the last chunks, oldest first
    contents   : checksums of the samples of the newest of them, as far back as chunks had a number and no time: a counter
                 that begins anew gives the numbers of before to other samples
    received   : receipt time of the last accepted chunk in s, by the receipt clock as it was at the last anchor
    window_seq : running number of the next window
    late_run   : late chunks in a row that run forwards among themselves
    late_key   : time (sequence number where there is none) of the last of them
    stepped    : seconds by which the receipt clock has been set since the last anchor
    """

    tail: tuple[F32, ...] = ()
    times: tuple[float, ...] = ()
    skip: int = 0
    last_t: float | None = None
    next_t: float | None = None
    next_seq: int | None = None
    recent: tuple[float, ...] = ()
    received: float | None = None
    window_seq: int = 0
    late_run: int = 0
    late_key: float | None = None
    stepped: float = 0.0
    contents: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Pushed:
    """What one chunk gave.

    dropped : why the chunk was not used ("duplicate", "late", "undecodable"), else None
    gap_s   : seconds missing before the chunk (0.0 where time did not run forwards), None: no gap
    """

    state: WindowerState
    windows: tuple[Window, ...] = ()
    dropped: PayloadError | None = None
    gap_s: float | None = None


def initial() -> WindowerState:
    """The state before the first chunk."""
    return WindowerState()


def without_tail(state: WindowerState) -> WindowerState:
    """The state as after a gap: the next window begins with the next chunk. A few hundred bytes."""
    return replace(state, tail=(), times=(), skip=0)


def fits(state: WindowerState, spec: WindowSpec) -> bool:
    """Whether a stored state can go on under this spec: channels, length and skip agree with it."""
    return (
        all(piece.ndim == 2 and piece.shape[0] == spec.n_channels for piece in state.tail)
        and len(state.times) == len(state.tail)
        and sum(piece.shape[1] for piece in state.tail) < spec.n_samples
        and 0 <= state.skip < spec.hop_samples
    )


def push(state: WindowerState, spec: WindowSpec, chunk: Chunk, received: float) -> Pushed:
    """Take one chunk (n_channels, n >= 1), give the windows it completes.

    `received` is the receipt clock in s since 1970. The start of a window is the time of its first
    sample by the message that holds it. The chunk's samples are copied once; windows are read-only and
    share that copy. The chunk's fs and channels are the caller's to check.
    """
    duration = chunk.samples.shape[1] / spec.fs_hz
    if chunk.t is not None and too_far_ahead(chunk.t, received):
        ahead = (chunk.t - received) / 86400.0
        return Pushed(
            state,
            dropped=PayloadError(
                "undecodable",
                f"message time is {ahead:.0f} days ahead of the receipt clock; expected at most "
                f"{FUTURE_S / 86400.0:.0f}: set the sensor's clock (or check seconds against milliseconds)",
            ),
        )
    receipt, silent = _receipt(state, spec, duration, received)
    verdict = _place(state, chunk, duration, receipt, silent)
    if isinstance(verdict, PayloadError):
        if verdict.reason == "duplicate" or _sent_again(state, chunk, duration):
            return Pushed(state, dropped=verdict)
        state = _count_late(state, chunk)
        if state.late_run < LATE_RUN:
            return Pushed(state, dropped=verdict)
        verdict = (_own_time(state, chunk, duration, receipt), 0.0)
    t, gap_s = verdict
    if gap_s is not None:
        state = without_tail(state)
    key = chunk.t if chunk.seq is None else chunk.seq  # a whole number is stored in a third of the bytes
    counted = chunk.t is None and chunk.seq is not None
    state = replace(
        state,
        last_t=t,
        next_t=t + duration,
        next_seq=None if chunk.seq is None else (chunk.seq + 1) & 0xFFFFFFFF,
        recent=state.recent if key is None else (*state.recent, key)[-REMEMBERED:],
        contents=(*state.contents, _content(chunk))[-REMEMBERED:] if counted else (),
        received=receipt,
        late_run=0,
        late_key=None,
        stepped=0.0 if silent else state.stepped,
    )
    state, windows = _cut(state, spec, chunk.samples, t)
    return Pushed(state, windows, gap_s=gap_s)


def too_far_ahead(t: float, received: float) -> bool:
    """Whether a message's time is no sensor's clock that is a little off, but one that was never set right; such a message is
    refused. While the receipt clock itself stands before 2026 nobody can tell, but for a time so late that the end of a window might
    have no text any more."""
    return t > LAST_T or (t > received + FUTURE_S and received >= PLAUSIBLE_S)


def clock_set(state: WindowerState, by_s: float) -> WindowerState:
    """The receipt clock was set by so many seconds: what runs on nominally goes on until a silence, then takes the new one."""
    return state if state.received is None else replace(state, stepped=state.stepped + by_s)


def _receipt(state: WindowerState, spec: WindowSpec, duration: float, received: float) -> tuple[float, bool]:
    """The receipt time to reckon with, and whether the sensor had been silent: a clock that was set is no silence."""
    if state.next_t is None or state.received is None:
        return received, True
    before = received - state.stepped
    silent = before - min(state.next_t, state.received) - duration > spec.silent_after_s
    # A board without a battery begins in the past: nobody knows for how long it was off.
    silent = silent or before < state.received - BACKWARDS_S
    return (received if silent else before), silent


def _place(
    state: WindowerState, chunk: Chunk, duration: float, received: float, silent: bool
) -> tuple[float, float | None] | PayloadError:
    """Time of the chunk's first sample and the gap before it, or why it is not used."""
    own = _own_time(state, chunk, duration, received)
    if state.next_t is None or state.last_t is None or state.received is None:
        return own, None
    ahead = own - state.next_t
    gap = own, max(0.0, ahead)
    # Half the shorter neighbour: a lost chunk leaves twice that or more, while a clock error over one
    # chunk and the rounding of timestamps to milliseconds stay below it for chunks of 2 ms and longer.
    tolerance = 0.5 * min(state.next_t - state.last_t, duration)
    if chunk.seq is not None and state.next_seq is not None:
        lost = ((chunk.seq - state.next_seq + 0x80000000) & 0xFFFFFFFF) - 0x80000000
        if lost == 0:
            if chunk.t is None:
                # Where the number before came again with other samples, this one follows those.
                return gap if state.late_key == (chunk.seq - 1) & 0xFFFFFFFF else (state.next_t, None)
            # Time may wander (a clock set, a gateway's stamp), the samples still follow each other;
            # but a sensor that sleeps between snapshots also counts on.
            return gap if ahead > PAUSE_S + duration else (own, None)
        restarted = lost < -RESTART if chunk.t is None else ahead >= -tolerance
        if lost > 0 or restarted:
            return gap
        if _came_before(state, chunk):
            return PayloadError("duplicate", f"sequence number {chunk.seq} came before; it is used once")
        return PayloadError(
            "late", f"sequence number is {chunk.seq}, expected {state.next_seq}: later samples came before"
        )
    if chunk.t is None:
        return gap if silent else (state.next_t, None)
    if abs(ahead) <= tolerance:
        return own, None
    if ahead > 0.0:
        return gap
    if chunk.t in state.recent:
        return PayloadError("duplicate", f"a message of time {chunk.t:.3f} s came before; it is used once")
    return PayloadError(
        "late",
        f"message time {chunk.t:.3f} s lies {-ahead:.3f} s before the end of the samples already used; "
        f"expected {state.next_t:.3f} s within {tolerance:.3f} s",
    )


def _came_before(state: WindowerState, chunk: Chunk) -> bool:
    """Whether a chunk with a number is one of the last once more: by its number, and by its samples where no time tells either."""
    if chunk.seq not in state.recent:
        return False
    if chunk.t is not None:
        return True
    known = len(state.recent) - len(state.contents)
    same = [i - known for i, key in enumerate(state.recent) if key == chunk.seq]
    return same[0] < 0 or _content(chunk) in {state.contents[i] for i in same}


def _content(chunk: Chunk) -> int:
    """Checksum of the samples, 16 bits: stored in three bytes, and a run of five is not mistaken for repeats by chance."""
    return zlib.crc32(chunk.samples.tobytes()) & 0xFFFF


def _own_time(state: WindowerState, chunk: Chunk, duration: float, received: float) -> float:
    """The chunk's own time; by the receipt clock, never backwards, where it states none."""
    if chunk.t is not None:
        return chunk.t
    return received - duration if state.next_t is None else max(received - duration, state.next_t)


def _sent_again(state: WindowerState, chunk: Chunk, duration: float) -> bool:
    """Whether a late chunk lies where its number lay when it came first: a broker or a sensor repeats what was on its way, be it
    minutes of it in order. A sensor whose clock was set back counts on, and one that starts anew has other times."""
    if chunk.t is None or chunk.seq is None or state.next_t is None or state.next_seq is None:
        return False
    back = (((state.next_seq - chunk.seq + 0x80000000) & 0xFFFFFFFF) - 0x80000000) * duration
    return back > 0.0 and abs(state.next_t - back - chunk.t) <= AGAIN_S + AGAIN * back


def _count_late(state: WindowerState, chunk: Chunk) -> WindowerState:
    """One more late chunk; the run starts anew where it does not run forwards."""
    key = chunk.t if chunk.t is not None else float(chunk.seq or 0)
    forwards = state.late_key is not None and key > state.late_key
    return replace(state, late_run=state.late_run + 1 if forwards else 1, late_key=key)


def _cut(
    state: WindowerState, spec: WindowSpec, samples: F32, t: float
) -> tuple[WindowerState, tuple[Window, ...]]:
    """Append the samples, whose first stands at time t, to the tail and cut what is complete."""
    own = np.array(samples, dtype=np.float32, order="C")
    own.flags.writeable = False
    pieces, times = (*state.tail, own), (*state.times, t)
    length = sum(piece.shape[1] for piece in pieces)
    position = state.skip
    joined: F32 | None = None
    windows: list[Window] = []
    held = before = 0  # the piece that holds the sample at `position`, and the samples before that piece
    while True:
        while held + 1 < len(pieces) and before + pieces[held].shape[1] <= position:
            before += pieces[held].shape[1]
            held += 1
        start = times[held] + (position - before) / spec.fs_hz
        if position + spec.n_samples > length:
            break
        if joined is None:
            joined = own if len(pieces) == 1 else np.concatenate(pieces, axis=1)
            joined.flags.writeable = False
        window = joined[:, position : position + spec.n_samples]
        windows.append(Window(window, spec.fs_hz, start, state.window_seq + len(windows)))
        position += spec.hop_samples
    tail, tail_times = pieces[held:], (start, *times[held + 1 :])
    if position >= length:
        tail, tail_times = (), ()
    elif position > before:  # copied, because a view would keep the whole piece in memory
        tail = (tail[0][:, position - before :].copy(), *tail[1:])
    return (
        replace(
            state,
            tail=tail,
            times=tail_times,
            skip=max(0, position - length),
            window_seq=state.window_seq + len(windows),
        ),
        tuple(windows),
    )
