"""Writes what `simulate` computes into files that the trainer, `replay` and `score` read.

    python -m edge_agent.simulate_files sound OUT           a folder of WAV files, labels in their names
    python -m edge_agent.simulate_files vibration OUT.npz   one recording in g, healthy or with a growing fault
    python -m edge_agent.simulate_files life OUT            a run to failure as NASA IMS text files
"""

from __future__ import annotations

import argparse
import sys
import wave
from collections.abc import Sequence
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path

import numpy as np

from edge_agent.signals import F32
from edge_agent.simulate import (
    FAN_FAULTS,
    Machine,
    RunToFailure,
    Severity,
    constant,
    demo_machine,
    growing,
    never,
    run_to_failure,
    sound,
    stream,
)


def write_wav(path: Path, samples: F32, fs_hz: int = 16000) -> None:
    """(n,) float32 within ±1 as 16-bit mono PCM; beyond ±1 it is clipped, as a sound card does."""
    counts = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2")
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(fs_hz)
        out.writeframes(counts.tobytes())


def write_sound_folder(
    folder: Path,
    *,
    ids: Sequence[int] = (0, 1, 2, 3),
    n_train: int = 40,
    n_test: int = 20,
    seconds: float = 10.0,
    severity: float = 1.0,
    snr_db: float = 6.0,
    seed: int = 0,
) -> int:
    """A folder in the layout of DCASE 2020 task 2; returns the number of clips written.

        folder/train/normal_id_00_00000000.wav    n_train clips an id, healthy
        folder/test/normal_id_00_00000000.wav     n_test clips an id, healthy
        folder/test/anomaly_id_00_00000000.wav    n_test clips an id, the kinds of FAN_FAULTS in turn
    """
    written = 0
    for part, (split, label, count) in enumerate(
        (("train", "normal", n_train), ("test", "normal", n_test), ("test", "anomaly", n_test))
    ):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for machine_id in ids:
            for k in range(count):
                clip = sound(
                    machine_id,
                    fault=FAN_FAULTS[k % len(FAN_FAULTS)] if label == "anomaly" else None,
                    severity=severity,
                    seconds=seconds,
                    snr_db=snr_db,
                    seed=(seed, part, k),
                )
                write_wav(folder / split / f"{label}_id_{machine_id:02d}_{k:08d}.wav", clip)
                written += 1
    return written


def write_vibration(
    path: Path, machine: Machine, seconds: float, severity_of_t: Severity = never, seed: int = 0
) -> int:
    """One recording as .npz: `x` (n,) float32 in g and `fs`; returns n."""
    chunk = round(machine.fs_hz)
    n = round(seconds * machine.fs_hz)
    pieces = islice(stream(machine, chunk, severity_of_t, seed), -(-n // chunk))
    x = np.concatenate([c.samples[0] for c in pieces])[:n]
    np.savez_compressed(path, x=x, fs=np.float64(machine.fs_hz))
    return n


def write_life(folder: Path, life: RunToFailure) -> int:
    """A run to failure as NASA ships IMS: a text file a snapshot, named by its time, one column in g."""
    folder.mkdir(parents=True, exist_ok=True)
    for chunk in life.snapshots():
        moment = datetime.fromtimestamp(chunk.t or 0.0, tz=timezone.utc)
        np.savetxt(folder / f"{moment:%Y.%m.%d.%H.%M.%S}", chunk.samples.T, fmt="%.3f", delimiter="\t")
    return len(life)


def main(argv: Sequence[str] | None = None, prog: str = "python -m edge_agent.simulate_files") -> int:
    """The command line above, called `prog` in its help; exit code 0, or 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)

    p = kinds.add_parser("sound", help="a folder of WAV files of fans, labels in their names")
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    p.add_argument("--ids", type=int, default=4, help="number of fans (4)")
    p.add_argument("--train", type=int, default=40, help="healthy training clips a fan (40)")
    p.add_argument("--test", type=int, default=20, help="healthy and as many faulty test clips a fan (20)")
    p.add_argument("--seconds", type=float, default=10.0, help="length of a clip (10)")

    p = kinds.add_parser("vibration", help="one recording of the demo machine, .npz, 10240 Hz, g")
    p.add_argument("out", type=Path, metavar="OUT", help="the file to write, ends in .npz")
    p.add_argument("--seconds", type=float, default=120.0, help="length of the recording (120)")
    p.add_argument("--onset", type=float, help="the fault begins after so many seconds; healthy without")
    p.add_argument("--growth", type=float, default=10.0, help="and is full grown so many seconds later (10)")
    p.add_argument("--severity", type=float, help="a fault of this severity (0 to 1) from the beginning instead")

    p = kinds.add_parser("life", help="a run to failure as NASA IMS text files, 20 kHz, one snapshot in 10 min")
    p.add_argument("out", type=Path, metavar="OUT", help="the folder to write")
    p.add_argument("--snapshots", type=int, default=600, help="number of snapshots (600)")

    for p in kinds.choices.values():
        p.add_argument("--seed", type=int, default=0, help="the same number gives the same files (0)")
    a = parser.parse_args(argv)

    if a.kind == "sound":
        n = write_sound_folder(
            a.out, ids=range(a.ids), n_train=a.train, n_test=a.test, seconds=a.seconds, seed=a.seed
        )
        print(f"{a.out}: {n} clips of {a.seconds:g} s", file=sys.stderr)
    elif a.kind == "vibration":
        if a.out.suffix != ".npz":
            parser.error(f"OUT is {a.out}; expected a name that ends in .npz")
        severity: Severity = never
        if a.severity is not None:
            severity = constant(a.severity)
        elif a.onset is not None:
            severity = growing(a.onset, a.growth)
        n = write_vibration(a.out, demo_machine(), a.seconds, severity, a.seed)
        print(f"{a.out}: {n} samples at {demo_machine().fs_hz:g} Hz", file=sys.stderr)
    else:
        life = run_to_failure(a.seed, a.snapshots)
        n = write_life(a.out, life)
        print(f"{a.out}: {n} snapshots, the fault begins at {life.onset_index}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
