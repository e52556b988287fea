"""`make sound`: what five labelled faults are worth, and whether a machine can be told by its sound.

    1  weak supervision   clips ─► 5 × 5 folds ─► stage 1 ─┬─► itself
                                                           ├─► stage 2 with 5 labelled anomalies (S4)
                                                           └─► control: as many epochs more of stage 1
    2  machine ids        MobileNetV2 over four simulated fans and MIMII fan id_00, others only to learn from:
                          log-odds of the own id (S0), and k-NN on the embedding

Every score is that of the int8 TFLite file; of machine ids float32 stands beside. "Mean spectrum + k-NN", which needs
no training, stands beside both: the distance of a clip's mean log-mel spectrum to the nearest healthy one.
Simulated clips are drawn anew at every run.
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

from benchmarks import _cells, _data
from benchmarks._cells import Row
from benchmarks._report import say, write_section
from benchmarks.bounds import SOUND
from edge_agent import scoring, simulate
from edge_agent.features import FeatureSet, standardisation
from edge_agent.inference import TFLiteModel
from edge_agent.recordings import Recording
from edge_agent.scoring import ScoreRule
from edge_agent.signals import F32, F64, Chunk
from trainer import data, export, fit, recipe, run, ship
from trainer.data import Clip, Table
from trainer.evaluate import auc, pauc
from trainer.fit import Data
from trainer.recipe import Recipe, Source
from trainer.ship import Inputs

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


def nearest(vectors: F32, train: Sequence[int], test: Sequence[int], whiten: float = 0.0) -> F64:
    """Euclidean distance of each test clip's mean spectrum to the nearest training clip's (k = 1).

    vectors : (n, n_frames, F) standardised log-mel values of one window a clip
    whiten  : above 0, distances count by how much the training clips differ anyway (`trainer.ship.whitening`)
    """
    return nearest_of(vectors, train, np.zeros(len(train)), test, np.zeros(len(test)), whiten)


def nearest_of(
    vectors: F32, train: Sequence[int], of: Any, test: Sequence[int], own: Any, whiten: float = 0.0
) -> F64:
    """As `nearest`, each test clip against the training clips of its own machine; `of`, `own`: their numbers."""
    rule = ScoreRule("knn", {"metric": "euclidean", "output": 0, "n_classes": int(np.max(of)) + 1})
    references, arrays = vectors[list(train)].mean(1), {"group": np.asarray(of, np.float32)}
    if whiten:
        rule = replace(rule, params={**rule.params, "whiten": whiten})
        arrays["projection"] = ship.whitening(references, np.asarray(of), whiten)
        references = references @ arrays["projection"]
    arrays["references"] = references
    scorers = {g: scoring.build(replace(rule, params={**rule.params, "target": g}), arrays) for g in {int(g) for g in own}}
    clips = [vectors[i][np.newaxis] for i in test]
    return np.array([scorers[int(g)](x, (x,)).value for g, x in zip(own, clips, strict=True)], np.float64)


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


#: The machines that are judged; all others of the recipe only lend their sound to learn from.
JUDGED = (0, 1, 2, 3)
#: The scores in the table: of the network, of the network's embedding alone, of what the recipe ships; then two of the
#: mean spectrum, without a network.
ODDS, PLAIN, OURS, SPECTRUM, WHITENED = "log-odds", "embedding + k-NN", "as shipped", "mean spectrum", "whitened mean spectrum"
NETWORK = (ODDS, PLAIN, OURS)
SCORES = (*NETWORK, SPECTRUM, WHITENED)
#: "shipped" or "float32" -> score -> (AUC, pAUC)
Cells = dict[str, dict[str, tuple[float, float]]]


def with_faults(how: Recipe, folder: Path, seed: int) -> Recipe:
    """The recipe with as many faulty clips as healthy ones of every simulated machine that is judged, drawn by `seed`."""
    sources = []
    for source in how.data:
        if source.path is not None:
            sources.append(replace(source, path=folder))
        else:
            judged = set(source.ids) <= set(JUDGED)
            sources.append(replace(source, seed=source.seed + seed, anomalies=source.clips if judged else 0))
    return replace(how, data=tuple(sources))


def machine_ids(how: Recipe, folder: Path, seed: int, repetitions: int) -> list[dict[str, Any]]:
    """Every judged machine on clips that were not trained on, for each repetition (another split, another seed).

    The bundle is the one that `fit` writes: half of every machine's healthy clips train, the others set the
    limit and are judged here together with its faulty clips; the AUC does not depend on the limit.
    """
    how = with_faults(how, folder, seed)
    table = data.table(how)
    rows = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, context, initializer=_begin_ids, initargs=(table, how)) as pool:
        for repetition, row in enumerate(pool.map(_ids_task, range(repetitions))):
            means = {score: np.mean([m["shipped"][score][0] for m in row["machines"].values()]) for score in SCORES}
            cells = "  ".join(f"{score} {value:.3f}" for score, value in means.items())
            say(f"ids, training {repetition}: AUC  {cells}; told apart {row['accuracy']:.3f}")
            rows.append(row)
    return rows


_shared_ids: list[tuple[Table, Recipe]] = []


def _begin_ids(table: Table, how: Recipe) -> None:
    _shared_ids.append((table, how))


def _ids_task(repetition: int) -> dict[str, Any]:
    table, how = _shared_ids[0]
    with tempfile.TemporaryDirectory(prefix="sound-") as text:
        how = data.with_seed(how, repetition)
        return by_machine(run.run(how, Path(text) / "bundle", table=table), how)


def by_machine(made: run.FitResult, how: Recipe) -> dict[str, Any]:
    """AUC and pAUC of every machine with faulty clips, of every score, on all windows that did not train.

    The log-odds, and k-NN on the embedding alone, are those that the same file would ship with.
    """
    table, classes = made.table, made.manifest.classes
    features = made.bundle.judge.features
    vectors = features.standardise(table.vectors)
    number = np.array([classes.index(str(c.machine)) for c in table.of(np.arange(len(table)))])
    healthy = table.healthy()
    train = made.parts.train
    judged = np.setdiff1d(np.flatnonzero(np.isin(number, number[~healthy])), train)

    def inputs(part: Any) -> Inputs:
        return Inputs(np.stack([features.patches(v) for v in vectors[part]]), number[part])

    learnt, held = inputs(train), inputs(judged)
    known = {"target": 0, "n_classes": len(classes)}
    rules = {
        ODDS: ScoreRule("log_odds", known),
        PLAIN: ScoreRule("knn", known),
        OURS: ScoreRule(how.score.kind, {**how.score.params, **known}),
    }
    whiten = float(how.score.params.get("whiten", 0.0)) or WHITEN
    spectra = {
        SPECTRUM: nearest_of(vectors, train, number[train], judged, number[judged]),
        WHITENED: nearest_of(vectors, train, number[train], judged, number[judged], whiten),
    }
    machines: dict[str, Cells] = {classes[g]: {} for g in np.unique(number[judged])}
    accuracy = 0.0
    for file, judge in (("shipped", made.bundle.judge), ("float32", made.float_judge)):
        out_learnt, out_held = ship.outputs_of(judge.model, learnt), ship.outputs_of(judge.model, held)
        values = dict(spectra)
        for score, rule in rules.items():
            fitted, arrays = ship.fit_score(rule, {}, out_learnt, learnt)
            values[score] = ship.scores(fitted, arrays, held, out_held)
        for name, cells in machines.items():
            of = number[judged] == classes.index(name)
            bad = ~healthy[judged[of]]
            cells[file] = {score: (auc(v[of], bad), pauc(v[of], bad)) for score, v in values.items()}
        if file == "shipped":
            # The lowest log-odds is the likeliest machine.
            odds = [
                ship.scores(rules[ODDS], {}, replace(held, group=np.full(len(judged), g)), out_held)
                for g in range(len(classes))
            ]
            right = np.argmin(odds, axis=0) == number[judged]
            accuracy = float(right[healthy[judged]].mean())
    return {"machines": machines, "accuracy": accuracy, "classes": len(classes),
            "quantization": made.manifest.quantization.type, "kb": _cells.size_kb(made.bundle)}  # fmt: skip


def id_rows(folder: Path, seed: int) -> list[Row]:
    """One training as rows of docs/results.md: every judged machine with every score; `folder` holds the public data."""
    how = with_faults(data.with_seed(recipe.load(recipe.RECIPES / f"{IDS}.yaml"), seed), folder / "sound" / "fan", seed)

    def work(out: Path) -> list[Row]:
        made, seconds = _cells.fitted(how, data.table(how), out)
        figures = by_machine(made, how)
        rows = []
        for name, cells in figures["machines"].items():
            table = _cells.pick(made.table, lambda clip, name=name: clip.machine == name)  # type: ignore[misc]
            ms = _cells.ms_a_window(made.bundle.judge, table)
            for score in NETWORK:
                rows.append(Row(
                    name, f"mobilenet_v2, {score}", *cells["shipped"][score], *cells["float32"][score],
                    figures["quantization"], figures["kb"], ms, seconds, f"{figures['classes']} machines learnt from",
                ))  # fmt: skip
            rows += [Row(name, f"{score} + k-NN", *cells["shipped"][score]) for score in (SPECTRUM, WHITENED)]
        return rows

    return _cells.in_folder(work)  # type: ignore[no-any-return]


#: Ridge of the whitened spectrum where the recipe does not whiten.
WHITEN = 0.1


def ids_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over the repetitions, for each machine and over them."""

    def mean(cells: Sequence[Cells]) -> Cells:
        return {
            file: {
                score: (
                    round(float(np.mean([c[file][score][0] for c in cells])), 4),
                    round(float(np.mean([c[file][score][1] for c in cells])), 4),
                )
                for score in SCORES
            }
            for file in cells[0]
        }

    machines = {name: mean([r["machines"][name] for r in rows]) for name in rows[0]["machines"]}
    return {
        "machines": machines,
        "mean": mean(list(machines.values())),
        "accuracy": round(float(np.mean([r["accuracy"] for r in rows])), 4),
        "classes": rows[0]["classes"],
        "repetitions": len(rows),
        "quantization": sorted({r["quantization"] for r in rows}),
        "kb": round(max(r["kb"] for r in rows), 1),
    }


def ids_markdown(ids: Mapping[str, Any], how: Recipe) -> str:
    """The paragraph and the table of machine ids."""
    params = how.score.params
    said = f"k-NN ({params.get('metric', 'cosine')})" if how.score.kind == "knn" else how.score.kind
    if params.get("spectrum"):
        said += f" of the embedding with the mean spectrum beside it (weight {params['spectrum']:g})"
    if params.get("whiten"):
        said += f", whitened within the machines (ridge {params['whiten']:g})"
    mean = ids["mean"]["shipped"]
    best = max(NETWORK, key=lambda score: mean[score][0])
    lines = [
        f"**Machine ids.** MobileNetV2 over four simulated fans, MIMII fan id_00 and {ids['classes'] - len(ids['machines'])} other "
        f"simulated fans that are not judged, {', '.join(ids['quantization'])}, bundle {ids['kb']:.0f} kB; mean of "
        f"{ids['repetitions']} trainings with another split each. A held-out healthy clip is taken for the right machine in "
        f"{ids['accuracy']:.1%} of cases. As shipped: {said}. Without a network: the mean spectrum of a clip and its nearest "
        "healthy one, as it is and whitened in the same way. AUC / pAUC (p = 0.1).",
        "",
        "| machine | log-odds | embedding + k-NN | as shipped | mean spectrum + k-NN | the same, whitened |",
        "|---|---|---|---|---|---|",
    ]

    def row(name: str, cells: Mapping[str, tuple[float, float]]) -> str:
        return f"| {name} | {' | '.join(f'{cells[score][0]:.3f} / {cells[score][1]:.3f}' for score in SCORES)} |"

    lines += [row(name, cells["shipped"]) for name, cells in ids["machines"].items()]
    lines += [row("mean", mean), row("mean, float32", ids["mean"]["float32"])]
    lines += [
        "",
        f"Best of the network's scores: {best}, {mean[best][0] - mean[SPECTRUM][0]:+.3f} AUC against the mean spectrum and "
        f"{mean[best][0] - mean[WHITENED][0]:+.3f} against the whitened one.",
    ]
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------- report


def judge(weak: Mapping[str, Any]) -> bool:
    """The bounds of benchmarks/bounds.py: the second stage beats the control on the mean of the judged sets."""
    return all(weak[name]["auc"]["gain"][0] > SOUND["gain"] for name in (REAL, ONE_KIND))


def weak_markdown(weak: Mapping[str, Any], how: Recipe, seed: int) -> str:
    """The paragraph and the table of few labels."""

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
    ]
    return "\n".join(lines)


def run_weak(how: Recipe, folder: Path, seed: int, repetitions: int) -> dict[str, Any]:
    """Experiment 1: the summary of every set."""
    several = range(repetitions)
    tables = {
        REAL: [fan_table(how, folder)] * repetitions,
        ONE_KIND: [
            simulated_table(how, (seed, r), simulate.FAN_FAULTS[r % len(simulate.FAN_FAULTS)])
            for r in several
        ],
        MIXED: [simulated_table(how, (seed, r), None) for r in several[:MIXED_REPETITIONS]],
    }
    return {name: summary(r) for name, r in cross_validate(tables, how).items()}


def main() -> int:
    """The command line; the exit code of a verifying target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sound", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("weak", "ids"), help="one of the two experiments")
    parser.add_argument("--repetitions", type=int, default=REPETITIONS, help="of the five folds")
    parser.add_argument("--trainings", type=int, default=2, help="of the machine-id model")
    parser.add_argument("--seed", type=int, help="of the simulated clips; drawn where not given")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/results.md (both experiments)")
    args = parser.parse_args()
    if args.write and args.only:
        parser.error("--write needs both experiments: the section holds both tables; leave --only away")
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
    weak, ids, parts = None, None, []
    if args.only != "ids":
        weak = run_weak(how, folder, seed, args.repetitions)
        parts.append(weak_markdown(weak, how, seed))
    if args.only != "weak":
        ids = ids_summary(machine_ids(by_id, folder, seed, args.trainings))
        parts.append(ids_markdown(ids, by_id))
    table = "\n\n".join(parts)
    say(f"\n{table}\n\n{time.monotonic() - began:.0f} s")
    if args.write:
        write_section(NAME, table)
    return _data.finish(NAME, weak is None or judge(weak), seed=seed, weak=weak, ids=ids)


if __name__ == "__main__":
    sys.exit(main())
