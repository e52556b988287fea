"""A rotating machine with a growing bearing fault, and the sound of a fan: physics, no clock, no I/O.

    Machine ──► stream()          endless chunks whose phases continue, fault as a function of time
            ──► vibration()       one stretch at one severity
    seed    ──► run_to_failure()  a random machine, snapshots from run-in to breakdown
            ──► any_machine()     the same of any level, seen through any structure, with or without a gear
    id      ──► fan() ──► sound() one clip of one fan, healthy or with one of FAN_FAULTS

Vibration, after McFadden & Smith (J. Sound Vib. 96, 1984) and Antoni & Randall (Mech. Syst. Signal
Process. 17, 2003):

    x(t) =  L(t) · Σ_k a_k cos(k φ(t))                     shaft harmonics under the load L(t)
          + L(t) · Σ_i s(t_i) A_i q(t_i) h(t - t_i)        impacts on the fault, i = 1, 2, ...
          + L(t) · (h * w)(t) + v(t)                       rubbing through the structure, sensor noise

    h(t)  = exp(-2π f_r ζ t) sin(2π f_r √(1 - ζ²) t)       one lightly damped mode, scaled to peak 1
    t_i+1 - t_i = (1 + slip·N(0,1)) / f_fault              slip: the spacing is a random walk
    q     = 1 for the outer race, which stands still in the load zone;
            max(0, cos φ)^1.5 (Stribeck's load zone) at shaft speed for the inner race,
            at cage speed for a ball, which strikes both races: f_fault = 2 BSF

Amplitudes are in g. The same seed gives the same samples, and the way a stream is cut into chunks
changes none of them: samples are made in blocks of fixed length and only then cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import fft

from edge_agent.bearings import Bearing
from edge_agent.signals import F32, F64, Chunk

FAULTS = ("outer", "inner", "ball")

#: Bearings as their makers and the public test rigs state them.
ZA_2115 = Bearing(n_balls=16, ball_mm=8.407, pitch_mm=71.501, contact_deg=15.17)  # NASA IMS
SKF_6205 = Bearing(n_balls=9, ball_mm=7.94, pitch_mm=39.04, contact_deg=0.0)  # CWRU, drive end
SKF_6203 = Bearing(n_balls=8, ball_mm=6.746, pitch_mm=28.5, contact_deg=0.0)  # CWRU, fan end
ER_16K = Bearing(n_balls=9, ball_mm=7.9375, pitch_mm=38.506, contact_deg=0.0)  # MFS test rig
BEARINGS = (ZA_2115, SKF_6205, SKF_6203, ER_16K)

#: Length of the blocks that samples are made in. Part of what a seed means: another value, other samples.
_BLOCK = 2048
#: Slow changes of load and speed forget themselves within this time, s.
_WANDER_S = 5.0
#: Impulse responses are cut where they have decayed to this.
_DECAYED = 1e-4

Severity = Callable[[float], float]


@dataclass(frozen=True)
class Machine:
    """One shaft in one bearing, seen by one accelerometer.

    fs_hz            : sampling rate
    shaft_hz         : shaft speed
    bearing          : geometry; with the speed it gives the rate of the impacts
    fault            : "outer", "inner" or "ball": where the fault grows
    resonance_hz     : the mode that impacts and rubbing excite, below fs_hz / 2
    damping          : its damping ratio ζ, in (0, 1)
    harmonics_g      : amplitudes of 1×, 2×, ... shaft speed
    structure_g      : RMS of the rubbing noise that the mode colours
    noise_g          : RMS of the sensor's white noise
    impact_g         : peak of one impact at severity 1
    impact_scatter   : standard deviation of ln(impact peak); no two strikes are equal
    slip             : standard deviation of the impact spacing, relative; 0.01 to 0.02 in real bearings
    load_variation   : standard deviation of the load around 1
    speed_variation  : standard deviation of the speed, relative
    mesh_teeth, mesh_g : a gear's tone at mesh_teeth × shaft speed, amplitude-modulated once a turn; 0 = none
    """

    fs_hz: float
    shaft_hz: float
    bearing: Bearing
    fault: str = "outer"
    resonance_hz: float = 3500.0
    damping: float = 0.06
    harmonics_g: tuple[float, ...] = (0.04, 0.02, 0.01)
    structure_g: float = 0.05
    noise_g: float = 0.03
    impact_g: float = 1.2
    impact_scatter: float = 0.25
    slip: float = 0.012
    load_variation: float = 0.03
    speed_variation: float = 0.001
    mesh_teeth: int = 0
    mesh_g: float = 0.0

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"fault is {self.fault!r}; expected one of {', '.join(FAULTS)}")
        if not (self.fs_hz > 0 and self.shaft_hz > 0):
            raise ValueError(f"fs_hz {self.fs_hz} and shaft_hz {self.shaft_hz} must be above 0")
        if not 0 < self.resonance_hz < self.fs_hz / 2:
            raise ValueError(f"resonance_hz {self.resonance_hz} must lie between 0 and fs_hz / 2 = {self.fs_hz / 2}")
        if not 0 < self.damping < 1:
            raise ValueError(f"damping {self.damping} must lie between 0 and 1")
        if not 0 <= self.slip <= 0.1:
            raise ValueError(f"slip {self.slip} must lie between 0 and 0.1")
        if not 0 <= self.load_variation <= 0.3:
            raise ValueError(f"load_variation {self.load_variation} must lie between 0 and 0.3")
        if not 0 <= self.speed_variation <= 0.05:
            raise ValueError(f"speed_variation {self.speed_variation} must lie between 0 and 0.05")
        if (used := self.fault_hz) > self.fs_hz / 4:
            raise ValueError(f"the fault's rate {used:.1f} Hz must stay below fs_hz / 4 = {self.fs_hz / 4}")

    @property
    def fault_hz(self) -> float:
        """Rate of the impacts: BPFO, BPFI, or twice BSF."""
        rates = self.bearing.frequencies(self.shaft_hz)
        if self.fault == "outer":
            return rates.bpfo
        if self.fault == "inner":
            return rates.bpfi
        return 2.0 * rates.bsf


def never(_t: float) -> float:
    """The severity of a machine that stays healthy."""
    return 0.0


def constant(severity: float) -> Severity:
    """The same severity at all times."""
    return lambda _t: severity


def growing(onset_s: float, growth_s: float, first: float = 0.05) -> Severity:
    """Severity exactly 0 before `onset_s`, then `first`, growing exponentially to 1 within `growth_s`.

    A spall grows in proportion to the damage that is there (Paris' law integrated at constant load),
    hence the exponential. growing(10, 10)(9.99) = 0, (10) = 0.05, (20 and later) = 1.
    """
    if not (growth_s > 0 and 0 < first <= 1):
        raise ValueError(f"growth_s {growth_s} must be above 0 and first {first} in (0, 1]")

    def severity(t: float) -> float:
        if t < onset_s:
            return 0.0
        return float(min(1.0, first * math.exp(-math.log(first) * min((t - onset_s) / growth_s, 1.0))))

    return severity


def _mode(machine: Machine, t: F64) -> F64:
    """The mode's free decay h(t), peak 1, zero before t = 0; t in s, any shape."""
    w, z = 2.0 * math.pi * machine.resonance_hz, machine.damping
    wd = w * math.sqrt(1.0 - z * z)
    t_peak = math.atan2(wd, w * z) / wd
    peak = math.exp(-w * z * t_peak) * math.sin(wd * t_peak)
    since = np.maximum(t, 0.0)
    h: F64 = np.exp(-w * z * since) * np.sin(wd * since) / peak
    return h


def _blocks(machine: Machine, severity: Severity, seed: int) -> Iterator[F64]:
    """Endless blocks of `_BLOCK` samples; the first sample of the first block stands at t = 0."""
    fs = machine.fs_hz
    # One source each, so that a fault neither adds to nor shifts the healthy part of the signal.
    noise, slow, strikes = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))

    n_decay = math.ceil(-math.log(_DECAYED) / (2.0 * math.pi * machine.resonance_hz * machine.damping) * fs) + 2
    ring = _mode(machine, np.arange(n_decay) / fs)
    ring_gain = machine.structure_g / math.sqrt(float(ring @ ring))
    n_fft = fft.next_fast_len(_BLOCK + n_decay, real=True)
    ring_spectrum = fft.rfft(ring * ring_gain, n_fft)
    lags = np.arange(n_decay)

    ratio = machine.fault_hz / machine.shaft_hz
    cage = machine.bearing.frequencies(machine.shaft_hz).ftf / machine.shaft_hz
    zone_ratio = {"outer": 0.0, "inner": 1.0, "ball": cage}[machine.fault]
    # Spacings are clipped at 3 sigma and at least 0.7 of nominal: so many always cover one block.
    n_strikes = math.ceil(_BLOCK * machine.fault_hz / fs * (1.0 + machine.speed_variation * 6.0) / 0.7) + 2

    phase = float(noise.uniform(0.0, 2.0 * math.pi))
    order = np.arange(1, len(machine.harmonics_g) + 1)
    order_phase = noise.uniform(0.0, 2.0 * math.pi, order.size)
    next_strike = float(strikes.uniform(0.0, fs / machine.fault_hz))
    forget = math.exp(-_BLOCK / fs / _WANDER_S)
    load_w, speed_w = (float(w) for w in slow.standard_normal(2))
    rubbing_carry = np.zeros(n_fft - _BLOCK)
    strike_carry = np.zeros(n_decay)
    ramp = np.arange(1, _BLOCK + 1) / _BLOCK

    index = -1  # block -1 fills the filters and is not handed out
    while True:
        before = load_w
        fresh = slow.standard_normal(2) * math.sqrt(1.0 - forget * forget)
        load_w, speed_w = forget * load_w + float(fresh[0]), forget * speed_w + float(fresh[1])
        load = 1.0 + machine.load_variation * (before + (load_w - before) * ramp)
        speed = machine.shaft_hz * (1.0 + machine.speed_variation * min(3.0, max(-3.0, speed_w)))

        turns = phase + 2.0 * math.pi * speed / fs * np.arange(_BLOCK)
        x = np.zeros(_BLOCK)
        for k, amplitude, offset in zip(order, machine.harmonics_g, order_phase, strict=True):
            x += amplitude * np.cos(k * turns + offset)
        if machine.mesh_teeth and machine.mesh_g:
            x += machine.mesh_g * (1.0 + 0.3 * np.cos(turns)) * np.cos(machine.mesh_teeth * turns)

        rubbed = fft.irfft(fft.rfft(noise.standard_normal(_BLOCK), n_fft) * ring_spectrum, n_fft)
        rubbed[: rubbing_carry.size] += rubbing_carry
        rubbing_carry = rubbed[_BLOCK:]
        x += rubbed[:_BLOCK]
        x *= load
        x += machine.noise_g * noise.standard_normal(_BLOCK)

        jitter = np.clip(strikes.standard_normal(n_strikes) * machine.slip, -0.3, 0.3)
        scatter = np.exp(machine.impact_scatter * strikes.standard_normal(n_strikes))
        at = next_strike + np.concatenate(([0.0], np.cumsum((1.0 + jitter) * fs / (speed * ratio))))
        inside = int(np.searchsorted(at, _BLOCK))
        next_strike = float(at[inside]) - _BLOCK
        at = at[:inside]
        sizes = np.array([severity(max(0.0, index * _BLOCK + s) / fs) for s in at]) if index >= 0 else 0.0 * at
        sizes = sizes * machine.impact_g * scatter[:inside]
        struck = np.zeros(_BLOCK + n_decay)
        struck[:n_decay] = strike_carry
        if sizes.any():
            if zone_ratio:
                zone = phase + 2.0 * math.pi * speed / fs * at
                sizes *= np.maximum(0.0, np.cos(zone_ratio * zone)) ** 1.5
            first = np.ceil(at).astype(np.int64)
            sizes *= load[np.minimum(at.astype(np.int64), _BLOCK - 1)]
            decays = sizes[:, None] * _mode(machine, (first[:, None] + lags - at[:, None]) / fs)
            np.add.at(struck, first[:, None] + lags, decays)
        x += struck[:_BLOCK]
        strike_carry = struck[_BLOCK:]

        phase += 2.0 * math.pi * speed / fs * _BLOCK
        if index >= 0:
            yield x
        index += 1


def stream(
    machine: Machine, chunk_samples: int, severity_of_t: Severity = never, seed: int = 0, start: float = 0.0
) -> Iterator[Chunk]:
    """Endless chunks (1, chunk_samples) without a gap, numbered by `seq` from 0.

    severity_of_t : severity in [0, 1] at t seconds after the stream's first sample; called at each impact
    start         : time of the first sample in s, from which the chunks' `t` count
    """
    if chunk_samples < 1:
        raise ValueError(f"chunk_samples is {chunk_samples}; expected at least 1")
    blocks = _blocks(machine, severity_of_t, seed)
    parts: list[F32] = []
    have = 0
    seq = 0
    while True:
        while have < chunk_samples:
            parts.append(next(blocks).astype(np.float32))
            have += _BLOCK
        joined = np.concatenate(parts) if len(parts) > 1 else parts[0]
        whole = have // chunk_samples
        for k in range(whole):
            yield Chunk(
                samples=joined[np.newaxis, k * chunk_samples : (k + 1) * chunk_samples].copy(),
                t=start + seq * chunk_samples / machine.fs_hz,
                fs_hz=machine.fs_hz,
                seq=seq & 0xFFFFFFFF,
            )
            seq += 1
        parts = [joined[whole * chunk_samples :]]
        have -= whole * chunk_samples


def vibration(
    machine: Machine,
    n_samples: int,
    severity: float | Severity,
    rng: np.random.Generator,
    t0: float = 0.0,
) -> F32:
    """(n_samples,) float32 in g at one severity, or at severity(t) with t = t0 at the first sample.

    Healthy (0), a default machine has an RMS near 0.07 g and a kurtosis near 3.
    """
    at = severity if callable(severity) else constant(severity)
    seed = int(rng.integers(2**63))
    samples: F32 = next(stream(machine, n_samples, lambda t: at(t0 + t), seed)).samples[0]
    return samples


def demo_machine() -> Machine:
    """The machine of `edge-agent demo`: 10 240 Hz, so that a window of 8192 points lasts 0.8 s."""
    return Machine(fs_hz=10240.0, shaft_hz=29.2, bearing=SKF_6205, resonance_hz=3200.0, damping=0.07)


# ---------------------------------------------------------------------------- run to failure


@dataclass(frozen=True)
class RunToFailure:
    """One machine from run-in to breakdown, a snapshot every `interval_s`, as in the NASA IMS tests.

    machine     : as it is when run in, at mean load
    onset_index : the first snapshot with a fault; every earlier one has severity exactly 0
    severity    : (n,) in [0, 1], never falling
    load        : (n,) factor on harmonics, rubbing and impacts: random walk around 1, day and night
    friction    : (n,) factor on rubbing: run-in, then a slow drift
    stiffness   : (n,) factor on the resonance: temperature
    """

    seed: int
    machine: Machine
    n_samples: int
    onset_index: int
    severity: tuple[float, ...]
    load: tuple[float, ...]
    friction: tuple[float, ...]
    stiffness: tuple[float, ...]
    start: float
    interval_s: float

    def __len__(self) -> int:
        return len(self.severity)

    def snapshot(self, index: int) -> Chunk:
        """Snapshot `index` as (1, n_samples), with its time; the same at every call, in any order."""
        load, m = self.load[index], self.machine
        now = replace(
            m,
            harmonics_g=tuple(a * load for a in m.harmonics_g),
            structure_g=m.structure_g * load * self.friction[index],
            impact_g=m.impact_g * load,
            resonance_hz=m.resonance_hz * self.stiffness[index],
        )
        rng = np.random.default_rng([self.seed, index])
        samples = vibration(now, self.n_samples, self.severity[index], rng)
        return Chunk(samples[np.newaxis], t=self.start + index * self.interval_s, fs_hz=m.fs_hz, seq=index)

    def snapshots(self) -> Iterator[Chunk]:
        """Every snapshot in order of time."""
        return (self.snapshot(i) for i in range(len(self)))


def run_to_failure(
    seed: int,
    n_snapshots: int = 600,
    *,
    n_samples: int = 20480,
    fs_hz: float = 20000.0,
    interval_s: float = 600.0,
    start: float = 1_700_000_000.0,
    onset: tuple[float, float] = (0.5, 0.7),
) -> RunToFailure:
    """A random machine and its life, all drawn from `seed`.

    onset : the fault begins at a share of the life drawn from this range
    The healthy life wanders as the 530 healthy snapshots of NASA IMS set 2, bearing 1 do: RMS scatter 1 to
    2 %, part of it with the period of a day, 5 to 15 % more or less rubbing in the first hour, and a drift of
    a few per cent over the whole life. From the onset the severity grows exponentially from 2 to 5 % and
    reaches 1 after 40 to 90 % of the remaining life.
    """
    if n_snapshots < 20:
        raise ValueError(f"n_snapshots is {n_snapshots}; expected at least 20")
    if not 0 < onset[0] <= onset[1] < 1:
        raise ValueError(f"onset is {onset}; expected two shares of the life, rising, within (0, 1)")
    # The leading word keeps these draws apart from the snapshots' own, which are seeded [seed, index].
    rng = np.random.default_rng([0x5EED, seed, n_snapshots])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    rms = between(0.05, 0.15)
    structure = rms * between(0.6, 0.8)
    machine = Machine(
        fs_hz=fs_hz,
        shaft_hz=between(25.0, 45.0),
        bearing=BEARINGS[int(rng.integers(len(BEARINGS)))],
        fault="outer",
        resonance_hz=fs_hz * between(0.17, 0.27),
        damping=between(0.05, 0.09),
        harmonics_g=tuple(rms * a for a in (between(0.3, 0.6), between(0.1, 0.4), between(0.05, 0.2))),
        structure_g=structure,
        noise_g=rms * between(0.3, 0.5),
        impact_g=rms * between(14.0, 22.0),
        impact_scatter=between(0.2, 0.3),
        slip=between(0.01, 0.02),
        load_variation=between(0.005, 0.015),
        speed_variation=between(0.0003, 0.001),
    )

    index = np.arange(n_snapshots)
    forget = math.exp(-1.0 / between(2.0, 12.0))
    walk = np.empty(n_snapshots)
    w = float(rng.standard_normal())
    for i in range(n_snapshots):
        w = forget * w + math.sqrt(1.0 - forget * forget) * float(rng.standard_normal())
        walk[i] = w
    day = np.sin(2.0 * np.pi * (index * interval_s / 86400.0 + between(0.0, 1.0)))
    load = 1.0 + between(0.004, 0.012) * np.clip(walk, -3.0, 3.0) + between(0.003, 0.01) * day
    run_in = between(0.05, 0.15) * (1.0 if rng.random() < 0.5 else -1.0) * np.exp(-index / between(1.0, 2.5))
    friction = (1.0 + run_in) * (1.0 + between(-0.02, 0.02) * index / n_snapshots)
    stiffness = 1.0 + between(0.0005, 0.002) * day

    begins = round(n_snapshots * between(*onset))
    first, share = between(0.02, 0.05), between(0.4, 0.9)
    severity = growing(begins, max(1.0, share * (n_snapshots - 1 - begins)), first)
    return RunToFailure(
        seed=seed,
        machine=machine,
        n_samples=n_samples,
        onset_index=begins,
        severity=tuple(severity(float(i)) for i in index),
        load=tuple(load.tolist()),
        friction=tuple(friction.tolist()),
        stiffness=tuple(stiffness.tolist()),
        start=start,
        interval_s=interval_s,
    )


@dataclass(frozen=True)
class SeenThrough:
    """A life as another sensor at another place sees it.

    gain : (n_samples // 2 + 1,) of the path from the machine to the sensor
    """

    life: RunToFailure
    gain: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.life)

    def snapshot(self, index: int) -> Chunk:
        """Snapshot `index` as `RunToFailure.snapshot` gives it, filtered (circularly) by the path."""
        chunk = self.life.snapshot(index)
        n = chunk.samples.shape[1]
        x = fft.irfft(fft.rfft(chunk.samples.astype(np.float64)) * np.asarray(self.gain), n)
        return replace(chunk, samples=x.astype(np.float32))


def any_machine(
    seed: int,
    n_snapshots: int = 600,
    *,
    n_samples: int = 8192,
    fs_hz: float = 25600.0,
    interval_s: float = 600.0,
    onset: tuple[float, float] = (0.5, 0.7),
) -> SeenThrough:
    """A life of `run_to_failure` at any level and place: what a bundle for all machines has to expect.

    The level is log-uniform over 50 dB, the path a random walk of 6 dB an octave, half the machines have a gear whose
    tone is up to three times the rest. None of it is impulsive: healthy, the kurtosis is at most about 3.5.
    """
    life = run_to_failure(
        seed, n_snapshots, n_samples=n_samples, fs_hz=fs_hz, interval_s=interval_s, onset=onset
    )
    rng = np.random.default_rng([0xA2, seed])
    rms = life.machine.structure_g
    teeth, tone = int(rng.integers(11, 43)), float(rng.uniform(0.3, 3.0)) * rms
    geared = rng.random() < 0.5
    machine = replace(life.machine, mesh_teeth=teeth if geared else 0, mesh_g=tone if geared else 0.0)
    f = fft.rfftfreq(n_samples, 1.0 / fs_hz)
    knots = np.geomspace(fs_hz / 1024.0, fs_hz / 2.0, 10)
    walk_db = np.cumsum(6.0 * rng.standard_normal(knots.size))
    level_db = float(rng.uniform(-25.0, 25.0))
    gain_db = np.interp(np.log(np.maximum(f, knots[0])), np.log(knots), walk_db - walk_db.mean()) + level_db
    gain = np.where(f > 0.0, 10.0 ** (gain_db / 20.0), 0.0)  # an accelerometer passes no constant
    return SeenThrough(replace(life, machine=machine), tuple(gain.tolist()))


# ---------------------------------------------------------------------------- the sound of a fan

FAN_FAULTS = ("bearing", "imbalance", "looseness", "clogging", "voltage")


@dataclass(frozen=True)
class Fan:
    """One fan of a type: what makes its sound differ from its sisters'.

    shaft_hz, n_blades : blade tones at multiples of their product
    tone, tone_fall    : amplitude of the first blade tone over the flow noise's RMS, and the factor to the next
    corner_hz, slope   : the flow noise falls as (f / corner)^-slope above the corner
    modes              : casing resonances (Hz, quality, gain over the flow noise)
    hum                : amplitude of the motor's 100 Hz hum
    bearing_order      : impacts per turn when the bearing is worn
    """

    machine_id: int
    shaft_hz: float
    n_blades: int
    tone: float
    tone_fall: float
    corner_hz: float
    slope: float
    modes: tuple[tuple[float, float, float], ...]
    hum: float
    bearing_order: float


def fan(machine_id: int) -> Fan:
    """The fan with this number (0, 1, 2, ...): the same at every call, another for every number."""
    rng = np.random.default_rng([0xFA9, machine_id])

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    modes = tuple(
        (hz * between(0.93, 1.07), between(8.0, 20.0), between(0.2, 0.4)) for hz in (420.0, 1100.0, 2600.0, 5200.0)
    )
    return Fan(
        machine_id=machine_id,
        shaft_hz=between(24.0, 26.0),
        n_blades=int(rng.integers(6, 9)),
        tone=between(0.35, 0.5),
        tone_fall=between(0.45, 0.65),
        corner_hz=between(620.0, 760.0),
        slope=between(1.02, 1.14),
        modes=modes,
        hum=between(0.1, 0.3),
        bearing_order=between(2.8, 3.8),
    )


def _slow(rng: np.random.Generator, n: int, rate_hz: float, fs_hz: float) -> F64:
    """(n,) smooth noise of unit variance at its knots, which come `rate_hz` times a second."""
    knots = rng.standard_normal(max(2, math.ceil(n / fs_hz * rate_hz) + 2))
    return np.interp(np.arange(n) / fs_hz * rate_hz, np.arange(knots.size), knots)


def _coloured(rng: np.random.Generator, n: int, shape: F64) -> F64:
    """(n,) Gaussian noise of RMS 1 with the magnitude spectrum `shape`, (n // 2 + 1,)."""
    x = fft.irfft(fft.rfft(rng.standard_normal(n)) * shape, n)
    return np.asarray(x / np.sqrt(np.mean(x * x)), np.float64)


def _rings(rng: np.random.Generator, n: int, at: F64, size: F64, hz: float, quality: float, fs_hz: float) -> F64:
    """(n,) decaying tones of `hz`, peak about `size`, beginning at the samples `at`."""
    x = np.zeros(n)
    length = min(n, math.ceil(quality / (math.pi * hz) * fs_hz * 7.0))
    lag = np.arange(length) / fs_hz
    decay = np.exp(-math.pi * hz / quality * lag)
    for a, s in zip(at.astype(np.int64), size, strict=True):
        m = min(length, n - a)
        x[a : a + m] += s * decay[:m] * np.sin(2.0 * np.pi * hz * lag[:m] + rng.uniform(0.0, 2.0 * np.pi))
    return x


def _resonant(f: F64, modes: tuple[tuple[float, float, float], ...]) -> F64:
    """Magnitude of the casing over f: 1 plus each mode's resonance, peak `gain` × quality^0.5."""
    out = np.ones_like(f)
    for hz, quality, gain in modes:
        u = f / hz
        out += gain * u * u / np.sqrt((1.0 - u * u) ** 2 + (u / quality) ** 2) / math.sqrt(quality)
    return out


def sound(
    machine_id: int,
    *,
    fault: str | None = None,
    severity: float = 1.0,
    seconds: float = 10.0,
    fs_hz: float = 16000.0,
    snr_db: float = 6.0,
    seed: int | tuple[int, ...] = 0,
) -> F32:
    """One clip of one fan in a factory: (seconds × fs_hz,) float32 within ±1, RMS about 0.05.

    fault    : one of FAN_FAULTS, or None; severity 0 is healthy, 1 a fault a person at the machine would hear
    snr_db   : the machine over the factory's noise, on average
    seed     : another seed is another clip: speed, load, level, distance and the factory's noise all vary

    The fan: blade tones, hum, and flow noise through the casing's resonances, amplitude-modulated by the
    blades. Faults: `bearing` rings a high mode at each impact and squeals now and then; `imbalance` modulates
    everything once a turn; `looseness` rattles at random; `clogging` takes the tones away and makes the flow
    rougher and lower; `voltage` slows the shaft and raises the hum.
    """
    if fault is not None and fault not in FAN_FAULTS:
        raise ValueError(f"fault is {fault!r}; expected None or one of {', '.join(FAN_FAULTS)}")
    if not 0.0 <= severity <= 3.0:
        raise ValueError(f"severity is {severity}; expected 0 (healthy) to 3")
    n = round(seconds * fs_hz)
    if n < 256:
        raise ValueError(f"seconds {seconds} × fs_hz {fs_hz} gives {n} samples; expected at least 256")
    f0 = fan(machine_id)
    rng = np.random.default_rng([machine_id, *(seed if isinstance(seed, tuple) else (seed,))])
    s = {name: severity if name == fault else 0.0 for name in FAN_FAULTS}
    f = fft.rfftfreq(n, 1.0 / fs_hz)

    # The clip's own conditions.
    load = float(rng.normal(0.0, 1.0))
    speed = f0.shaft_hz * (1.0 + 0.012 * float(rng.normal()) - 0.045 * s["voltage"] + 0.01 * s["clogging"])
    tilt = 0.03 * float(rng.normal()) - 0.10 * s["clogging"]
    level = 0.05 * 10.0 ** (float(rng.normal(0.0, 0.8)) / 20.0)
    distance = 10.0 ** ((snr_db + float(rng.normal(0.0, 1.0))) / 20.0)

    turns = 2.0 * np.pi * np.cumsum(speed * (1.0 + 0.002 * _slow(rng, n, 2.0, fs_hz))) / fs_hz
    turns += float(rng.uniform(0.0, 2.0 * np.pi))

    tone = f0.tone * (1.0 + 0.10 * load) * (1.0 - 0.3 * min(1.0, s["clogging"]))
    tones = np.zeros(n)
    for k in range(1, 9):
        if k * f0.n_blades * speed * 1.05 < fs_hz / 2:
            tones += tone * f0.tone_fall ** (k - 1) * np.cos(k * f0.n_blades * turns + rng.uniform(0.0, 2.0 * np.pi))
    time = np.arange(n) / fs_hz
    for k, share in ((1, 1.0), (2, 0.4), (3, 0.2)):
        hum = f0.hum * share * (1.0 + 0.4 * s["voltage"]) * (1.0 + 0.1 * float(rng.normal()))
        tones += hum * np.cos(2.0 * np.pi * 100.0 * k * time + rng.uniform(0.0, 2.0 * np.pi))

    corner = f0.corner_hz * (1.0 + 0.04 * load) * (1.0 - 0.12 * min(2.0, s["clogging"]))
    modes = tuple((hz * (1.0 + 0.01 * float(rng.normal())), q, g) for hz, q, g in f0.modes)
    shape = _resonant(f, modes) / (1.0 + (f / corner) ** f0.slope) * (np.maximum(f, 50.0) / 1000.0) ** tilt
    flow = _coloured(rng, n, shape) * (1.0 + 0.2 * np.cos(f0.n_blades * turns))
    flow *= 1.0 + (0.05 + 0.12 * s["clogging"]) * np.clip(_slow(rng, n, 6.0, fs_hz), -3.0, 3.0)
    machine = flow + tones

    if s["imbalance"]:
        machine *= 1.0 + 0.4 * min(2.0, s["imbalance"]) * np.cos(turns)
        machine += 0.35 * s["imbalance"] * np.cos(turns) + 0.18 * s["imbalance"] * np.cos(2.0 * turns)
    if s["bearing"]:
        period = fs_hz / (f0.bearing_order * speed)
        at = np.cumsum(period * (1.0 + 0.015 * rng.standard_normal(math.ceil(n / period))))
        at = at[at < n]
        size = 0.7 * s["bearing"] * np.exp(0.3 * rng.standard_normal(at.size))
        machine += _rings(rng, n, at, size, modes[3][0] * 0.8, 12.0, fs_hz)
        pitch = 2.0 * np.pi * np.cumsum(2900.0 + 250.0 * rng.normal() + 40.0 * _slow(rng, n, 5.0, fs_hz)) / fs_hz
        machine += 0.05 * s["bearing"] * np.maximum(0.0, _slow(rng, n, 1.0, fs_hz)) * np.cos(pitch)
    if s["looseness"]:
        at = np.sort(rng.uniform(0.0, n - 1.0, int(rng.poisson(5.0 * seconds))))
        size = 4.0 * s["looseness"] * np.exp(0.5 * rng.standard_normal(at.size))
        machine += _rings(rng, n, at, size, modes[2][0] * 0.7, 10.0, fs_hz)
    machine /= math.sqrt(float(np.mean(machine * machine)))

    # The factory: noise of any colour, other machines' tones, now and then a clank.
    colour = 1.0 / (1.0 + (f / float(rng.uniform(250.0, 400.0))) ** float(rng.uniform(0.95, 1.1)))
    factory = _coloured(rng, n, colour) * (1.0 + 0.2 * np.clip(_slow(rng, n, 1.0, fs_hz), -3.0, 3.0))
    for _ in range(3):
        factory += 0.2 * rng.random() * np.cos(2.0 * np.pi * rng.uniform(60.0, 900.0) * time)
    clanks = np.sort(rng.uniform(0.0, n - 1.0, int(rng.poisson(0.4 * seconds))))
    hz, quality = float(rng.uniform(700.0, 3500.0)), float(rng.uniform(20.0, 60.0))
    factory += _rings(rng, n, clanks, rng.uniform(0.5, 3.0, clanks.size), hz, quality, fs_hz)
    factory /= math.sqrt(float(np.mean(factory * factory)))

    clip: F32 = np.clip(level * (machine + factory / distance), -1.0, 1.0).astype(np.float32)
    return clip
