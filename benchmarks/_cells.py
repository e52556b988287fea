"""One cell of the results table: a recipe trained on some recordings, judged on others, float beside shipped.

    table ─► train part ─► run.run ─► bundle (int8 or float16) ──┐
          └► test windows ─────────► float32 file beside it ─────┴─► AUC, pAUC, ms a window
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks._report import say
from edge_agent.bundle import Bundle
from edge_agent.features import FeatureSet
from edge_agent.pipeline import Judge
from edge_agent.signals import F32, F64
from trainer import data, run
from trainer.data import Clip, Table
from trainer.evaluate import auc, pauc
from trainer.recipe import Recipe
from trainer.run import FitResult
from trainer.splits import sequences

PROCESSES = 2


@dataclass(frozen=True)
class Row:
    """A line of a table. `auc`, `pauc` are those of the file as shipped; `ms` is model and score of one window, without
    its features; None where there is no network."""

    set: str
    model: str
    auc: float
    pauc: float
    float_auc: float | None = None
    float_pauc: float | None = None
    quantization: str | None = None
    kb: float | None = None
    ms: float | None = None
    train_s: float | None = None
    note: str = ""

    def json(self) -> dict[str, Any]:
        """For the last line of stdout, rounded."""
        return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items() if v not in (None, "")}


def scores(judge: Judge, table: Table, part: Any) -> F64:
    """The score of each window of `part`; where the context is a history, that of the window that ends it, and NaN
    for those without one. The table's features need no window: they are those of the bundle."""
    features = FeatureSet(judge.features.spec)
    out = np.full(len(part), np.nan)
    if features.spec.context.over == "frames":
        for i, k in enumerate(part):
            out[i] = judge.score(features.standardise(table.vectors[k])).value
        return out
    vectors = features.standardise(table.vectors)
    place = {int(k): i for i, k in enumerate(part)}
    for history in sequences(table, np.asarray(part), features.spec.context):
        out[place[int(history[-1])]] = judge.score(vectors[history, 0]).value
    return out


def fitted(recipe: Recipe, table: Table, out: Path) -> tuple[FitResult, float]:
    """The bundle trained on the table, and the seconds that took."""
    begin = time.perf_counter()
    made = run.run(recipe, out, table=table)
    return made, time.perf_counter() - begin


def judged(name: str, recipe: Recipe, made: FitResult, test: Table, seconds: float, note: str = "") -> Row:
    """The row of a trained bundle on test windows, every clip labelled."""
    part = np.arange(len(test))
    anomalous = ~test.healthy()
    shipped, reference = (scores(judge, test, part) for judge in (made.bundle.judge, made.float_judge))
    known = np.isfinite(shipped)
    figures = [(auc(s[known], anomalous[known]), pauc(s[known], anomalous[known])) for s in (shipped, reference)]
    return Row(
        name, recipe.model, *figures[0], *figures[1], made.manifest.quantization.type, size_kb(made.bundle),
        ms_a_window(made.bundle.judge, test), seconds, note,
    )  # fmt: skip


def size_kb(bundle: Bundle) -> float:
    """The whole folder, in kB."""
    return sum(p.stat().st_size for p in bundle.path.iterdir()) / 1000.0


def ms_a_window(judge: Judge, table: Table, calls: int = 20) -> float:
    """Model and score of one window, the fastest of some calls."""
    features = judge.features
    need = features.spec.context.width if features.spec.context.over == "windows" else 1
    v = features.standardise(table.vectors[:need])
    one: F32 = v[:, 0] if features.spec.context.over == "windows" else v[0]
    best = np.inf
    for _ in range(calls):
        begin = time.perf_counter()
        judge.score(one)
        best = min(best, time.perf_counter() - begin)
    return float(1000.0 * best)


def pick(table: Table, keep: Callable[[Clip], bool]) -> Table:
    """The recordings that `keep` says, of those that have windows."""
    held = set(np.unique(table.recording).tolist())
    return data.subset(table, [i for i, clip in enumerate(table.clips) if i in held and keep(clip)])


def windows_of(table: Table, part: Any) -> Table:
    """The table of some windows only: a stretch of time of its recordings."""
    part = np.asarray(part)
    return replace(
        table, vectors=table.vectors[part], start=table.start[part], recording=table.recording[part]
    )


def join(*tables: Table) -> Table:
    """Tables of the same features, one after the other."""
    offset = np.cumsum([0, *(len(t.clips) for t in tables)])
    return replace(
        tables[0],
        vectors=np.concatenate([t.vectors for t in tables]),
        start=np.concatenate([t.start for t in tables]),
        recording=np.concatenate([t.recording + o for t, o in zip(tables, offset, strict=False)]),
        clips=tuple(clip for t in tables for clip in t.clips),
    )


def parallel(tasks: Sequence[tuple[str, Callable[..., Any], tuple[Any, ...]]]) -> dict[str, Any]:
    """name -> result of every task, in the order of `tasks`; processes are spawned: TensorFlow does not survive a fork."""
    results: dict[str, Any] = {}
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        names: dict[Future[Any], str] = {pool.submit(f, *args): name for name, f, args in tasks}
        begin = time.perf_counter()
        for done, future in enumerate(as_completed(names), 1):
            results[names[future]] = future.result()
            say(f"{time.perf_counter() - begin:6.0f} s  {done:3} of {len(tasks)}  {names[future]}")
    return {name: results[name] for name, _, _ in tasks}


def in_folder(f: Callable[[Path], Any]) -> Any:
    """f with a folder that is removed afterwards."""
    with TemporaryDirectory(prefix="cell-") as text:
        return f(Path(text) / "bundle")
