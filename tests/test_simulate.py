"""The simulator obeys the physics it states, and repeats itself to the last bit."""

from __future__ import annotations

import wave
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from edge_agent import commissioning
from edge_agent import simulate as sim
from edge_agent.simulate_files import main, write_life, write_sound_folder, write_vibration

MACHINE = sim.demo_machine()


def kurtosis(x):
    x = x.astype(np.float64) - x.mean()
    return float(np.mean(x**4) / np.mean(x**2) ** 2)


def rms(x):
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


def envelope_spectrum(x, machine):
    """Frequencies and amplitudes of the envelope around the machine's resonance."""
    band = (0.6 * machine.resonance_hz, min(1.4 * machine.resonance_hz, 0.49 * machine.fs_hz))
    sos = signal.butter(4, band, "bandpass", fs=machine.fs_hz, output="sos")
    envelope = np.abs(signal.hilbert(signal.sosfiltfilt(sos, x.astype(np.float64))))
    envelope -= envelope.mean()
    return np.fft.rfftfreq(x.size, 1 / machine.fs_hz), np.abs(np.fft.rfft(envelope)) * 2 / x.size


def take(machine, n, cut, **kwargs):
    chunks = list(islice(sim.stream(machine, cut, **kwargs), -(-n // cut)))
    return np.concatenate([c.samples[0] for c in chunks])[:n]


@pytest.mark.parametrize("fault", ["outer", "ball"])
def test_envelope_peaks_at_the_rate_of_the_impacts(fault):
    """The strongest envelope line of a full-grown outer-race or ball fault lies within 1 % of its rate,
    or for a ball, which passes the load zone with the cage, within one cage turn of it."""
    machine = replace(MACHINE, fault=fault)
    x = sim.vibration(machine, 8 * 10240, 1.0, np.random.default_rng(1))
    f, a = envelope_spectrum(x, machine)
    near = (f > 0.5 * machine.fault_hz) & (f < 1.5 * machine.fault_hz)
    peak = f[near][np.argmax(a[near])]
    side = machine.bearing.frequencies(machine.shaft_hz).ftf if fault == "ball" else 0.0
    assert min(abs(peak - machine.fault_hz - k * side) for k in (-1, 0, 1)) < 0.01 * machine.fault_hz


def test_inner_race_fault_has_sidebands_of_the_shaft():
    """An inner-race fault shows BPFI, and beside it sidebands one shaft turn away, for it turns through
    the load zone."""
    machine = replace(MACHINE, fault="inner", slip=0.005)
    x = sim.vibration(machine, 16 * 10240, 1.0, np.random.default_rng(2))
    f, a = envelope_spectrum(x, machine)

    def line(hz):
        return a[np.abs(f - hz) < 0.01 * machine.fault_hz].max()

    floor = np.median(a[(f > 20) & (f < 400)])
    for hz in (machine.fault_hz, machine.fault_hz - machine.shaft_hz, machine.fault_hz + machine.shaft_hz):
        assert line(hz) > 8 * floor, hz


def test_healthy_envelope_has_no_line_at_bpfo():
    """Without a fault the envelope at BPFO is no higher than its neighbourhood."""
    x = sim.vibration(MACHINE, 8 * 10240, 0.0, np.random.default_rng(3))
    f, a = envelope_spectrum(x, MACHINE)
    here = a[np.abs(f - MACHINE.fault_hz) < 0.01 * MACHINE.fault_hz].max()
    around = a[(f > 0.7 * MACHINE.fault_hz) & (f < 1.3 * MACHINE.fault_hz)]
    assert here < np.quantile(around, 0.999) * 1.2


def test_healthy_statistics_are_gaussian():
    """A healthy machine's kurtosis is that of noise with small tones, 2.7 to 3.2; its skewness stays
    within what two tones locked in phase can give, 3/4 a1² a2 / σ³ = 0.08, and the sampling error."""
    x = sim.vibration(MACHINE, 10 * 10240, 0.0, np.random.default_rng(4)).astype(np.float64)
    assert 2.7 < kurtosis(x) < 3.2
    assert abs(np.mean((x - x.mean()) ** 3) / x.std() ** 3) < 0.1


def test_rms_is_the_sum_of_the_stated_powers():
    """At constant load the mean square is noise² + structure² + Σ harmonic²/2, within 3 %."""
    machine = replace(MACHINE, load_variation=0.0)
    x = sim.vibration(machine, 20 * 10240, 0.0, np.random.default_rng(5))
    expected = machine.noise_g**2 + machine.structure_g**2 + sum(a * a / 2 for a in machine.harmonics_g)
    assert rms(x) ** 2 == pytest.approx(expected, rel=0.03)


def test_a_single_impact_has_the_stated_peak_and_decay():
    """One impact alone reaches its peak and has fallen by exp(-2π f ζ t) after t."""
    machine = replace(MACHINE, harmonics_g=(), structure_g=0.0, noise_g=0.0, impact_scatter=0.0,
                      load_variation=0.0, fs_hz=81920.0)  # fmt: skip
    period = machine.fs_hz / machine.fault_hz
    x = np.abs(sim.vibration(machine, int(3 * period), 1.0, np.random.default_rng(6)))
    at = int(np.argmax(x[: int(2 * period)]))
    assert x[at] == pytest.approx(machine.impact_g, rel=0.01)
    ring = round(3 * machine.fs_hz / machine.resonance_hz)
    decay = x[at + ring - 4 : at + ring + 5].max() / x[at]
    w = 2 * np.pi * machine.resonance_hz * machine.damping * ring / machine.fs_hz
    assert decay == pytest.approx(np.exp(-w), rel=0.05)


@pytest.mark.parametrize("fault", sim.FAULTS)
def test_kurtosis_and_rms_grow_with_severity(fault):
    """Each step of severity makes the signal stronger and more impulsive; full-grown is plain."""
    machine = replace(MACHINE, fault=fault)
    xs = [sim.vibration(machine, 4 * 10240, s, np.random.default_rng(7)) for s in (0.0, 0.25, 0.5, 1.0)]
    assert np.all(np.diff([kurtosis(x) for x in xs]) > 0.3)
    assert np.all(np.diff([rms(x) for x in xs]) > 0)
    assert kurtosis(xs[-1]) > 6


def test_same_seed_same_samples_other_seed_other_samples():
    """A seed is all there is to repeat a signal."""
    a, b, c = (sim.vibration(MACHINE, 5000, 0.3, np.random.default_rng(s)) for s in (8, 8, 9))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(1, 9000))
def test_the_cut_into_chunks_changes_no_sample(cut):
    """Any chunk length gives the same stream, numbered and timed without a gap."""
    n = 9000 if cut > 50 else 500
    kwargs = {"severity_of_t": sim.growing(0.2, 0.3), "seed": 10}
    assert np.array_equal(take(MACHINE, n, cut, **kwargs), take(MACHINE, n, 4096, **kwargs))
    first, second = islice(sim.stream(MACHINE, cut, start=100.0, **kwargs), 2)
    assert (first.seq, second.seq, first.t) == (0, 1, 100.0)
    assert second.t == pytest.approx(100.0 + cut / MACHINE.fs_hz)
    assert first.samples.shape == (1, cut)
    assert first.samples.dtype == np.float32


def test_the_fault_touches_nothing_before_its_onset():
    """Up to the onset a run with a fault equals the run without, bit for bit; afterwards it does not."""
    fs = int(MACHINE.fs_hz)
    healthy = take(MACHINE, 4 * fs, 4096, seed=11)
    faulty = take(MACHINE, 4 * fs, 4096, seed=11, severity_of_t=sim.growing(2.0, 1.0))
    assert np.array_equal(healthy[: 2 * fs], faulty[: 2 * fs])
    assert rms(faulty[3 * fs :]) > 1.5 * rms(healthy[3 * fs :])


def test_the_shaft_turns_on_over_block_and_chunk_borders():
    """The first harmonic is one line: nothing of it leaks where blocks meet."""
    machine = replace(MACHINE, harmonics_g=(1.0,), structure_g=0.0, noise_g=0.0, load_variation=0.0,
                      speed_variation=0.0)  # fmt: skip
    x = take(machine, 10240, 700, seed=12)
    second_difference = x[2:] - 2 * np.cos(2 * np.pi * machine.shaft_hz / machine.fs_hz) * x[1:-1] + x[:-2]
    assert np.abs(second_difference).max() < 1e-5


def test_growing_is_zero_then_exponential_then_one():
    """Severity is exactly 0 before the onset, `first` at it, the geometric middle halfway, 1 at the end."""
    s = sim.growing(10.0, 10.0, first=0.04)
    assert [s(t) for t in (0.0, 9.999)] == [0.0, 0.0]
    assert s(10.0) == pytest.approx(0.04)
    assert s(15.0) == pytest.approx(0.2)
    assert s(20.0) == pytest.approx(1.0)
    assert s(1e9) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fault": "cage"}, "cage"),
        ({"resonance_hz": 6000.0}, "6000"),
        ({"damping": 0.0}, "damping"),
        ({"slip": 0.5}, "slip"),
        ({"shaft_hz": 0.0}, "shaft_hz"),
        ({"fs_hz": 400.0, "resonance_hz": 150.0}, "fault's rate"),
    ],
)
def test_an_impossible_machine_is_refused(change, word):
    """A machine that cannot be computed is refused with the value that is wrong."""
    with pytest.raises(ValueError, match=word):
        replace(MACHINE, **change)


# ---------------------------------------------------------------------------- run to failure


@pytest.mark.parametrize("seed", range(8))
def test_a_life_is_healthy_until_its_onset_and_plain_at_its_end(seed):
    """Severity is exactly 0 before the onset, never falls, ends at 1; the last snapshot's kurtosis tells it."""
    life = sim.run_to_failure(seed, 300)
    severity = np.array(life.severity)
    assert 0.5 * 300 - 1 <= life.onset_index <= 0.7 * 300 + 1
    assert not severity[: life.onset_index].any()
    assert severity[life.onset_index] > 0
    assert np.all(np.diff(severity) >= 0)
    assert severity[-1] == pytest.approx(1.0)
    assert 2.6 < kurtosis(life.snapshot(life.onset_index - 1).samples[0]) < 3.4
    assert kurtosis(life.snapshot(299).samples[0]) > 6


def test_the_healthy_life_wanders_but_has_no_events():
    """After the run-in the healthy RMS scatters 0.5 to 3 %, and no snapshot leaves its own band."""
    life = sim.run_to_failure(21, 300)
    level = np.log([rms(life.snapshot(i).samples[0]) for i in range(life.onset_index)])
    rest = level[8:]
    assert 0.005 < rest.std() < 0.03
    assert np.abs(rest - np.median(rest)).max() < 6 * rest.std()
    assert abs(level[0] - np.median(rest)) > 2 * rest.std()


def test_snapshots_come_in_any_order_and_are_the_same():
    """Snapshot i depends on seed and i alone, and carries its time and number."""
    life = sim.run_to_failure(3, 40, start=1000.0)
    late = life.snapshot(30)
    again = list(islice(life.snapshots(), 31))[30]
    assert np.array_equal(late.samples, again.samples)
    assert (late.t, late.seq, late.fs_hz, late.samples.shape) == (1000.0 + 30 * 600, 30, 20000.0, (1, 20480))
    assert len(life) == 40
    assert sim.run_to_failure(3, 40, start=1000.0) == life


def test_machines_of_different_seeds_differ():
    """Ten seeds give ten machines, of more than one bearing."""
    machines = [sim.run_to_failure(seed, 20).machine for seed in range(10)]
    assert len({m.shaft_hz for m in machines}) == 10
    assert len({m.bearing for m in machines}) > 1


# ---------------------------------------------------------------------------- sound


def log_spectrum(x):
    """Mean log power in 64 bands of 125 Hz."""
    _, _, spectrum = signal.stft(x.astype(np.float64), 16000, nperseg=1024)
    power = np.abs(spectrum[1:]) ** 2
    return np.log(power.reshape(64, 8, -1).mean(1)).mean(-1)


def clips(machine_id, n, first_seed, **kwargs):
    return np.array([log_spectrum(sim.sound(machine_id, seconds=3, seed=first_seed + k, **kwargs)) for k in range(n)])


def test_a_clip_is_repeatable_within_full_scale_and_in_its_length():
    """Same id and seed, same clip; within ±1; at 16 kHz one second has 16000 samples."""
    a, b, c = (sim.sound(1, seconds=1, seed=s) for s in (5, 5, 6))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert a.shape == (16000,)
    assert a.dtype == np.float32
    assert np.abs(a).max() <= 1
    assert 0.02 < rms(a) < 0.15


def test_ids_differ_more_than_clips_of_one_id():
    """The mean spectra of two fans lie further apart than those of two halves of one fan's clips."""
    groups = [clips(i, 12, 100) for i in range(3)]
    within = max(np.linalg.norm(g[:6].mean(0) - g[6:].mean(0)) for g in groups)
    between = min(np.linalg.norm(groups[i].mean(0) - groups[j].mean(0)) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert between > 1.5 * within


def test_blade_tone_stands_at_blades_times_speed():
    """The strongest line between 100 and 260 Hz (hum apart) is the blade tone, within 4 %."""
    f0 = sim.fan(2)
    x = sim.sound(2, seconds=8, snr_db=30, seed=1).astype(np.float64)
    f, p = signal.welch(x, 16000, nperseg=16384)
    look = (f > 110) & (f < 260) & (np.abs(f - 200) > 3)
    assert f[look][np.argmax(p[look])] == pytest.approx(f0.n_blades * f0.shaft_hz, rel=0.04)


@pytest.mark.parametrize("fault", sim.FAN_FAULTS)
def test_each_fault_changes_the_sound_and_severity_0_does_not(fault):
    """Severity 0 is the healthy clip bit for bit; severity 1 is not."""
    healthy = sim.sound(0, seconds=1, seed=3)
    assert np.array_equal(healthy, sim.sound(0, fault=fault, severity=0.0, seconds=1, seed=3))
    assert not np.allclose(healthy, sim.sound(0, fault=fault, seconds=1, seed=3), atol=1e-3)


def test_telling_faults_by_the_mean_spectrum_is_possible_but_not_trivial():
    """Nearest neighbour on mean spectra tells faults from healthy clips with an AUC of 0.65 to 0.97."""
    train, normal = clips(0, 30, 0), clips(0, 20, 1000)
    faulty = np.concatenate([clips(0, 6, 2000, fault=fault) for fault in sim.FAN_FAULTS])

    def score(v):
        return np.min(np.linalg.norm(v[:, None] - train[None], axis=-1), axis=1)

    auc = np.mean(score(faulty)[:, None] > score(normal)[None])
    assert 0.65 < auc < 0.97


def test_an_unknown_fault_is_refused():
    """The error names the known faults."""
    with pytest.raises(ValueError, match="imbalance"):
        sim.sound(0, fault="gremlin")


# ---------------------------------------------------------------------------- files


def test_sound_folder_has_the_dcase_layout(tmp_path):
    """Labels and ids stand in the names, the files are 16-bit mono at 16 kHz."""
    n = write_sound_folder(tmp_path, ids=(0, 7), n_train=2, n_test=1, seconds=0.5)
    files = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.wav"))
    assert n == len(files) == 8
    assert "train/normal_id_07_00000001.wav" in files
    assert "test/anomaly_id_00_00000000.wav" in files
    with wave.open(str(tmp_path / files[0])) as w:
        assert (w.getnchannels(), w.getsampwidth(), w.getframerate(), w.getnframes()) == (1, 2, 16000, 8000)


def test_vibration_file_holds_the_stream(tmp_path):
    """The .npz has the stream's samples and its sampling rate."""
    n = write_vibration(tmp_path / "v.npz", MACHINE, 1.5, seed=4)
    with np.load(tmp_path / "v.npz") as file:
        assert n == file["x"].size == 15360
        assert float(file["fs"]) == MACHINE.fs_hz
        assert np.array_equal(file["x"], take(MACHINE, n, 4096, seed=4))


def test_life_is_written_as_nasa_text(tmp_path):
    """Each snapshot is a text file named by its time, in g to a thousandth."""
    life = sim.run_to_failure(1, 20, n_samples=256)
    assert write_life(tmp_path, life) == 20
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[:2] == ["2023.11.14.22.13.20", "2023.11.14.22.23.20"]
    assert np.allclose(np.loadtxt(tmp_path / names[1]), life.snapshot(1).samples[0], atol=0.00051)


def test_command_line_writes_all_three_kinds(tmp_path, capsys):
    """`sound`, `vibration` and `life` write what they name; a wrong suffix is a usage error."""
    assert main(["sound", str(tmp_path / "s"), "--ids", "1", "--train", "1", "--test", "1", "--seconds", "0.2"]) == 0
    assert main(["vibration", str(tmp_path / "v.npz"), "--seconds", "1", "--onset", "0.5", "--growth", "0.2"]) == 0
    assert main(["vibration", str(tmp_path / "w.npz"), "--seconds", "1", "--severity", "0.5"]) == 0
    assert main(["life", str(tmp_path / "l"), "--snapshots", "20"]) == 0
    assert len(list((tmp_path / "l").iterdir())) == 20
    assert "3 clips" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["vibration", str(tmp_path / "v.wav")])
    assert stop.value.code == 2


def test_any_machine_is_healthy_before_its_onset_at_any_level() -> None:
    """Thirty machines: levels spread over 30 dB and more, none of them impulsive, and the same at every call."""
    levels, kurtosis = [], []
    for seed in range(30):
        x = sim.any_machine(seed, 40).snapshot(3).samples[0].astype(np.float64)
        levels.append(20.0 * np.log10(x.std()))
        kurtosis.append(np.mean((x - x.mean()) ** 4) / x.var() ** 2)
    assert np.ptp(levels) > 30.0
    assert max(kurtosis) < 3.8
    again = sim.any_machine(7, 40)
    np.testing.assert_array_equal(again.snapshot(3).samples, sim.any_machine(7, 40).snapshot(3).samples)
    assert again.life.severity[again.life.onset_index - 1] == 0.0
    assert again.snapshot(39).samples.shape == (1, 8192)


def test_a_fault_shows_through_any_structure() -> None:
    """Fully grown, the fault of each of ten machines has kurtosis above 6, high-passed, wherever the sensor sits."""
    for seed in range(10):
        seen = sim.any_machine(seed, 60, onset=(0.4, 0.5))
        assert seen.life.severity[59] == pytest.approx(1.0)
        assert commissioning.impulse(seen.snapshot(59).samples, 25600.0).kurtosis > 6.0, seed
