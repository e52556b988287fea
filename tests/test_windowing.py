"""The windower: any cut of a stream gives the same windows, and a gap is never glued."""

from dataclasses import replace
from itertools import pairwise

import msgspec
import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import windowing
from edge_agent.signals import Chunk, parse_time
from edge_agent.windowing import WindowSpec

T0 = 1763776990.0
FS = 1000.0
SPEC = WindowSpec(FS, n_samples=100, hop_samples=100, n_channels=1)


def ramp(n, begin=0, channels=1):
    """Samples that say their own place in the stream; channel c is offset by c × 0.25."""
    return np.arange(begin, begin + n, dtype=np.float32) + 0.25 * np.arange(channels, dtype=np.float32)[:, None]


def chunk(n, begin=0, **stated):
    """A chunk of the ramp; stated: t, seq."""
    return Chunk(ramp(n, begin), **stated)


def feed(chunks, spec=SPEC, state=None, received=None):
    """Push all; returns the last state, all windows, drop reasons and gaps by index of the chunk."""
    state = windowing.initial() if state is None else state
    seen, dropped, gaps = [], {}, {}
    for i, one in enumerate(chunks):
        at = received(i) if received else (one.t or T0) + one.samples.shape[1] / spec.fs_hz
        pushed = windowing.push(state, spec, one, at)
        state = pushed.state
        seen += pushed.windows
        if pushed.dropped is not None:
            dropped[i] = pushed.dropped.reason
        if pushed.gap_s is not None:
            gaps[i] = pushed.gap_s
    return state, seen, dropped, gaps


def steady(k, n=100, period=None, t0=T0, seq0=None, skip=()):
    """k chunks of n samples whose times follow each other, less those to skip."""
    period = n / FS if period is None else period
    return [
        chunk(n, i * n, t=t0 + i * period, seq=None if seq0 is None else (seq0 + i) & 0xFFFFFFFF)
        for i in range(k)
        if i not in skip
    ]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    lost=st.sets(st.integers(0, 24), max_size=3),
    n_samples=st.integers(1, 50),
    hop=st.integers(1, 80),
    channels=st.integers(1, 3),
    by_seq=st.booleans(),
)
def test_any_cut_gives_the_windows_of_the_naive_twin(lengths, lost, n_samples, hop, channels, by_seq):
    """However a stream is cut into chunks, and whatever is lost, the windows are those of a slow twin."""
    spec = WindowSpec(FS, n_samples, hop, channels)
    if not by_seq:  # by time a loss shorter than half its neighbours cannot be told from a clock error
        lengths = [lengths[0]] * len(lengths)
    begins = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    chunks, segments, run = [], [], None
    for i, n in enumerate(lengths):
        if i in lost:
            run = None
            continue
        x, t = ramp(n, begins[i], channels), T0 + begins[i] / FS
        chunks.append(Chunk(x, t=t, seq=i if by_seq else None))
        if run is None:
            run = len(segments)
            segments.append((t, x))
        else:
            segments[run] = (segments[run][0], np.concatenate([segments[run][1], x], axis=1))
    _, seen, dropped, gaps = feed(chunks, spec)
    expected = naive.windows(segments, FS, n_samples, hop)
    assert dropped == {}
    assert len(gaps) == max(0, len(segments) - 1)
    assert len(seen) == len(expected)
    for number, (window, (start, samples)) in enumerate(zip(seen, expected, strict=True)):
        assert window.seq == number
        assert window.start == pytest.approx(start, abs=1e-6)
        np.testing.assert_array_equal(window.samples, samples)


@given(cuts=st.lists(st.integers(1, 999), max_size=30), hop=st.integers(1, 400), n_samples=st.integers(1, 400))
def test_two_cuts_agree_without_sequence_numbers(cuts, hop, n_samples):
    """With exact times, every cut into chunks gives the same windows, without sequence numbers too."""
    spec = WindowSpec(FS, n_samples, hop, 1)
    edges = sorted({0, 1000, *cuts})
    cut = [chunk(b - a, a, t=T0 + a / FS) for a, b in pairwise(edges)]
    _, whole, _, _ = feed([chunk(1000, t=T0)], spec)
    _, pieces, dropped, gaps = feed(cut, spec)
    assert dropped == gaps == {}
    assert [w.samples.tolist() for w in pieces] == [w.samples.tolist() for w in whole]
    assert [w.start for w in pieces] == pytest.approx([w.start for w in whole], abs=1e-6)


@pytest.mark.parametrize("ppm", [-50, 50])
@pytest.mark.parametrize("n", [64, 1024, 8192])
def test_a_clock_error_of_50_ppm_never_gaps(ppm, n):
    """A day's worth of clock error at 25.6 kHz with timestamps rounded to ms gives not one gap."""
    fs = 25600.0
    spec = WindowSpec(fs, 4096, 4096, 1)
    period = n / (fs * (1 + ppm * 1e-6))
    chunks = [Chunk(np.zeros((1, n), np.float32), t=round(T0 + i * period, 3)) for i in range(4000)]
    _, seen, dropped, gaps = feed(chunks, spec)
    assert dropped == gaps == {}
    assert len(seen) == 4000 * n // 4096
    drift = seen[-1].start - (T0 + (len(seen) - 1) * 4096 / (fs * (1 + ppm * 1e-6)))
    assert abs(drift) < 0.0015


@pytest.mark.parametrize("ppm", [-50, 0, 50])
@given(lost=st.integers(1, 298), n=st.sampled_from([64, 1024]), seq=st.booleans())
def test_one_lost_chunk_is_always_found(ppm, lost, n, seq):
    """One chunk lost anywhere is one gap there, of its length, by time alone and by number."""
    fs = 25600.0
    period = n / (fs * (1 + ppm * 1e-6))
    chunks = [
        Chunk(np.zeros((1, n), np.float32), t=round(T0 + i * period, 3), seq=i if seq else None)
        for i in range(300)
        if i != lost
    ]
    _, _, dropped, gaps = feed(chunks, WindowSpec(fs, 512, 512, 1))
    assert dropped == {}
    assert list(gaps) == [lost]
    assert gaps[lost] == pytest.approx(period, abs=0.0021)


def test_a_short_chunk_lost_before_a_long_one_is_found():
    """The tolerance is that of the shorter neighbour: 100 samples lost before a chunk of 400 are a gap."""
    chunks = [chunk(100, t=T0), chunk(400, 200, t=T0 + 0.2), chunk(100, 700, t=T0 + 0.7)]
    _, _, dropped, gaps = feed(chunks)
    assert dropped == {}
    assert gaps == {1: pytest.approx(0.1, abs=1e-6), 2: pytest.approx(0.1, abs=1e-6)}


def test_a_window_starts_at_the_time_of_the_message_that_holds_its_first_sample():
    """With consecutive numbers and times that wander, each window's start follows its own message."""
    spec = WindowSpec(FS, 100, 50, 1)
    chunks = [chunk(50, 0, t=T0, seq=0), chunk(70, 50, t=T0 + 0.06, seq=1), chunk(80, 120, t=T0 + 0.12, seq=2)]
    _, seen, dropped, gaps = feed(chunks, spec)
    assert dropped == gaps == {}
    assert [w.start - T0 for w in seen] == pytest.approx([0.0, 0.06, 0.11], abs=1e-6)


def test_sequence_numbers_wrap_around():
    """After 4294967295 comes 0, without a gap."""
    _, seen, dropped, gaps = feed(steady(4, seq0=0xFFFFFFFE))
    assert dropped == gaps == {}
    assert len(seen) == 4


def test_a_loss_across_the_wrap_is_a_gap():
    """A chunk lost at the wrap-around is one gap of its length."""
    _, _, dropped, gaps = feed(steady(5, seq0=0xFFFFFFFD, skip=(2, 3)))
    assert dropped == {}
    assert gaps == {2: pytest.approx(0.2, abs=1e-6)}


@pytest.mark.parametrize("seq0", [None, 7])
def test_a_repeated_message_is_a_duplicate(seq0):
    """A message that comes again, at once or some messages later, is dropped and changes nothing."""
    a, b, c, d = steady(4, seq0=seq0)
    _, seen, dropped, gaps = feed([a, b, b, c, a, d])
    assert dropped == {2: "duplicate", 4: "duplicate"}
    assert gaps == {}
    assert [float(w.samples[0, 0]) for w in seen] == [0.0, 100.0, 200.0, 300.0]


@pytest.mark.parametrize("seq0", [None, 7])
def test_a_burst_sent_again_by_the_broker_is_not_a_clock_set_back(seq0):
    """Twenty messages in flight that a broker sends again are duplicates, every one."""
    chunks = steady(30, seq0=seq0)
    _, seen, dropped, gaps = feed([*chunks[:25], *chunks[5:25], *chunks[25:]])
    assert set(dropped.values()) == {"duplicate"}
    assert len(dropped) == 20
    assert gaps == {}
    assert len(seen) == 30


@pytest.mark.parametrize("seq0", [None, 7])
def test_a_message_overtaken_is_late(seq0):
    """A message that arrives after its successor leaves a gap and is dropped as late."""
    a, b, c, d = steady(4, seq0=seq0)
    _, seen, dropped, gaps = feed([a, c, b, d])
    assert dropped == {2: "late"}
    assert list(gaps) == [1]
    assert [float(w.samples[0, 0]) for w in seen] == [0.0, 200.0, 300.0]


def test_a_counter_that_restarts_is_a_gap_not_late_for_ever():
    """A sensor that restarts its counter at 0 with a later time goes on after one gap."""
    chunks = [*steady(3, seq0=5000), *steady(3, t0=T0 + 8.0, seq0=0)]
    _, seen, dropped, gaps = feed(chunks)
    assert dropped == {}
    assert gaps == {3: pytest.approx(7.7, abs=1e-6)}
    assert len(seen) == 6


def test_a_counter_without_times_that_restarts_goes_on():
    """Without times, a counter far behind is a restart; one slightly behind is late five times at most."""
    far = [chunk(100, seq=s) for s in (5000, 5001, 0, 1)]
    _, seen, dropped, gaps = feed(far)
    assert (len(seen), dropped, list(gaps)) == (4, {}, [2])
    near = [chunk(100, seq=s) for s in (*range(40, 44), 0, 1, 2, 3, 4, 5)]
    _, seen, dropped, gaps = feed(near)
    assert dropped == {4: "late", 5: "late", 6: "late", 7: "late"}
    assert list(gaps) == [8]
    assert len(seen) == 6


@pytest.mark.parametrize("before", [1, 3, 4, 5, 15, 21, 32])
def test_a_counter_without_times_that_restarts_early_goes_on(before):
    """Reset to 0 after so few messages that each number is one of the last: at most four are late, then the stream goes on behind a gap,
    also over a restart of the agent between. No window holds samples of both, and the last messages, sent again, are
    duplicates."""
    first = [chunk(60, 1000 + 60 * i, seq=i) for i in range(before)]
    second = [chunk(60, 9000 + 60 * i, seq=i) for i in range(40)]
    state, ahead, _, _ = feed(first)
    state = msgspec.convert(msgspec.to_builtins(windowing.without_tail(state)), windowing.WindowerState)
    state, seen, dropped, gaps = feed([*second, *second[30:]], state=state, received=lambda i: T0 + 0.06 * (before + i))
    late = min(4, before)
    assert dropped == {**dict.fromkeys(range(late), "late"), **dict.fromkeys(range(40, 50), "duplicate")}
    assert list(gaps) == [late]
    assert state.next_seq == 40
    assert all(len({float(v) >= 9000.0 for v in w.samples[0]}) == 1 for w in [*ahead, *seen])
    assert sum(w.samples[0, 0] >= 9000.0 for w in seen) == (40 - late) * 60 // 100


def test_messages_without_times_sent_again_are_duplicates():
    """One that comes twice, and twenty in flight that a broker sends again in their order, are used once: their samples are those
    of before. So it is where a state of before holds no checksums, and where all samples are alike."""
    once = [chunk(100, 100 * i, seq=i) for i in range(30)]
    for burst in (once[24:25], once[5:25], once[:25]):
        _, seen, dropped, gaps = feed([*once[:25], *burst, *once[25:]])
        assert list(dropped.values()) == ["duplicate"] * len(burst)
        assert (len(seen), gaps) == (30, {})
    state, _, _, _ = feed(once[:25])
    _, _, dropped, _ = feed(once[5:], state=replace(state, contents=()))
    assert list(dropped.values()) == ["duplicate"] * 20
    quiet = [Chunk(np.zeros((1, 100), np.float32), seq=i) for i in range(30)]
    _, seen, dropped, gaps = feed([*quiet[:25], *quiet[5:25], *quiet[25:]])
    assert (len(seen), list(dropped.values()), gaps) == (30, ["duplicate"] * 20, {})


def test_a_clock_set_back_is_not_late_for_ever():
    """After five late chunks that run forwards among themselves the stream goes on from the new time."""
    chunks = [*steady(10), *steady(10, t0=T0 - 3600.0)]
    _, seen, dropped, gaps = feed(chunks)
    assert dropped == dict.fromkeys(range(10, 14), "late")
    assert gaps == {14: 0.0}
    assert len(seen) == 16
    assert seen[10].start == pytest.approx(T0 - 3600.0 + 0.4)


@pytest.mark.parametrize("lost", [(), (30, 31, 150)])
def test_minutes_sent_again_by_a_restarted_broker_are_not_a_clock_set_back(lost):
    """Two hundred chunks that come again in their order, more than are remembered, are used once, whatever was lost of them."""
    once = [c for c in steady(300, seq0=0) if c.seq not in lost]
    again = [c for c in once if 80 <= c.seq < 280]
    _, seen, dropped, gaps = feed([*once, *again, *steady(310, seq0=0)[300:]])
    assert len(seen) == 310 - len(lost)
    assert set(dropped) == set(range(len(once), len(once) + len(again)))
    assert len(gaps) == len([n for n in lost if n - 1 not in lost])


def test_a_sensor_that_starts_anew_in_the_past_is_not_late_for_ever():
    """Its numbers begin at 0 and its clock an hour back, where no number of before lay: after five chunks it is followed."""
    _, seen, dropped, _ = feed([*steady(20, seq0=500), *steady(10, t0=T0 - 3600.0, seq0=0)])
    assert list(dropped.values()) == ["late"] * 4
    assert len(seen) == 26


def test_late_chunks_between_good_ones_never_move_the_clock():
    """Stray late chunks, however many, do not re-anchor a stream that itself goes on well."""
    good, stray = steady(20), steady(20, t0=T0 - 3600.0)
    mixed = [one for pair in zip(good, stray, strict=True) for one in pair]
    _, seen, dropped, gaps = feed(mixed)
    assert len(seen) == 20
    assert set(dropped.values()) == {"late"}
    assert gaps == {}


def test_far_future_is_the_sensors_clock():
    """A time more than a year ahead is dropped with a word on the sensor's clock, and changes nothing."""
    state, _, _, _ = feed(steady(2))
    pushed = windowing.push(state, SPEC, chunk(100, t=T0 + 430 * 86400.0), T0 + 60 * 86400.0)
    assert pushed.dropped is not None
    assert pushed.dropped.reason == "undecodable"
    assert "sensor's clock" in str(pushed.dropped)
    assert pushed.state is state


def test_a_board_without_a_clock_takes_every_time():
    """While the receipt clock still stands in 1970, no time counts as future."""
    pushed = windowing.push(windowing.initial(), SPEC, chunk(100, t=T0), 12.0)
    assert pushed.dropped is None
    assert len(pushed.windows) == 1


def test_the_past_is_always_fine():
    """A replay of data from 2004 is taken as it is."""
    _, seen, dropped, gaps = feed(steady(3, t0=1076581959.0), received=lambda i: T0 + i)
    assert dropped == gaps == {}
    assert seen[0].start == 1076581959.0


def test_without_time_the_first_receipt_sets_the_clock():
    """Without any time, the first sample is one duration before its receipt, then time runs nominally."""
    receipts = [T0, T0 + 0.35, T0 + 0.36, T0 + 0.4]
    _, seen, dropped, gaps = feed([chunk(100, i * 100) for i in range(4)], received=receipts.__getitem__)
    assert dropped == gaps == {}
    assert [w.start - T0 for w in seen] == pytest.approx([-0.1, 0.0, 0.1, 0.2], abs=1e-6)


def test_without_time_a_silence_is_a_gap():
    """Without any time, a silence longer than silent_after_s breaks the window and sets the clock anew."""
    receipts = [T0, T0 + 0.06, T0 + 61.0, T0 + 61.06]
    _, seen, _, gaps = feed([chunk(60, i * 60) for i in range(4)], received=receipts.__getitem__)
    assert list(gaps) == [2]
    assert [w.start - T0 for w in seen] == pytest.approx([-0.06, 60.94], abs=1e-6)
    assert seen[1].samples[0, 0] == 120.0
    _, _, _, gaps = feed([chunk(60, i * 60) for i in range(2)], received=[T0, T0 + 59.0].__getitem__)
    assert gaps == {}


def test_snapshots_are_never_glued_even_when_the_numbers_follow():
    """A sensor that sleeps ten minutes and counts on by one gives no window across the pause."""
    spec = WindowSpec(FS, 80, 80, 1)
    _, seen, dropped, gaps = feed(steady(3, period=600.0, seq0=0), spec)
    assert dropped == {}
    assert list(gaps) == [1, 2]
    assert [float(w.samples[0, 0]) for w in seen] == [0.0, 100.0, 200.0]


def test_a_window_shares_one_read_only_copy():
    """Windows do not change with the sender's buffer, cannot be written, and a chunk is copied once."""
    spec = WindowSpec(FS, 100, 50, 1)
    x = ramp(300)
    pushed = windowing.push(windowing.initial(), spec, Chunk(x, t=T0), T0)
    x[:] = -1.0
    first, second = pushed.windows[:2]
    assert first.samples[0, 0] == 0.0
    assert np.shares_memory(first.samples, second.samples)
    assert not np.shares_memory(first.samples, x)
    with pytest.raises(ValueError, match="read-only"):
        first.samples[0, 0] = 1.0
    assert not any(np.shares_memory(piece, first.samples) for piece in pushed.state.tail)


def test_a_hop_larger_than_the_window_passes_samples_over():
    """With a hop of 250 and windows of 100, windows begin every 250 samples across chunks."""
    spec = WindowSpec(FS, 100, 250, 1)
    _, seen, _, _ = feed(steady(10), spec)
    assert [float(w.samples[0, 0]) for w in seen] == [0.0, 250.0, 500.0, 750.0]
    assert [w.start - T0 for w in seen] == pytest.approx([0.0, 0.25, 0.5, 0.75], abs=1e-6)


def test_a_state_without_its_tail_goes_on_with_right_times():
    """A state stored without its tail begins the next window with the next chunk, at that chunk's time."""
    spec = WindowSpec(FS, 100, 100, 1)
    chunks = steady(5, n=60, seq0=0)
    state, _, _, _ = feed(chunks[:3], spec)
    bare = windowing.without_tail(state)
    assert windowing.fits(bare, spec)
    _, seen, dropped, gaps = feed(chunks[3:], spec, bare)
    assert dropped == gaps == {}
    assert [w.start - T0 for w in seen] == pytest.approx([0.18], abs=1e-6)
    assert seen[0].seq == 1


@pytest.mark.parametrize(
    "other",
    [
        WindowSpec(FS, 100, 100, 2),
        WindowSpec(FS, 30, 100, 1),
    ],
)
def test_a_state_of_another_window_does_not_fit(other):
    """A stored state is refused for another channel count and for windows shorter than its tail."""
    state, _, _, _ = feed(steady(1, n=60))
    assert windowing.fits(state, SPEC)
    assert not windowing.fits(state, other)


@pytest.mark.parametrize("wrong", [{"fs_hz": 0.0}, {"fs_hz": float("nan")}, {"n_samples": 0}, {"hop_samples": 0}])
def test_a_spec_out_of_range_is_refused(wrong):
    """A spec that can cut nothing is an error naming the field and the value."""
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is {next(iter(wrong.values()))}"):
        replace(SPEC, **wrong)


@pytest.mark.parametrize("received", [60.0, 1.8e9])
def test_the_last_year_of_the_calendar_is_no_time_of_a_sensor(received: float) -> None:
    """Taken while the board's clock is not set, the end of its window would have no text, and an agent that stored it could not start."""
    spec = WindowSpec(100.0, 100, 100, 1)
    chunk = Chunk(np.ones((1, 100), np.float32), t=parse_time("9999-12-31T23:59:59.999Z"))
    pushed = windowing.push(windowing.initial(), spec, chunk, received)
    assert pushed.dropped is not None
    assert pushed.dropped.reason == "undecodable"
    assert pushed.windows == ()
