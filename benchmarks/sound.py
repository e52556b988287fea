"""`make sound`: what five labelled faults are worth, and whether a machine can be told by its sound.

    1  weak supervision   clips ─► 5 × 5 folds ─► stage 1 ─┬─► itself
                                                           ├─► stage 2 with 5 labelled anomalies (S4)
                                                           └─► control: as many epochs more of stage 1
    2  machine ids        MobileNetV2 over four simulated fans and MIMII fan id_00: log-odds of the own id (S0)

Every score is that of the int8 TFLite file. "Mean spectrum + k-NN", which needs no training, stands beside
both: the distance of a clip's mean log-mel spectrum to the nearest healthy one. Simulated clips are drawn
anew at every run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from benchmarks import _data
from benchmarks._report import write_section
from benchmarks.bounds import SOUND
from edge_agent import bundle as bundles
from edge_agent import scoring, simulate
from edge_agent.features import FeatureSet, standardisation
from edge_agent.inference import TFLiteModel
from edge_agent.recordings import Recording
from edge_agent.signals import F32, F64, Chunk
from trainer import data, export, fit, recipe, run, ship
from trainer.data import Clip, Table
from trainer.evaluate import auc, pauc, score_table
from trainer.fit import Data
from trainer.recipe import Recipe, Source

NAME = "sound"
WEAK, IDS = "sound-weak-ae", "sound-mobilenet-v2"
FAN = "mimii_id_00"
REPETITIONS, FOLDS, LABELLED = 5, 5, 5
#: The simulated sets of experiment 1: healthy and faulty clips, a factory as loud as MIMII's at 0 dB, severity.
#: Clips of simulated fans differ more from each other than those of one recording session, so more of them train,
#: for half the epochs. Sizes, epochs and severity were chosen on other fans (numbers below 100).
HEALTHY, FAULTY, SNR_DB, SEVERITY, EPOCHS = 80, 25, 0.0, (0.3, 0.8), 0.5
REAL, ONE_KIND, MIXED = "fan id_00", "simulated", "simulated, mixed faults"
#: Repetitions of the mixed set, which is shown and not judged.
MIXED_REPETITIONS = 2
ARMS = ("stage 1", "control", "stage 2", "k-NN")
PROCESSES = 2


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)


# --------------------------------------------------------------------------- experiment 1: few labels


@dataclass(frozen=True)
class Fold:
    """Clip numbers: healthy ones to train on, labelled faulty ones for stage 2, and those judged."""

    train: tuple[int, ...]
    labelled: tuple[int, ...]
    test: tuple[int, ...]
    seed: int


def folds(healthy: Sequence[int], faulty: Sequence[int], repetition: int) -> list[Fold]:
    """One repetition: every healthy clip is judged once; the labelled anomalies are drawn once and never judged."""
    rng = np.random.default_rng([repetition, 0x50])
    order = [int(i) for i in rng.permutation(healthy)]
    drawn = [int(i) for i in rng.permutation(faulty)]
    labelled, judged = drawn[:LABELLED], drawn[LABELLED:]
    return [
        Fold(
            train=tuple(i for i in order if i not in order[k::FOLDS]),
            labelled=tuple(labelled),
            test=(*order[k::FOLDS], *judged),
            seed=repetition * FOLDS + k,
        )
        for k in range(FOLDS)
    ]


def run_fold(table: Table, how: Recipe, fold: Fold) -> dict[str, tuple[float, float]]:
    """(AUC, pAUC) of every arm on the clips of one fold.

    Stage 1 is trained once; stage 2 and control both go on from its weights, for as many epochs. Every training
    clip trains: nothing stops early, and AUC needs no limit to be calibrated.
    """
    how = replace(how, train=replace(how.train, seed=fold.seed, patience=0))
    offset, scale = standardisation(table.vectors[list(fold.train)])
    spec = replace(table.spec, context=how.context, offset=offset, scale=scale)
    features = FeatureSet(spec)
    dense = FeatureSet(replace(spec, context=replace(how.context, hop=how.context.hop // how.train.overlap)))
    vectors = features.standardise(table.vectors)
    x, bad = (
        np.concatenate([dense.patches(vectors[i]) for i in clips]) for clips in (fold.train, fold.labelled)
    )
    shape = x.shape[1:]
    nobody, nothing = np.zeros(len(x), np.int32), (x[:0], np.zeros(0, np.int32))

    def train(epochs: int, stage2: int, start: list[F32] | None) -> Any:
        one = replace(how, train=replace(how.train, epochs=epochs, options={"stage2": stage2}))
        return fit.train(one, Data(x, nobody, *nothing, bad), None, start).network

    first = train(how.train.epochs, 0, None).get_weights()
    networks = {
        "stage 1": first,
        "control": train(how.train.options["stage2"], 0, first).get_weights(),
        "stage 2": train(0, how.train.options["stage2"], first).get_weights(),
    }
    anomalous = np.array([not table.clips[i].healthy for i in fold.test])
    rule = scoring.build(how.score)
    result = {}
    for arm, weights in networks.items():
        flat = export.tflite(how.model, (shape[0], shape[1]), 1, how.network, weights, "int8", ship.representative(x))
        model = TFLiteModel(flat, features.n_patches, shape)
        patches = [features.patches(vectors[i]) for i in fold.test]
        scores = np.array([rule(p, model(p)).value for p in patches])
        result[arm] = (auc(scores, anomalous), pauc(scores, anomalous))
    distances = nearest(vectors, fold.train, fold.test)
    result["k-NN"] = (auc(distances, anomalous), pauc(distances, anomalous))
    return result


def nearest(vectors: F32, train: Sequence[int], test: Sequence[int]) -> F64:
    """Euclidean distance of each test clip's mean spectrum to the nearest training clip's (k = 1).

    vectors : (n, n_frames, F) standardised log-mel values of one window a clip
    """
    mean = vectors.mean(1, dtype=np.float64)
    difference = mean[list(test)][:, np.newaxis] - mean[list(train)][np.newaxis]
    return np.asarray(np.linalg.norm(difference, axis=-1).min(1), np.float64)


#: set -> the table of each repetition
Tables = dict[str, list[Table]]
_shared: list[tuple[Tables, Recipe]] = []


def _begin(tables: Tables, how: Recipe) -> None:
    _shared.append((tables, how))


def _task(task: tuple[str, int, Fold]) -> tuple[str, dict[str, tuple[float, float]]]:
    name, repetition, fold = task
    tables, how = _shared[0]
    if name != REAL:
        t = how.train
        how = replace(how, train=replace(
            t, epochs=round(EPOCHS * t.epochs), options={"stage2": round(EPOCHS * t.options["stage2"])}
        ))
    return name, run_fold(tables[name][repetition], how, fold)


def cross_validate(tables: Tables, how: Recipe) -> dict[str, list[dict[str, tuple[float, float]]]]:
    """Every fold of every set, several processes at once."""
    tasks = []
    for name, repetitions in tables.items():
        for r, table in enumerate(repetitions):
            healthy = [i for i, c in enumerate(table.clips) if c.healthy]
            faulty = [i for i, c in enumerate(table.clips) if not c.healthy]
            tasks += [(name, r, fold) for fold in folds(healthy, faulty, r)]
    results: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in tables}
    # Spawned, not forked: TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, initializer=_begin, initargs=(tables, how)) as pool:
        for done, (name, result) in enumerate(pool.map(_task, tasks), 1):
            results[name].append(result)
            row = "  ".join(f"{arm} {result[arm][0]:.3f}" for arm in ARMS)
            say(f"fold {done:2} of {len(tasks)}  {name:23}  AUC  {row}")
    return results


def interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t).

    Folds share clips, so their results are not independent and the true interval is wider: it says how far the
    folds scatter, and is not a test. One value has no interval: 0.
    """
    v = np.asarray(list(values), np.float64)
    if len(v) < 2:
        return float(v.mean()), 0.0
    return float(v.mean()), float(student.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))


def summary(results: Sequence[Mapping[str, tuple[float, float]]]) -> dict[str, Any]:
    """Mean and interval of every arm, and of the paired difference stage 2 − control."""
    figures: dict[str, Any] = {"folds": len(results)}
    for i, measure in enumerate(("auc", "pauc")):
        rows = {arm: [r[arm][i] for r in results] for arm in ARMS}
        rows["gain"] = [r["stage 2"][i] - r["control"][i] for r in results]
        figures[measure] = {arm: tuple(round(x, 4) for x in interval(v)) for arm, v in rows.items()}
    figures["better_folds"] = sum(r["stage 2"][0] > r["control"][0] for r in results)
    return figures


def fan_table(how: Recipe, folder: Path) -> Table:
    """MIMII fan id_00, healthy and faulty clips."""
    return data.table(replace(how, data=(Source(folder, 16000.0, machine=FAN),)))


def simulated_table(how: Recipe, seed: tuple[int, ...], weakness: str | None) -> Table:
    """Clips of one simulated fan: `seed` draws the fan, the clips and the faults' severity.

    weakness : the kind of all its faults; None draws one for every faulty clip
    """
    rng = np.random.default_rng([*seed, 0x51])
    number = int(rng.integers(100, 10**6))

    def clips() -> Iterator[tuple[Recording, Clip]]:
        for k in range(HEALTHY + FAULTY):
            bad = k >= HEALTHY
            kind = weakness or str(rng.choice(simulate.FAN_FAULTS))
            severity = float(rng.uniform(*SEVERITY))
            x = simulate.sound(
                number, fault=kind if bad else None, severity=severity, snr_db=SNR_DB, seed=(*seed, k)
            )
            chunk = Chunk(x[np.newaxis], fs_hz=16000.0)
            label, name = ("anomaly" if bad else "normal"), f"simulated_{k:03d}"
            recording = Recording(name, Path(name), 16000.0, label, partial(iter, (chunk,)))
            yield recording, Clip(name, label, "simulated")

    return data.table(how, clips())


# ---------------------------------------------------------------------------- experiment 2: machine ids


def machine_ids(how: Recipe, folder: Path, seed: int, repetitions: int) -> list[dict[str, Any]]:
    """AUC of every machine on clips that were not trained on, for each repetition (another split, another seed).

    The bundle is the one that `fit` writes: half of every machine's healthy clips train, the others set the
    limit and are judged here together with its faulty clips; the AUC does not depend on the limit.
    """
    sources = tuple(
        replace(source, path=folder)
        if source.path is not None
        else replace(source, seed=seed, anomalies=source.clips)
        for source in how.data
    )
    how = replace(how, data=sources)
    table = data.table(how)
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, initializer=_begin_ids, initargs=(table, how)) as pool:
        for repetition, row in enumerate(pool.map(_ids_task, range(repetitions))):
            cells = "  ".join(
                f"{m} {r['auc']:.3f} (embedding {r['embedding_auc']:.3f}, k-NN {r['knn_auc']:.3f})"
                for m, r in row["machines"].items()
            )
            say(f"ids, training {repetition}: AUC {cells}; told apart {row['accuracy']:.3f}")
            rows.append(row)
    return rows


_shared_ids: list[tuple[Table, Recipe]] = []


def _begin_ids(table: Table, how: Recipe) -> None:
    _shared_ids.append((table, how))


def _ids_task(repetition: int) -> dict[str, Any]:
    table, how = _shared_ids[0]
    with tempfile.TemporaryDirectory(prefix="sound-") as text:
        out = Path(text) / "bundle"
        return _by_machine(run.run(data.with_seed(how, repetition), out, table=table), out, table)


def embeddings(network: Any, features: FeatureSet, vectors: F32) -> F32:
    """(n, 1, width of the head): what the network's last layer sees of each clip, mean over its patches."""
    parts = [fit.predict(network, features.patches(v)[..., np.newaxis])[1] for v in vectors]
    return np.stack([scoring.embedding(maps)[np.newaxis] for maps in parts])


def _by_machine(made: run.FitResult, out: Path, table: Table) -> dict[str, Any]:
    trained = set(np.unique(table.recording[made.parts.train]).tolist())
    features = made.bundle.judge.features
    vectors = features.standardise(table.vectors)
    spectra = {"knn": vectors, "embedding": embeddings(made.network, features, vectors)}
    machines: dict[str, dict[str, float]] = {}
    right = total = 0
    for name in made.manifest.classes:
        clips = [i for i, c in enumerate(table.clips) if c.machine == name]
        judged = [i for i in clips if i not in trained]
        anomalous = np.array([not table.clips[i].healthy for i in judged])
        own = data.subset(table, judged)
        scores = np.stack(
            [score_table(bundles.load(out, other, golden=False), own) for other in made.manifest.classes]
        )
        mine = scores[made.manifest.classes.index(name)]
        # The lowest log-odds is the likeliest machine.
        healthy = scores[:, ~anomalous]
        right += int((healthy.argmin(0) == made.manifest.classes.index(name)).sum())
        total += healthy.shape[1]
        machines[name] = {"auc": auc(mine, anomalous), "pauc": pauc(mine, anomalous)}
        for kind, of in spectra.items():
            distances = nearest(of, [i for i in clips if i in trained], judged)
            machines[name] |= {
                f"{kind}_auc": auc(distances, anomalous),
                f"{kind}_pauc": pauc(distances, anomalous),
            }
    return {
        "machines": machines,
        "accuracy": right / total,
        "quantization": made.manifest.quantization.type,
    }


MEASURES = ("auc", "pauc", "embedding_auc", "embedding_pauc", "knn_auc", "knn_pauc")


def ids_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the repetitions, for each machine and over them."""
    names = list(rows[0]["machines"])
    machines = {
        name: {key: round(float(np.mean([r["machines"][name][key] for r in rows])), 4) for key in MEASURES}
        for name in names
    }
    mean = {key: round(float(np.mean([m[key] for m in machines.values()])), 4) for key in machines[names[0]]}
    return {
        "machines": machines,
        "mean": mean,
        "accuracy": round(float(np.mean([r["accuracy"] for r in rows])), 4),
        "repetitions": len(rows),
        "quantization": sorted({r["quantization"] for r in rows}),
    }


# --------------------------------------------------------------------------------------------- report


def judge(weak: Mapping[str, Any]) -> bool:
    """The bounds of benchmarks/bounds.py: the second stage beats the control on the mean of the judged sets."""
    return all(weak[name]["auc"]["gain"][0] > SOUND["gain"] for name in (REAL, ONE_KIND))


def markdown(weak: Mapping[str, Any], ids: Mapping[str, Any], how: Recipe, seed: int) -> str:
    """The section of docs/results.md."""

    def cell(figures: tuple[float, float], sign: str = "") -> str:
        return f"{figures[0]:{sign}.3f} ± {figures[1]:.3f}"

    t = how.train
    repetitions = weak[REAL]["folds"] // FOLDS
    lines = [
        f"**Few labels.** {LABELLED} labelled anomalies, {repetitions} × {FOLDS} folds over the clips; every "
        f"healthy clip is judged once a repetition, all others train. Stage 1: {t.epochs} epochs; stage 2 and control both go on from it for "
        f"{t.options['stage2']} epochs. int8, AUC and pAUC (p = 0.1), mean ± 95 % interval over the folds (folds share "
        "clips: the interval shows scatter, it is no test).",
        "",
        "| set | arm | AUC | pAUC |",
        "|---|---|---|---|",
    ]
    for name, s in weak.items():
        lines += [f"| {name} | {arm} | {cell(s['auc'][arm])} | {cell(s['pauc'][arm])} |" for arm in ARMS]
        gain = f"stage 2 − control, better in {s['better_folds']} of {s['folds']} folds"
        lines.append(f"| {name} | {gain} | {cell(s['auc']['gain'], '+')} | {cell(s['pauc']['gain'], '+')} |")
    lines += [
        "",
        f"Simulated: in each repetition {HEALTHY} + {FAULTY} clips of another fan drawn by seed {seed}, factory at "
        f"{SNR_DB:g} dB, severity {SEVERITY[0]:g} to {SEVERITY[1]:g}, epochs × {EPOCHS:g}. All faults of a fan are "
        f"of one kind, each of {', '.join(simulate.FAN_FAULTS)} in turn: the labelled clips show the fault that is "
        f"looked for. With mixed faults ({MIXED_REPETITIONS} repetitions) five clips are about one of each kind; "
        "that set is shown, not judged.",
        "",
        f"**Machine ids.** MobileNetV2 over four simulated fans and MIMII fan id_00, {', '.join(ids['quantization'])}, "
        f"mean of {ids['repetitions']} trainings with another split each; a held-out healthy clip is taken for "
        f"the right machine in {ids['accuracy']:.1%} of cases. A faulty fan mostly keeps what tells it from the "
        "others, so the odds of its own id say little about its health; where spectra of healthy clips are as much "
        "alike as here, the plain distance says more.",
        "",
        "| machine | MobileNetV2, log-odds: AUC | pAUC | its embedding (float) + k-NN: AUC | pAUC "
        "| mean spectrum + k-NN: AUC | pAUC |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {name} | {' | '.join(f'{m[key]:.3f}' for key in MEASURES)} |"
        for name, m in [*ids["machines"].items(), ("mean", ids["mean"])]
    ]
    return "\n".join(lines)


def main() -> int:
    """The command line; the exit code of a verifying target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sound", description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of the five folds")
    parser.add_argument("--trainings", type=int, default=2, help="of the machine-id model")
    parser.add_argument("--seed", type=int, help="of the simulated clips; drawn where not given")
    parser.add_argument("--write", action="store_true", help="put the table into docs/results.md")
    args = parser.parse_args()
    # Two processes share the cores; TensorFlow and numpy must not take both in each.
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = _data.data_dir() / "sound" / "fan"
    if not folder.is_dir():
        return _data.skip(
            NAME, f"{folder} is not there; it holds MIMII fan id_00 as normal/ and anomaly/ WAV files"
        )
    began = time.monotonic()
    seed = secrets.randbelow(10**6) if args.seed is None else args.seed
    how, by_id = (recipe.load(recipe.RECIPES / f"{name}.yaml") for name in (WEAK, IDS))
    say(f"seed of the simulated clips: {seed}")
    several = range(args.repetitions)
    tables = {
        REAL: [fan_table(how, folder)] * args.repetitions,
        ONE_KIND: [
            simulated_table(how, (seed, r), simulate.FAN_FAULTS[r % len(simulate.FAN_FAULTS)])
            for r in several
        ],
        MIXED: [simulated_table(how, (seed, r), None) for r in several[:MIXED_REPETITIONS]],
    }
    say(f"{time.monotonic() - began:.0f} s: features of all clips computed")
    weak = {name: summary(r) for name, r in cross_validate(tables, how).items()}
    ids = ids_summary(machine_ids(by_id, folder, seed, args.trainings))
    table = markdown(weak, ids, how, seed)
    say(f"\n{table}\n\n{time.monotonic() - began:.0f} s")
    if args.write:
        write_section(NAME, table)
    return _data.finish(NAME, judge(weak), seed=seed, weak=weak, ids=ids)


if __name__ == "__main__":
    sys.exit(main())
