"""Data quality: what each fault of a sensor leaves in the samples is named, and a fault of the machine is not taken for one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from agents import Agent, message, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, needs_mosquitto, until
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import offline, payloads, pipeline, quality, simulate, trouble
from edge_agent.alarms import Alarm
from edge_agent.errors import BundleError
from edge_agent.features import Context
from edge_agent.payloads import PayloadLayout
from edge_agent.pipeline import Pipeline
from edge_agent.quality import BAD, GOOD, SUSPECT, Profile
from edge_agent.recordings import Recording
from edge_agent.signals import Chunk
from edge_agent.trouble import Trouble
from trainer import data, recipe
from trainer.data import Clip

Listen = Callable[..., Listener]

FS, N, T0 = 8000.0, 4096, 1_790_000_000.0


def machine(n_windows: int, seed: int = 0, n_channels: int = 1) -> np.ndarray:
    """(C, n): noise through two resonances, each channel with its own, as a housing has; level about 1."""
    rng = np.random.default_rng(seed)
    n = n_windows * N
    f = np.fft.rfftfreq(n, 1 / FS)
    out = []
    for c in range(n_channels):
        gain = 0.1 + sum(a / (1 + ((f - f0) / 120.0) ** 2) for a, f0 in ((1.0, 700.0 + 350.0 * c), (0.6, 2300.0 - 400.0 * c)))
        x = np.fft.irfft(np.fft.rfft(rng.standard_normal(n)) * gain, n)
        out.append((1.0 + 0.2 * c) * x / x.std())
    return np.array(out, np.float32)


def profile(n_channels: int = 1) -> Profile:
    return Profile.of(machine(4, 99, n_channels).reshape(n_channels, 4, N).swapaxes(0, 1), FS)


def decimated(x: np.ndarray) -> np.ndarray:
    n = x.shape[1]
    return (np.fft.irfft(np.fft.rfft(x)[:, : n // 4 + 1], n // 2) / 2.0).astype(np.float32)


def _runs(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[:, 1000:1700] = out[:, 1000:1001]
    return out


def _step(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[:, 1500:] += 2.0
    return out


def _flips(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[:, [100, 900, 2500, 3001]] += np.float32([12.0, -11.0, 20.0, 15.0])
    return out


def _blows(x: np.ndarray) -> np.ndarray:
    """Every 800 samples a blow of 15 times the level that rings at 2.1 kHz."""
    lag = np.arange(200)
    ring = np.exp(-lag / 25.0) * np.sin(2 * np.pi * 2100.0 / FS * lag + 0.5)
    out = x.copy()
    for at in range(100, N - 200, 800):
        out[:, at : at + 200] += (15.0 * ring).astype(np.float32)
    return out


def _hum(x: np.ndarray) -> np.ndarray:
    t = np.arange(x.shape[1]) / FS
    return (x + np.sin(2 * np.pi * 50.05 * t) + 0.4 * np.sin(2 * np.pi * 150.15 * t)).astype(np.float32)


NOISE = np.random.default_rng(5).standard_normal((1, 2 * N)).astype(np.float32)
FAULTS: dict[str, tuple[str, str, Callable[[np.ndarray], np.ndarray]]] = {
    "NaN": (BAD, "not_finite", lambda x: np.where(np.arange(N) == 7, np.nan, x).astype(np.float32)),
    "infinity": (BAD, "not_finite", lambda x: np.where(np.arange(N) == 7, np.inf, x).astype(np.float32)),
    "one value": (BAD, "stuck", lambda x: np.full_like(x, 0.7)),
    "hangs": (BAD, "stuck", _runs),
    "zeros": (BAD, "signal_lost", np.zeros_like),
    "noise 60 dB down": (BAD, "signal_lost", lambda x: 1e-3 * NOISE[:, :N]),
    "four levels": (BAD, "signal_lost", lambda x: np.round(NOISE[:, :N]).clip(-1, 2).astype(np.float32) * np.float32(0.02)),
    "machine off": (BAD, "low_level", lambda x: 0.04 * x),
    "every sample twice": (BAD, "wrong_rate", lambda x: np.repeat(x[:, ::2], 2, axis=1)),
    "every sample three times": (BAD, "wrong_rate", lambda x: np.repeat(x[:, ::3], 3, axis=1)[:, :N]),
    "clipped": (SUSPECT, "clipping", lambda x: x.clip(-1.4, 1.4)),
    "offset jumps": (SUSPECT, "dc_step", _step),
    "hum": (SUSPECT, "hum", _hum),
    "bits flip": (SUSPECT, "spikes", _flips),
    "ringing blows": (SUSPECT, "impulses", _blows),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_named(name: str) -> None:
    """The first reason is the fault that was put in, at the quality it has."""
    level, reason, change = FAULTS[name]
    verdict = quality.inspect(change(machine(1, 3)), FS, profile(), (0.0,))
    assert (verdict.quality, verdict.reasons[:1]) == (level, (reason,))


def test_half_the_rate_is_seen_in_the_spectrum() -> None:
    """Samples of half or of double the rate, given out as the right one, fit the healthy spectrum an octave off."""
    x = machine(2, 4)
    twice = np.fft.irfft(np.fft.rfft(x[:, :N]), 2 * N)[:, :N].astype(np.float32) * 2.0
    for y in (decimated(x), x[:, ::2], twice):
        assert quality.inspect(y, FS, profile(), (0.0,)).reasons == ("wrong_rate",)


def test_channels_are_told_apart() -> None:
    """A lost channel of two, and two that have changed places; the repaired window has them back."""
    both, x = profile(2), machine(1, 6, 2)
    assert quality.inspect(x, FS, both).quality == GOOD
    lost = np.stack([x[0], 1e-4 * x[1]])
    assert quality.inspect(lost, FS, both).reasons == ("lost_channel",)
    assert quality.inspect(np.stack([x[0], np.full(N, 2.0, np.float32)]), FS, both).reasons == ("lost_channel",)
    swapped = quality.inspect(x[::-1], FS, both)
    assert swapped.reasons == ("swapped_channels",)
    assert swapped.repaired is not None
    np.testing.assert_allclose(swapped.repaired, x, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), level=st.floats(0.3, 30.0), n_channels=st.integers(1, 3))
def test_a_louder_or_quieter_machine_is_no_trouble(seed: int, level: float, n_channels: int) -> None:
    """Healthy noise at 0.3 to 30 times the level is good or, where its peaks are high, `impulses`; never withheld."""
    x = np.float32(level) * machine(1, seed, n_channels)
    verdict = quality.inspect(x, FS, profile(n_channels), (0.0,) * n_channels)
    assert verdict.quality != BAD
    assert set(verdict.reasons) <= {"impulses"}


def test_a_growing_bearing_fault_is_never_withheld_and_always_votes() -> None:
    """A simulated bearing from healthy to broken: no window is bad, none is taken for hum, spikes or a step."""
    kind, fs = simulate.demo_machine(), 10240.0
    rng = np.random.default_rng(1)
    healthy = simulate.vibration(kind, 2 * 8192, simulate.constant(0.0), rng).astype(np.float32)
    known = Profile.of(healthy.reshape(2, 1, 8192), fs)
    seen: set[str] = set()
    for severity in (0.0, 0.2, 0.5, 1.0):
        x = simulate.vibration(kind, 4 * 8192, simulate.constant(severity), rng).astype(np.float32)
        for window in x.reshape(4, 1, 8192):
            verdict = quality.inspect(window, fs, known)
            assert quality.votes(verdict.quality, verdict.reasons)
            seen |= set(verdict.reasons)
    assert seen <= {"impulses", "clipping"}


def test_what_can_be_undone_is_undone() -> None:
    """Hum, flipped bits and a step of the offset leave a window within a few per cent of the one before them."""
    x = machine(1, 8)
    for change, most in ((_hum, 0.1), (_flips, 0.05), (_step, 0.1)):
        verdict = quality.inspect(change(x), FS, profile(), (0.0,))
        assert verdict.repaired is not None
        assert float((verdict.repaired - x).std()) < most
        assert abs(float((verdict.repaired - x).mean())) < most


def test_flipped_bits_within_the_healthy_peaks_are_undone_beside_larger_ones() -> None:
    """Where some words lie beyond the healthy peaks, those that bend the signal and lie within them are mended as well; a ringing
    blow of the same height beside them is left as it is."""
    x = machine(1, 8)
    known, top = profile(), float(profile().peak[0])
    y = x.copy()
    y[:, [500, 1500, 2500]] = np.float32(2.5 * top)
    blow = np.exp(-np.arange(200) / 25.0) * np.sin(2 * np.pi * 2100.0 / FS * np.arange(200) + 0.5)
    y[:, 3000:3200] += (0.8 * top * blow).astype(np.float32)
    wanted = y.copy()
    wanted[:, [500, 1500, 2500]] = x[:, [500, 1500, 2500]]
    small = [at + int((x[0, at - 1 : at + 299] + x[0, at + 1 : at + 301]).argmin()) for at in (600, 1600, 2600)]
    y[:, small] = np.float32(0.95 * top)
    verdict = quality.inspect(y, FS, known, (0.0,))
    assert verdict.reasons[:1] == ("spikes",)
    assert verdict.repaired is not None
    off = np.abs(verdict.repaired - wanted)
    assert float(off[:, small].max()) < 0.4 * float((y - x)[:, small].min())
    assert float(off[:, 3000:3200].max()) < 0.02


def exponent_flipped(x: np.ndarray, at: list[int], bit: int = 30) -> np.ndarray:
    """With one bit of these samples flipped, in every channel; bit 30 makes 1e38 of what lies below 2."""
    out = x.copy()
    out.view(np.uint32)[:, at] ^= np.uint32(1 << bit)
    assert np.isfinite(out).all()
    return out


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("known", [profile(2), None], ids=["profile", "none"])
@pytest.mark.parametrize(("bit", "scale", "k"), [(30, 0.3, 1), (30, 0.3, 6), (29, 30.0, 1), (28, 30.0, 1), (28, 30.0, 6)])
def test_a_flipped_exponent_bit_is_undone_before_anything_leans_on_it(known: Profile | None, bit: int, scale: float, k: int) -> None:
    """0.5 that became 1e38, and 30 that became 5e20 or 1e11: `spikes`; the samples, their mean and what is left of the signal are
    as without them, and nothing overflows on the way. So it is for six of both signs, whose sum is infinite."""
    x = np.float32(scale) * machine(1, 8, 2)
    # Where the bit is 0, so that it makes a value larger; first one above 0, then one below, and so on.
    zero = (x.view(np.uint32) >> np.uint32(bit) & 1 == 0).all(0) & (np.abs(x) > scale / 10).all(0)
    pools = [np.flatnonzero(zero & (np.sign(x[0]) == sign)) for sign in (1, -1)]
    at = [int(pools[i % 2][len(pools[i % 2]) * (i + 1) // 8]) for i in range(k)]
    y = exponent_flipped(x, at, bit)
    if known is not None and scale > 1.0:
        known = replace(known, **{name: tuple(scale * v for v in getattr(known, name)) for name in ("rms", "quiet", "peak", "wander")})
    verdict = quality.inspect(y, FS, known, (0.0, 0.0))
    assert (verdict.quality, verdict.reasons) == (SUSPECT, ("spikes",))
    assert verdict.repaired is not None
    assert verdict.absurd or (known is None and bit == 28)
    rest = np.delete(np.arange(N), at)
    np.testing.assert_allclose(verdict.repaired[:, rest], x[:, rest], atol=1e-5 * scale)
    assert np.abs(verdict.repaired - x).max() < 4.0 * scale
    assert verdict.mean == pytest.approx(x.mean(-1).tolist(), abs=0.01 * scale)


@pytest.mark.filterwarnings("error")
def test_a_window_of_absurd_values_is_withheld() -> None:
    """Numbers in the wrong byte order, or more than an eighth of them 1e30 and more, of both signs: bad, and not repaired; what
    is left would be no window. It is so in one channel of two, and without a profile."""
    x, rng = machine(1, 8, 2), np.random.default_rng(1)
    swapped = np.where(np.isfinite(x.byteswap()), x.byteswap(), np.float32(0.0))
    loud = np.where(rng.random(N) < 0.2, np.float32(1e30) * x, x)
    for y in (swapped, loud, np.stack([x[0], loud[1]]), np.float32(2e38) * np.sign(x)):
        for known in (profile(2), None):
            assert quality.inspect(y, FS, known, (0.0, 0.0)) == quality.Verdict(BAD, ("not_finite",))


def test_what_a_machine_can_do_is_never_taken_for_an_absurd_value() -> None:
    """A fault of a hundred times the healthy level, with ringing blows, and a start from rest within the window: the samples are
    left as they came, whatever the offset, and with a profile as well as without."""
    x = machine(1, 8)
    start = np.where(np.arange(N) < 3800, np.float32(1e-7), np.float32(30.0)) * x
    cases = [(y, offset) for y in (_blows(np.float32(100.0) * x), _blows(x), 100.0 * _blows(x)) for offset in (0.0, 1e4)]
    for y, offset in [*cases, (start, 0.0)]:
        for known in (profile(), None):
            verdict = quality.inspect((y + np.float32(offset)).astype(np.float32), FS, known, (offset,))
            assert verdict.quality != BAD
            assert set(verdict.reasons) <= {"impulses", "dc_step"}
            assert verdict.repaired is None or "dc_step" in verdict.reasons


def test_rumble_at_the_mains_frequency_hides_no_hum() -> None:
    """Healthy noise with a tenth of its power in the bins at 60 Hz has no line there: a mains line in it is found, and the
    rumble alone is not taken for one. A healthy line is known, and then no hum."""
    rng = np.random.default_rng(5)
    n = 4 * N
    f = np.fft.rfftfreq(8 * n, 1 / FS)
    gain = 0.05 + np.exp(-(((f - 61.0) / 20.0) ** 2))
    x = np.fft.irfft(np.fft.rfft(rng.standard_normal(8 * n)) * gain, 8 * n)
    windows = (x / x.std()).astype(np.float32).reshape(8, 1, n)
    line = 1.4 * np.sin(2 * np.pi * 60.03 / FS * np.arange(n)).astype(np.float32)
    known = Profile.of(windows[:4], FS)
    assert [quality.inspect(w, FS, known, (0.0,)).reasons for w in windows[4:]] == [()] * 4
    assert [quality.inspect(w + line, FS, known, (0.0,)).reasons for w in windows[4:]] == [("hum",)] * 4
    humming = Profile.of(windows[:4] + line, FS)
    assert [quality.inspect(w + line, FS, humming, (0.0,)).reasons for w in windows[4:]] == [()] * 4


def test_without_a_profile_the_absolute_checks_go_on() -> None:
    """Of the faults above those that need no healthy window are named without one; a healthy window is good."""
    assert quality.inspect(machine(1, 3), FS).quality == GOOD
    for name in ("NaN", "one value", "hangs", "zeros", "every sample twice", "clipped", "bits flip"):
        _, reason, change = FAULTS[name]
        assert quality.inspect(change(machine(1, 3)), FS).reasons[:1] == (reason,), name


def test_a_profile_can_be_stored_and_joined() -> None:
    """Through msgpack and back it is equal; windows joined one by one give about the profile of them all."""
    windows = machine(12, 2, 2).reshape(2, 12, N).swapaxes(0, 1)
    whole = Profile.of(windows, FS)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(whole), type=Profile) == whole
    joined = Profile.of(windows[:1], FS)
    for n, window in enumerate(windows[1:], 1):
        joined = joined.joined(Profile.of(window[None], FS), n)
    np.testing.assert_allclose(joined.rms, whole.rms, rtol=0.02)
    np.testing.assert_allclose(joined.bands, whole.bands, atol=0.2)
    assert joined.peak == pytest.approx(whole.peak)
    with pytest.raises(ValueError, match="finite"):
        Profile.of(np.full((1, 1, 8), np.nan, np.float32), FS)


def test_a_machine_that_is_now_and_then_quiet_when_healthy_is_not_off() -> None:
    """A tenth of the windows 26 dB down while healthy: such a window is good, one of 46 dB down is not."""
    windows = machine(20, 5).reshape(1, 20, N).swapaxes(0, 1).copy()
    windows[::10] *= 0.05
    for known in (Profile.of(windows, FS), Profile.of(windows[:10], FS).joined(Profile.of(windows[10:], FS), 10, 10)):
        assert quality.inspect(0.05 * machine(1, 6), FS, known, (0.0,)).quality == GOOD
        assert quality.inspect(0.005 * machine(1, 6), FS, known, (0.0,)).reasons == ("low_level",)


def test_a_sensor_that_saturates_when_healthy_is_not_told_of_it() -> None:
    """Clipped in training and clipped on the device: good, and it votes."""
    windows = machine(4, 99).reshape(1, 4, N).swapaxes(0, 1).clip(-1.5, 1.5)
    assert quality.inspect(machine(1, 7).clip(-1.5, 1.5), FS, Profile.of(windows, FS), (0.0,)).quality == GOOD
    assert quality.inspect(machine(1, 7).clip(-1.5, 1.5), FS, profile(), (0.0,)).reasons == ("clipping", "rail_low")


def test_spectra_of_a_few_bands_say_nothing_of_order_and_rate() -> None:
    """One second at 200 Hz has six third octaves: channels that change their shape there are not called swapped."""
    rng = np.random.default_rng(3)
    slow = np.cumsum(rng.standard_normal((10, 1, 200)), -1)
    healthy = np.concatenate([slow / slow.std(), rng.standard_normal((10, 1, 200))], 1).astype(np.float32)
    assert quality.inspect(healthy[0, ::-1] - healthy[0, ::-1].mean(-1, keepdims=True), 200.0, Profile.of(healthy, 200.0)).quality != BAD
    assert "swapped_channels" not in quality.inspect(healthy[0, ::-1], 200.0, Profile.of(healthy, 200.0)).reasons


def test_a_step_that_stays_becomes_the_sensors_own() -> None:
    """An offset that jumped is told of for 60 windows, then it is how the sensor is mounted; going back is no step."""
    known, state, seen = profile(), Trouble(), []
    x = machine(140, 11).reshape(140, 1, N)
    for i, window in enumerate(x):
        window = window + np.float32(3.0 if 10 <= i < 100 else 0.0)
        verdict = quality.inspect(window, FS, known, trouble.offset(state, window))
        state = trouble.settle(state, verdict)
        seen.append("dc_step" in verdict.reasons)
    assert [i for i, stepped in enumerate(seen) if stepped] == list(range(10, 70))


def test_only_a_low_rail_has_no_vote() -> None:
    """From the row alone: bad does not vote, suspect does, but not where the sensor saturates below healthy peaks."""
    assert quality.votes(GOOD, ())
    assert quality.votes(SUSPECT, ("clipping",))
    assert not quality.votes(SUSPECT, ("clipping", "rail_low"))
    assert not quality.votes(BAD, ("stuck",))


def test_what_was_trained_on_says_what_healthy_samples_are_like(tmp_path: Path) -> None:
    """The trainer's table has a profile of the recordings, faults left out; it goes through bundle.json to the judge."""
    loud = {"clip_0": 1.0, "clip_1": 0.5, "anomaly_2": 40.0}
    found = []
    for k, (name, level) in enumerate(loud.items()):
        chunk = Chunk(np.float32(level) * machine(10, 30 + k), t=T0, fs_hz=FS)
        label = "anomaly" if level > 1.0 else "normal"
        found.append((Recording(name, Path(name), FS, label, lambda c=chunk: iter([c])), Clip(name, label, None)))
    np.save(tmp_path / "x.npy", np.zeros(8, np.float32))
    asked = recipe.parse(
        {
            "name": "x", "model": "indicator", "data": {"path": str(tmp_path / "x.npy"), "fs_hz": FS},
            "window": {"n_samples": N}, "features": [{"kind": "time_domain", "names": ["rms"]}], "score": {"feature": "rms"},
        }
    )  # fmt: skip
    known = data.table(asked, found).profile
    assert known is not None
    assert known.rms == pytest.approx([0.8], rel=0.2)
    assert known.quiet == pytest.approx([0.5], rel=0.2)
    assert known.peak[0] < 10.0
    bundle = make_indicator_bundle(tmp_path / "a", fs_hz=FS, n_samples=N, profile=known)
    assert bundle.judge.profile == known
    with pytest.raises(BundleError, match="profile is not one of 1 channels of 4096 samples"):
        make_indicator_bundle(tmp_path / "b", fs_hz=FS, n_samples=N, profile=replace(known, crest=(1.0, 2.0)))


# ---------------------------------------------------------------- the quality alarm


def told(slots: list[tuple[str, ...]]) -> list[tuple[int, list[str], bool]]:
    """(slot, reasons, active) of every event."""
    state, out = Trouble(), []
    for i, reasons in enumerate(slots):
        state, event = trouble.note(state, reasons, T0 + i, Alarm(), "a/s")
        if event is not None and event.extra is not None:
            alarm = event.extra["quality_alarm"]
            out.append((i, alarm["reasons"], alarm["active"]))
    return out


def test_three_of_five_begin_it_and_two_clean_ones_end_it() -> None:
    """Single faults are no episode; hum at every other window is one, once; the end names all that was in it."""
    hum, gap, ok = ("hum",), ("gap",), ()
    assert told([hum, ok, ok, ok, ok, hum, ok, hum, ok, ok, ok]) == []
    assert told([hum, ok, hum, gap, hum, ok, hum, ok, ok, ok]) == [
        (3, ["hum", "gap"], True),
        (8, ["hum", "gap"], False),
    ]
    assert told([("signal_lost",), ("signal_lost",), ok, ok]) == [(0, ["signal_lost"], True), (3, ["signal_lost"], False)]
    assert told([("low_level",)] * 9) == []
    assert told([("impulses",)] * 9) == []


def test_an_episode_has_one_id_over_a_restart() -> None:
    """Stored and loaded in the middle, the end goes out under the id of the beginning, with its since."""
    state, begin = trouble.note(Trouble(), ("signal_lost",), T0, Alarm(), "a/s")
    state = msgspec.msgpack.decode(msgspec.msgpack.encode(state), type=Trouble)
    for i in (1, 2):
        state, end = trouble.note(state, (), T0 + i, Alarm(), "a/s")
    assert begin is not None
    assert end is not None
    assert (begin.alarm_id, begin.since) == (end.alarm_id, end.since)
    assert begin.event_id != end.event_id
    assert state.counts == {"signal_lost": 1}


# ---------------------------------------------------------------- through the pipeline


@pytest.fixture(scope="module")
def rms(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """RMS of 256-point windows at 1 kHz, history of two."""
    bundle = make_indicator_bundle(tmp_path_factory.mktemp("bundle") / "rms", context=Context("windows", 2))
    return replace(offline.pipeline_for(bundle), layout=PayloadLayout("f32le", 1, "ts_seq"))


def send(ready: Pipeline, chunks: list[Chunk], state: Any = None) -> tuple[Any, list[Any], list[Any], list[str]]:
    """State, rows, transitions and drop reasons of these messages."""
    state = pipeline.initial(ready) if state is None else state
    rows, transitions, drops = [], [], []
    for chunk in chunks:
        state, outcome = pipeline.step(ready, state, payloads.encode(chunk, ready.layout), (chunk.t or 0.0) + 0.3)
        rows += outcome.measured
        transitions += [t for _, t in outcome.transitions]
        drops += [outcome.dropped.reason] if outcome.dropped else []
    return state, rows, transitions, drops


def noise(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, n)).astype(np.float32)


def chunks(x: np.ndarray, first: int = 0, m: int = 256, stretch: float = 1.0, t: float = T0) -> list[Chunk]:
    return [
        Chunk(x[:, i * m : (i + 1) * m].copy(), t=t + (first + stretch * i) * m / 1000.0, seq=first + i)
        for i in range(x.shape[1] // m)
    ]


def test_a_bad_window_has_a_row_and_no_score_and_breaks_the_history(rms: Pipeline) -> None:
    """Zeros between healthy windows: rows without score, one episode, then a history that fills again and scores."""
    x = noise(12 * 256)
    x[:, 4 * 256 : 7 * 256] = 0.0
    state, rows, transitions, _ = send(rms, chunks(x))
    assert [m.score is not None for m in rows] == [False, *[True] * 3, *[False] * 4, *[True] * 4]
    assert [m.reasons for m in rows[4:7]] == [("signal_lost",)] * 3
    assert [m.quality for m in rows[7:]] == [GOOD] * 5
    assert [t.type for t in transitions] == ["quality"] * 2
    assert state.trouble.episode is None
    again = pipeline.load(rms, pipeline.dump(state))
    assert again is not None
    assert again.trouble == state.trouble


def test_a_crossing_counts_only_where_it_survives_the_repair(rms: Pipeline) -> None:
    """Flipped bits alone never cross the limit; on a machine three times as loud the same bits hide nothing."""
    for level, events in ((1.0, []), (3.0, ["new"])):
        x = np.float32(level) * noise(16 * 256, 3)
        x[:, 4 * 256 :: 97] += np.float32(40.0)
        _, rows, transitions, _ = send(rms, chunks(x))
        assert "spikes" in rows[8].reasons
        assert [t.type for t in transitions if t.type != "quality"][: len(events) + 1] == events
        assert (rows[8].ratio >= 1.0) == (level > 1.0)


def test_a_flipped_exponent_bit_costs_neither_an_alarm_nor_the_windows_after_it(rms: Pipeline) -> None:
    """A sample of 1e38 in four windows in a row: each is scored as it is without, the offset stays the sensor's own, and the
    windows after them are good. A machine three times as loud under them raises its alarm."""
    for level, events in ((1.0, []), (3.0, ["new"])):
        x = np.float32(level) * noise(16 * 256, 3)
        y = x.copy()
        for i in range(4, 8):
            at = 256 * i + int(np.abs(np.abs(x[0, 256 * i : 256 * i + 256]) - 0.5).argmin())
            y[:, at : at + 1] = exponent_flipped(x[:, at : at + 1], [0])
        _, wanted, _, _ = send(rms, chunks(x))
        state, rows, transitions, _ = send(rms, chunks(y))
        assert [m.reasons for m in rows[4:8]] == [("spikes",)] * 4
        assert {m.reasons for m in rows[8:]} <= {(), ("impulses",)}
        assert [m.ratio for m in rows[4:]] == pytest.approx([m.ratio for m in wanted[4:]], rel=0.02)
        assert [t.type for t in transitions if t.type != "quality"] == events
        assert abs(state.trouble.mean[0]) < 0.2 * level


def test_an_absurd_value_does_not_choose_the_offset(rms: Pipeline) -> None:
    """Of the present and the former offset the nearer one is told by the samples, not by a mean that 1e38 leans on."""
    state = Trouble(mean=(5.0,), former=(0.0,))
    for here, wanted in ((0.1, (0.0,)), (4.9, (5.0,))):
        for odd in (1e38, -1e38):
            x = noise(256) + np.float32(here)
            assert trouble.offset(state, x) == wanted
            x[0, 7] = odd
            assert trouble.offset(state, x) == wanted


def test_a_sensor_that_saturates_low_is_scored_and_does_not_vote(rms: Pipeline) -> None:
    """Clipped windows have their score; neither they nor the history they leave raise or hold an alarm."""
    x = noise(14 * 256)
    x[:, 4 * 256 : 9 * 256] = x[:, 4 * 256 : 9 * 256].clip(-1.0, 1.0)
    state, rows, transitions, _ = send(rms, chunks(x))
    assert [m.quality for m in rows[4:9]] == [SUSPECT] * 5
    assert all(m.score is not None and m.reasons == ("clipping", "rail_low") for m in rows[4:9])
    assert rows[9].score is None, "its history would hold clipped windows"
    assert rows[10].score is not None
    assert {t.type for t in transitions} == {"quality"}
    assert len(state.alarm.ratios) == 5


def test_half_the_rate_is_told_by_the_times_of_messages(rms: Pipeline) -> None:
    """Messages twice as far apart as their samples say are dropped as wrong_rate; at the right rate it goes on."""
    good = chunks(noise(10 * 64, 1), m=64)
    slow = chunks(noise(16 * 64, 2), m=64, stretch=2.0, t=good[-1].t + 0.064)  # type: ignore[operator]
    after = chunks(noise(16 * 64, 3), m=64, t=slow[-1].t + 0.128)  # type: ignore[operator]
    stream = [replace(c, seq=i) for i, c in enumerate([*good, *slow, *after])]
    state, rows, transitions, drops = send(rms, stream)
    assert set(drops) == {"wrong_rate"}
    assert len(drops) >= 10
    assert [t.extra["quality_alarm"]["reasons"][0] for t in transitions if t.extra] == ["wrong_rate"] * 2
    assert rows[-1].quality == GOOD
    assert state.trouble.episode is None


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("case", ["a refused time", "a clock set back", "a year ahead and back"])
def test_times_that_went_astray_do_not_hide_half_the_rate(rms: Pipeline, case: str, counted: bool) -> None:
    """A message of the year 2096, which is refused, or a clock that is set back by an hour, or goes right after having been ahead:
    at the right rate nothing is told of the times from then on, and half the rate is told as soon as ever."""
    x, drops, t, states = noise(60 * 64), [], T0, [pipeline.initial(rms)]
    for i in range(60):
        if i == 20:
            t -= {"a clock set back": 3600.0}.get(case, 0.0)
        stamp = t + {"a refused time": 2.2e9, "a year ahead and back": 300 * 86400.0}.get(case, 0.0) * (i == 20)
        chunk = Chunk(x[:, 64 * i : 64 * i + 64], t=stamp, seq=i if counted else None)
        state, outcome = pipeline.step_chunk(rms, states[-1], chunk, T0 + 0.064 * i)
        states.append(state)
        drops.append(None if outcome.dropped is None else outcome.dropped.reason)
        assert not {"wrong_rate"}.intersection(r for m in outcome.measured if i < 40 for r in m.reasons)
        t += 0.064 * (1.0 if i < 40 else 2.0)
    assert "wrong_rate" not in drops[:41]
    assert drops[45:] == ["wrong_rate"] * 15
    assert states[40].trouble.counts.get("wrong_rate", 0) == 0


def test_messages_sent_again_do_not_disturb_the_pace(rms: Pipeline) -> None:
    """Minutes of messages that come once more, in their order, with numbers or without, and stamps that go to and fro a little: no
    window is withheld, and no rate is told."""
    whole = chunks(noise(200 * 64), m=64)
    uneven = [replace(c, t=(c.t or 0.0) + 0.04 * (-1) ** i) for i, c in enumerate(whole)]
    again = whole[:60] + whole[30:60] + whole[60:]
    for stream in (again, [replace(c, seq=None) for c in again], uneven):
        state, qualities, drops = pipeline.initial(rms), set(), set()
        for i, chunk in enumerate(stream):
            state, outcome = pipeline.step_chunk(rms, state, chunk, T0 + 0.064 * i)
            qualities |= {m.quality for m in outcome.measured}
            drops |= {outcome.dropped.reason} if outcome.dropped else set()
        assert qualities == {GOOD}
        assert drops <= {"duplicate"}
        assert state.trouble.counts.keys() <= {"duplicate"}


def test_half_the_rate_is_told_by_receipts_where_messages_have_no_times(rms: Pipeline) -> None:
    """Without times, messages that come twice as far apart are dropped after two legs; one stall and its burst tell nothing."""
    ready = replace(rms, layout=PayloadLayout("f32le", 1))
    rng = np.random.default_rng(9)

    def drops(spacings: np.ndarray) -> list[bool]:
        x, state, out = noise(64 * len(spacings)), pipeline.initial(ready), []
        for i, t in enumerate(T0 + np.cumsum(0.064 * spacings)):
            chunk = Chunk(x[:, 64 * i : 64 * i + 64].copy())
            state, outcome = pipeline.step(ready, state, payloads.encode(chunk, ready.layout), float(t))
            out.append(outcome.dropped is not None and outcome.dropped.reason == "wrong_rate")
        return out

    even = rng.uniform(0.8, 1.2, 40)
    found = drops(np.concatenate([even, 2.0 * even, even]))
    assert found.index(True) <= 40 + 3 * trouble.LEG
    assert all(found[40 + 3 * trouble.LEG : 80])
    assert not any(found[80 + 2 * trouble.LEG :])
    assert not any(found[:40])
    stall = np.concatenate([even, [9.0] * 3, [0.1] * 30, even])
    assert not any(drops(stall))
    assert not any(drops(0.01 * np.concatenate([even, 2.0 * even])))


def test_half_the_rate_is_told_by_receipts_where_times_are_counted_from_samples(rms: Pipeline) -> None:
    """A sensor at half its rate whose times pretend the full one falls behind the receipts by the factor 2: dropped once it is
    10 s behind, until it comes at fs_hz again. A link that is too slow, one that stalls, and a slow stretch of a few seconds are
    not taken for it; kills delay it and do not hide it."""
    rng = np.random.default_rng(4)

    def drops(spacings: np.ndarray, kills: tuple[int, ...] = ()) -> list[bool]:
        whole, state, out = chunks(noise(64 * len(spacings)), m=64), pipeline.initial(rms), []
        for i, (chunk, t) in enumerate(zip(whole, T0 + np.cumsum(0.064 * spacings), strict=True)):
            if i in kills:
                found = pipeline.load(rms, pipeline.dump(state, tail=False))
                assert found is not None
                state = found
            state, outcome = pipeline.step(rms, state, payloads.encode(chunk, rms.layout), float(t))
            out.append(outcome.dropped is not None and outcome.dropped.reason == "wrong_rate")
        return out

    even, lasting = rng.uniform(0.9, 1.1, 60), rng.uniform(0.9, 1.1, 300)
    for slip in (2.0, 4.0):
        found = drops(np.concatenate([even, slip * lasting, even]))
        first = found.index(True) - 60
        assert 10.0 <= first * 0.064 * (slip - 1.0) + 0.1 <= 10.0 + 3 * trouble.LEG * 0.064 * slip
        assert all(found[60 + first : 360])
        assert not any(found[360 + 2 * trouble.LEG :])
    killed = drops(np.concatenate([even, 2.0 * lasting, even]), kills=(59, 200, 355))
    assert killed.index(True) <= 60 + 250
    assert all(killed[330:360])
    assert not any(drops(np.concatenate([even, 1.5 * lasting, 2.5 * lasting, even])))
    assert not any(drops(np.concatenate([even, np.tile([9.0, *[1.0] * 7], 40), even])))
    assert not any(drops(np.concatenate([even, *[2.0 * even, 0.1 * even, even] * 3])))
    assert not any(drops(2.0 * lasting))


def test_snapshots_and_lost_messages_are_no_wrong_rate(rms: Pipeline) -> None:
    """A window every ten minutes, a window every second one, and a stream of which every other message is lost."""
    x = noise(12 * 256)
    for stretch in (2344.0, 2.0):
        state, rows, _, drops = send(rms, chunks(x, stretch=stretch))
        assert (len(rows), drops, state.trouble.counts) == (12, [], {})
    *_, drops = send(rms, chunks(x, m=64)[::2])
    assert drops == []


def test_snapshots_too_short_for_a_window_are_told_of(rms: Pipeline) -> None:
    """Half a window every ten minutes gives no row and would pass in silence: `gap`; a window and a half is in order."""
    for length, begun in ((2, [["gap"]]), (6, [])):
        whole = [c for i in range(12) for c in chunks(noise(64 * length, i), first=length * i, m=64, t=T0 + 600.0 * i)]
        _, rows, transitions, _ = send(rms, whole)
        assert [t.extra["quality_alarm"]["reasons"] for t in transitions if t.extra] == begun
        assert len(rows) == (12 if length == 6 else 0)


def test_gaps_and_repeats_are_told_of(rms: Pipeline) -> None:
    """A stream that loses every third message, and one that sends each twice, have their quality alarm by name."""
    whole = chunks(noise(24 * 256), m=64)
    for stream, reason in (([c for i, c in enumerate(whole) if i % 3], "gap"), ([c for c in whole for _ in (0, 1)], "duplicate")):
        _, _, transitions, _ = send(rms, stream)
        assert transitions[0].extra is not None
        assert transitions[0].extra["quality_alarm"]["reasons"][0] == reason


def test_a_sensor_far_below_the_bundles_level_can_be_commissioned(rms: Pipeline) -> None:
    """At a fiftieth of the level the bundle's profile calls the machine off; commissioning learns its own, and judges by it."""
    ready = replace(rms, threshold=replace(rms.threshold, value=5.0))
    x = np.float32(0.02) * noise(400 * 256, 7)
    stream = chunks(x)
    state, rows, _, _ = send(ready, stream[:5])
    assert {m.reasons for m in rows} == {("low_level",)}
    state, _ = pipeline.commission(ready, state, "start", T0)
    state, rows, _, _ = send(ready, stream[5:], state)
    assert state.commissioning.phase == "armed", state.commissioning.reason
    assert state.profiles.acting is not None
    assert state.profiles.acting.rms == pytest.approx([0.02], rel=0.1)
    assert rows[-1].quality == GOOD
    last = chunks(np.float32(0.0004) * noise(3 * 256, 8), first=400)
    _, rows, _, _ = send(ready, last, state)
    assert {m.reasons for m in rows} == {("low_level",)}


def test_nothing_bad_or_suspect_is_learnt_and_a_baseline_full_of_it_is_refused(rms: Pipeline) -> None:
    """Flipped bits in every tenth window: those are not learnt from. In every third, or dead ones: refused with the reason."""
    ready = replace(rms, threshold=replace(rms.threshold, value=50.0))
    for every, change, learnt in ((10, _flipped, True), (3, _flipped, False), (3, np.zeros_like, False)):
        x = noise(60 * 256, 5)
        for i in range(5, 60, every):
            x[:, i * 256 : (i + 1) * 256] = change(x[:, i * 256 : (i + 1) * 256])
        state, _ = pipeline.commission(ready, pipeline.initial(ready), "start", T0)
        state, rows, _, _ = send(ready, chunks(x), state)
        marked = sum(m.quality != GOOD for m in rows)
        assert marked == len(range(5, 60, every))
        if learnt:
            assert (state.commissioning.phase, state.commissioning.progress.bad) == ("learning", marked)
            assert state.profiles.n <= 60 - marked
            assert state.profiles.going is not None
            assert state.profiles.going.peak[0] < 6.0
        else:
            assert state.commissioning.phase == "refused"
            assert "quality fault" in state.commissioning.reason


def _flipped(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[:, 20::60] += np.float32(40.0)
    return out


@needs_mosquitto
def test_the_agent_says_bad_data_and_online_again(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A sensor that goes dead: status, an event of type quality, health by reason, state; all clear after it; no alarm."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for seq in range(8):
            ear.publish("plant/a", message(seq, 0.0 if 3 <= seq < 5 else 1.0))
        events = [msgspec.json.decode(e) for e in ear.wait("edge/t/s/a/event", 2)]
        until(lambda: ear.on("edge/t/s/a/status")[-1:] == [b"online"])
        until(lambda: ear.json("edge/t/health")[-1:] and ear.json("edge/t/health")[-1]["quality"] == {"a": {"signal_lost": 2}})
        rows = agent.rows("SELECT type FROM events")
    assert [(e["type"], e["severity"], e["quality_alarm"]["active"]) for e in events] == [
        ("quality", None, True),
        ("quality", None, False),
    ]
    assert events[0]["quality_alarm"]["reasons"] == ["signal_lost"]
    assert events[0]["alarm_id"] == events[1]["alarm_id"]
    assert b"bad_data" in ear.on("edge/t/s/a/status")
    assert rows == [("quality",)] * 2
