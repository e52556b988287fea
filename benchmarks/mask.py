"""`python -m benchmarks.mask`: does the generator's mask say in which band and when a fault sounds?

    a simulated fan drawn at run time ─► the committed recipe fan-wgan-gp ─► int8 file ─► the agent's Judge
    20 of its clips, each with a burst of noise in a random band at a random time ─► mask ─► intersection over union

A burst has the fan's own spectrum between two frequencies, 6 to 15 dB over what is there; the truth is its rectangle of
time and frequency. Both limits of the mask come from healthy clips that were not trained on. Beside it the same
mask on the difference from the mean spectrum, which needs no network. A second picture shows the mask on digits that
a generator of another digit cannot draw.
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft

from benchmarks import _data, mnist
from benchmarks._report import say
from benchmarks.bounds import MASK
from edge_agent import simulate
from edge_agent.features.log_mel import mel_edges
from edge_agent.pipeline import Judge
from edge_agent.signals import F32, F64
from trainer import data, masks, recipe, run
from trainer.recipe import Recipe
from trainer.run import FitResult

NAME, RECIPE = "mask", "fan-wgan-gp"
FAULTS = 20
FS_HZ, SECONDS = 16000.0, 10.0
#: Hz of a burst's middle, its width in octaves, its length in s, its level over what is there in dB.
CENTRE, OCTAVES, LENGTH, LEVEL = (300.0, 5000.0), (0.5, 1.5), (0.6, 2.5), (6.0, 15.0)
#: A burst begins and ends within this, s: no click.
RAMP = 0.01
#: The digit that is healthy in the picture, and those that are shown.
DIGIT, OTHERS = 3, (3, 0, 2, 4, 5, 7, 8, 9)
IMAGES = _data.ROOT / "docs" / "img"


@dataclass(frozen=True)
class Burst:
    """Noise between two frequencies (Hz) and two times (s), `level` dB over what is there."""

    low: float
    high: float
    begin: float
    end: float
    level: float


def draw(rng: np.random.Generator, until: float) -> Burst:
    """A burst that ends before `until` s."""
    centre, width = np.exp(rng.uniform(*np.log(CENTRE))), rng.uniform(*OCTAVES)
    length = rng.uniform(*LENGTH)
    begin = rng.uniform(0.0, until - length)
    values = (
        centre * 2 ** (-width / 2),
        centre * 2 ** (width / 2),
        begin,
        begin + length,
        rng.uniform(*LEVEL),
    )
    return Burst(*map(float, values))


def spectrum(x: F32, n_fft: int = 1024) -> F64:
    """(n_fft // 2 + 1,) magnitude that white noise of RMS 1 must be shaped by to have the mean spectrum of x (n,)."""
    window = np.hanning(n_fft)
    cut = np.lib.stride_tricks.sliding_window_view(x, n_fft)[:: n_fft // 2] * window
    power = np.square(np.abs(fft.rfft(cut))).mean(0) / np.square(window).sum()
    return np.asarray(np.sqrt(power), np.float64)


def add(x: F32, burst: Burst, rng: np.random.Generator) -> F32:
    """x (n,) with the burst: Gaussian noise of the clip's own mean spectrum within the band, raised by its level."""
    f = fft.rfftfreq(len(x), 1.0 / FS_HZ)
    own = spectrum(x)
    shape = np.interp(f, np.linspace(0.0, FS_HZ / 2, len(own)), own) * ((f >= burst.low) & (f <= burst.high))
    noise = fft.irfft(fft.rfft(rng.standard_normal(len(x))) * shape, len(x)) * 10.0 ** (burst.level / 20.0)
    t = np.arange(len(x)) / FS_HZ
    noise *= np.clip((t - burst.begin) / RAMP, 0.0, 1.0) * np.clip((burst.end - t) / RAMP, 0.0, 1.0)
    return np.asarray(x + noise, np.float32)


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a map lie: middles of frames in s, and of mel bands in Hz."""

    seconds: F64
    hz: F64

    def truth(self, burst: Burst) -> Any:
        """(frames, bands) bool: pixels whose middle lies in the burst."""
        when = (self.seconds >= burst.begin) & (self.seconds <= burst.end)
        return when[:, np.newaxis] & (self.hz >= burst.low) & (self.hz <= burst.high)


def grid(judge: Judge) -> Grid:
    """That of a bundle of log-mel pictures side by side."""
    spec = judge.features.spec
    mel = spec.families[0].params
    frames = judge.features.n_patches * spec.context.width
    seconds = (np.arange(frames) * mel["hop"] + mel["n_fft"] / 2) / spec.fs_hz
    return Grid(seconds, mel_edges(mel["n_mels"], 0.0, spec.fs_hz / 2)[1:-1])


def excess(judge: Judge, vectors: F32) -> F32:
    """(frames, F): the score's map, patches one after the other."""
    maps = judge.score(vectors).excess()
    return maps.reshape(-1, maps.shape[-1])


def plan(number: int, seed: int) -> Recipe:
    """The committed recipe for fan `number`; nothing else is changed."""
    committed = recipe.load(recipe.RECIPES / f"{RECIPE}.yaml")
    return replace(committed, data=(replace(committed.data[0], ids=(number,), seed=seed),))


@dataclass(frozen=True)
class Case:
    """One faulty clip: the burst, the picture, the generator's, the map, its mask and the truth, all (frames, bands)."""

    burst: Burst
    picture: F32
    drawn: F32
    excess: F32
    mask: Any
    truth: Any
    iou: float
    plain_iou: float


def cases(made: FitResult, number: int, seed: int) -> list[Case]:
    """FAULTS bursts in clips of the fan that nothing was learnt from, judged by the bundle."""
    judge, table = made.bundle.judge, made.table
    features, at = judge.features, grid(judge)
    frames = len(at.seconds)
    until = float(at.seconds[-1])
    held = [features.standardise(table.vectors[i]) for i in made.parts.calibrate]
    normal = masks.learn(np.stack([excess(judge, v) for v in held]))
    mean = features.standardise(table.vectors[made.parts.train]).mean((0, 1))
    plain = masks.learn(np.stack([np.abs(v[:frames] - mean) for v in held]))
    rng = np.random.default_rng([seed, 0x3A5])
    found = []
    for k in range(FAULTS):
        burst = draw(rng, until)
        x = add(simulate.sound(number, seconds=SECONDS, seed=(seed, 10_000 + k)), burst, rng)
        vectors = judge.vectors(x[np.newaxis])
        seen, truth = excess(judge, vectors), at.truth(burst)
        drawn = judge.model(features.patches(vectors))[0].reshape(frames, -1).copy()
        mask = masks.mask(seen, normal)
        beside = masks.overlap(masks.mask(np.abs(vectors[:frames] - mean), plain), truth)
        iou = masks.overlap(mask, truth)
        say(
            f"fault {k + 1:2}  {burst.low:5.0f} to {burst.high:5.0f} Hz  {burst.begin:4.1f} to {burst.end:4.1f} s  "
            f"{burst.level:4.1f} dB   IoU {iou:.2f} (mean spectrum {beside:.2f})"
        )
        found.append(Case(burst, vectors[:frames], drawn, seen, mask, truth, iou, beside))
    return found


def figures(seed: int, images: Path | None = None) -> dict[str, Any]:
    """Mean intersection over union of the mask and of the plain one beside it, with what they rest on.

    images : folder for the picture mask-fan.png, where given
    """
    number = int(np.random.default_rng([seed, 0x3A4]).integers(1000, 10**6))
    how = plan(number, seed)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mask-") as folder:
        made = run.run(how, Path(folder) / RECIPE, table=data.table(how))
        trained = time.monotonic() - began
        say(f"{trained:.0f} s: a generator for fan {number}, {made.manifest.quantization.type}")
        found = cases(made, number, seed)
        if images is not None:
            (images / "mask-fan.png").write_bytes(picture(found, grid(made.bundle.judge)))
    iou = np.array([c.iou for c in found])
    return {
        "seed": seed,
        "fan": number,
        "faults": FAULTS,
        "iou": round(float(iou.mean()), 4),
        "iou_worst": round(float(iou.min()), 4),
        "iou_mean_spectrum": round(float(np.mean([c.plain_iou for c in found])), 4),
        "quantization": made.manifest.quantization.type,
        "seconds": round(trained, 1),
    }


def picture(found: Sequence[Case], at: Grid) -> bytes:
    """PNG: the least, the middling and the best of some cases; spectrogram, what was drawn, difference, mask and truth."""
    from matplotlib import figure

    order = sorted(found, key=lambda c: c.iou)
    rows = [order[0], order[len(order) // 2], order[-1]]
    drawing = figure.Figure((11.0, 6.6), layout="constrained")
    axes = drawing.subplots(len(rows), 4, sharex=True, sharey=True)
    ticks = [500, 1000, 2000, 4000]
    places = np.interp(ticks, at.hz, np.arange(len(at.hz)))
    titles = ("log-mel picture", "as the generator draws it", "difference", "mask (white), truth (red)")
    extent = (float(at.seconds[0]), float(at.seconds[-1]), -0.5, len(at.hz) - 0.5)
    for row, case in zip(axes, rows, strict=True):
        for k, (ax, values) in enumerate(
            zip(row, (case.picture, case.drawn, case.excess, case.mask), strict=True)
        ):
            ax.imshow(
                np.asarray(values, np.float32).T, origin="lower", aspect="auto", extent=extent, vmin=0.0,
                vmax=(1.0, 1.0, 0.5, 1.0)[k], cmap=("magma", "magma", "viridis", "gray")[k], interpolation="nearest",
            )  # fmt: skip
        low, high = np.interp([case.burst.low, case.burst.high], at.hz, np.arange(len(at.hz)))
        corners = [case.burst.begin, case.burst.end]
        row[3].plot(
            [corners[i] for i in (0, 1, 1, 0, 0)],
            [(low, high)[i] for i in (0, 0, 1, 1, 0)],
            "r-",
            linewidth=1.5,
        )
        row[3].set_xlabel(
            f"IoU {case.iou:.2f}, {case.burst.level:.0f} dB over what is there", fontsize="small"
        )
        row[0].set_yticks(places, [f"{hz / 1000:g}" for hz in ticks])
        row[0].set_ylabel("kHz")
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize="medium")
    for ax in axes[-1, :3]:
        ax.set_xlabel("s")
    return _png(drawing)


def digits(path: Path, seed: int) -> bytes:
    """PNG of `digit_picture` from a generator that was shown DIGIT alone."""
    x, y = mnist.pictures(path)
    table, _ = mnist.sets(x, y, DIGIT)
    with tempfile.TemporaryDirectory(prefix="mask-") as folder:
        made = run.run(mnist.plan("wgan_gp", seed), Path(folder) / "digit", table=table)
        # The last pictures of each digit: none of them trained or calibrated.
        shown = {digit: x[np.flatnonzero(y == digit)[-1]] for digit in OTHERS}
        return digit_picture(made.bundle.judge, table.vectors[made.parts.calibrate], shown)


def digit_picture(judge: Judge, held: F32, shown: Mapping[int, F32]) -> bytes:
    """PNG: digits beside what the generator makes of them, and the mask of the difference.

    held : (n, 28, 28) pictures of the healthy digit that were not trained on; shown : one of each digit
    """
    from matplotlib import figure

    features = judge.features
    normal = masks.learn(np.stack([excess(judge, features.standardise(v)) for v in held]), by_pixel=True)
    drawing = figure.Figure((9.6, 5.2), layout="constrained")
    axes = drawing.subplots(4, len(shown))
    for column, (digit, raw) in zip(axes.T, shown.items(), strict=True):
        vectors = features.standardise(raw)
        seen = excess(judge, vectors)
        drawn = judge.model(features.patches(vectors))[0].reshape(vectors.shape)
        marked = np.stack([vectors] * 3, -1).clip(0.0, 1.0)
        marked[masks.mask(seen, normal)] = (0.9, 0.2, 0.2)
        column[0].set_title(str(digit))
        for ax, values in zip(column, (vectors, drawn, seen, marked), strict=True):
            ax.imshow(values, cmap="gray", vmin=0.0, vmax=1.0)
            ax.set_xticks([])
            ax.set_yticks([])
    for ax, title in zip(axes[:, 0], ("picture", "drawn", "difference", "mask"), strict=True):
        ax.set_ylabel(title)
    return _png(drawing)


def _png(drawing: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def main() -> int:
    """The command line; the exit code of a verifying target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mask", description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, help="of the fan and its faults; drawn where not given")
    parser.add_argument(
        "--images", action="store_true", help="put the pictures into docs/img (digits need DATA)"
    )
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    say(f"seed: {seed}")
    result = figures(seed, IMAGES if args.images else None)
    archive = _data.data_dir() / "mnist_train_30k.npz"
    if args.images and archive.is_file():
        (IMAGES / "mask-digits.png").write_bytes(digits(archive, seed))
    return _data.finish(NAME, result["iou"] >= MASK["iou"], **result)


if __name__ == "__main__":
    sys.exit(main())
