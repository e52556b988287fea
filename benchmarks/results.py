"""`make results`: every method on recordings, machines and times it was not trained on, into docs/results.md.

    sections ─► tasks, two at a time, each a process ─► out/results/SECTION.json ─► tables and plots

`--only SECTION` does one section again; the page then holds the others as they were last. FULL=1 in the environment
takes more seeds and all simulated fans. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks import _cells, _data, clips, mnist, runs, vibration
from benchmarks._cells import Row
from benchmarks._report import RESULTS as PAGE
from benchmarks._report import say, write_section
from benchmarks.bounds import MASK, RESULTS

NAME = "results"
KEPT = _data.ROOT / "out" / "results"
FILES = ("hit_sm.npz", "cwru.npz", "motor3ax.npz", "ims_set2.npz", "femto_bearing1_1.npz", "mnist_train_30k.npz", "sound/fan")
#: A task: name, function, arguments.
Task = tuple[str, Callable[..., Any], tuple[Any, ...]]


def full() -> bool:
    """Whether the long version is asked for."""
    return os.environ.get("FULL", "") not in ("", "0")


# ------------------------------------------------------------------------------------------ sections


def do_vibration(folder: Path) -> dict[str, Any]:
    """HIT-SM, CWRU, motor: rows."""
    seeds = 3 if full() else 1
    tasks: list[Task] = [(f"{key} baselines", vibration.plain, (folder, key)) for key in vibration.SETS]
    tasks += [
        (f"{key} {model} {seed}", vibration.cell, (folder, key, model, seed))
        for key in vibration.SETS
        for model in vibration.MODELS
        for seed in range(seeds)
    ]
    return {"rows": _mean([row for rows in _cells.parallel(tasks).values() for row in rows])}


def do_sound(folder: Path) -> dict[str, Any]:
    """Autoencoders and GAN on each machine by itself, networks that tell machines apart on all."""
    from benchmarks import sound

    numbers = range(4) if full() else range(2)
    names = [clips.FAN, *map(clips.machine, numbers)]
    tasks: list[Task] = [
        (f"{name} {model}", clips.cell, (folder, name, model)) for name in names for model in clips.MODELS
    ]
    tasks += [
        (f"machine ids {seed}", sound.id_rows, (folder, seed)) for seed in range(3 if full() else 1)
    ]
    rows = [row for rows in _cells.parallel(tasks).values() for row in rows]
    return {"rows": _mean([replace(row, set=_among(row.set)) for row in rows])}


def _among(name: str) -> str:
    """`mobilenet_v2` learns all machines at once: its rows stand apart from those of one machine by itself."""
    if name.startswith("mimii_"):
        return f"fan {name.removeprefix('mimii_')}, among others"
    return f"simulated {int(name.removeprefix('id_'))}, among others" if name.startswith("id_") else name


def do_lives(folder: Path) -> dict[str, Any]:
    """IMS and FEMTO: first events."""
    tasks: list[Task] = []
    for key in runs.LIVES:
        tasks.append((f"{key} baselines", runs.plain, (folder, key)))
        tasks += [(f"{key} {model}", runs.cell, (folder, key, model)) for model in runs.MODELS]
    found = [line for result in _cells.parallel(tasks).values() for line in _listed(result)]
    return {"lines": [_rounded(asdict(line)) for line in found]}


def do_mnist(folder: Path) -> dict[str, Any]:
    """One digit normal."""
    tasks: list[Task] = [
        (f"{digit} {model} {seed}", mnist.cell, (folder / "mnist_train_30k.npz", digit, model, seed))
        for model in reversed(list(mnist.SETTINGS))
        for digit in mnist.DIGITS
        for seed in range(2 if full() else 1)
    ]
    found = _cells.parallel(tasks)
    decisions = [
        {"set": row.set, "model": row.model, **{k: round(v, 4) for k, v in figures.items()}}
        for row, figures in found.values()
    ]
    return {"rows": _mean([row for row, _ in found.values()]), "decisions": decisions}


def do_mask(folder: Path) -> dict[str, Any]:
    """The GAN's mask over faults drawn now."""
    from benchmarks import mask

    found = mask.figures(secrets.randbelow(10**6), PAGE.parent / "img")
    return {**found, "ok": found["iou"] >= MASK["iou"], "markdown": mask_said(found)}


def do_staged(folder: Path) -> dict[str, Any]:
    """Three stages without labels."""
    from benchmarks import staged

    seed = secrets.randbelow(10**6)
    with TemporaryDirectory(prefix="staged-") as text:
        found = staged.figures(Path(text), seed)
    return {"seed": seed, "sets": found, "ok": staged.holds(found), "markdown": staged.markdown(found)}


SECTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "vibration": do_vibration,
    "lives": do_lives,
    "sound": do_sound,
    "mnist": do_mnist,
    "mask": do_mask,
    "staged": do_staged,
}


def _listed(result: Any) -> list[Any]:
    return result if isinstance(result, list) else [result]


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items() if v not in (None, "")}


def _mean(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of the same set and model as one, set by set: means of the figures, the worst parity, every quantization."""
    out: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        out.setdefault((row.set, row.model), []).append(row)
    merged = []
    for (name, model), same in out.items():
        one = same[0].json() | {"set": name, "model": model}
        for key in ("auc", "pauc", "float_auc", "float_pauc", "kb", "ms", "train_s"):
            values = [getattr(r, key) for r in same if getattr(r, key) is not None]
            if values:
                one[key] = round(float(np.mean(values)), 4)
        if kinds := sorted({r.quantization for r in same if r.quantization}):
            one["quantization"] = ", ".join(kinds)
        parity = [abs(r.auc - r.float_auc) for r in same if r.float_auc is not None]
        if parity:
            one["parity"] = round(max(parity), 4)
        if len(same) > 1:
            one["seeds"] = len(same)
        merged.append(one)
    sets = list(dict.fromkeys(r["set"] for r in merged))
    return sorted(merged, key=lambda r: sets.index(r["set"]))


# -------------------------------------------------------------------------------------------- tables

_SAID = {"mean_spectrum_knn": "*mean spectrum + k-NN*", "statistics_mahalanobis": "*15 statistics + Mahalanobis*"}


def mask_said(found: Mapping[str, Any]) -> str:
    """The mask's figures in words."""
    return (
        f"Simulated fan {found['fan']}, {found['faults']} bursts of noise in random bands at random times (seed "
        f"{found['seed']}), the file as shipped ({found['quantization']}): mean intersection over union "
        f"{found['iou']:.2f}, worst {found['iou_worst']:.2f}; the same mask on the difference from the mean spectrum, "
        f"which needs no network, {found['iou_mean_spectrum']:.2f}."
        + (
            " On a machine that sounds the same all the time the mean spectrum makes the better mask: a burst pulls ẑ along, "
            "and the generator draws part of it."
            if found["iou_mean_spectrum"] > found["iou"]
            else ""
        )
        + "\n\n![bursts, what the generator draws of them, difference and mask](img/mask-fan.png)\n\n"
        "On digits, a generator of threes (`python -m benchmarks.mask --images`):\n\n"
        "![a three and wrong digits, as the generator draws them, with the mask](img/mask-digits.png)"
    )


def is_plain(model: str) -> bool:
    """Whether a row is a baseline."""
    return model in _SAID or "spectrum" in model


def cells_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line a set and model, float beside what is shipped."""
    lines = [
        "| set | model | AUC | pAUC | float32 AUC | pAUC | shipped as | kB | ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        one = [r["set"], _named(r["model"]) + (f" ({r['note']})" if r.get("note") else "")]
        one += [_shown(r.get(k), 3) for k in ("auc", "pauc", "float_auc", "float_pauc")]
        one += [r.get("quantization", "").replace("none", "–") or "–", _shown(r.get("kb"), 0), _shown(r.get("ms"), 2)]
        lines.append("| " + " | ".join(one) + " |")
    return "\n".join(lines)


def _named(model: str) -> str:
    return _SAID.get(model) or (f"*{model}*" if is_plain(model) else f"`{model}`")


def lives_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """A line a life and model."""
    out = [
        "| life | model | first event: snapshot | float32 | hours before the end | false events | shipped as | kB | ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in lines:
        first, hours = r.get("first"), r.get("hours")
        one = [r["life"], _SAID.get(r["model"], f"`{r['model']}`"), "none" if first is None else str(first)]
        one += [_shown(r.get("first_float"), 0), _shown(hours, 1), str(r["false"])]
        one += [r.get("quantization", "").replace("none", "–") or "–", _shown(r.get("kb"), 0), _shown(r.get("ms"), 2)]
        out.append("| " + " | ".join(one) + " |")
    return "\n".join(out)


def decisions_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Precision, recall, F1 at the bundle's own limit, and at the best."""
    lines = ["| digit | model | precision | recall | F1 | F1 at the best limit |", "|---|---|---|---|---|---|"]
    lines += [
        f"| {r['set'].split()[-1]} | `{r['model']}` | "
        + " | ".join(_shown(r[k], 3) for k in ("precision", "recall", "f1", "best_f1"))
        + " |"
        for r in rows
    ]
    return "\n".join(lines)


def _shown(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def losses(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which networks lose to the better baseline of their set, in words; from the figures, so that it cannot be forgotten."""
    said = []
    for name in dict.fromkeys(r["set"] for r in rows):
        of = [r for r in rows if r["set"] == name]
        plain = [r for r in of if is_plain(r["model"])]
        if not plain:
            continue
        best = max(plain, key=lambda r: r["auc"])
        worse = [r for r in of if not is_plain(r["model"]) and r["auc"] < best["auc"] - 0.001]
        if worse:
            listed = ", ".join(f"`{r['model']}` ({r['auc']:.3f})" for r in worse)
            name_of = _SAID.get(best["model"], f"*{best['model']}*")
            said.append(f"- {name}: {name_of} ({best['auc']:.3f}) is ahead of {listed}.")
        else:
            said.append(f"- {name}: no network is behind the baselines ({best['auc']:.3f}).")
    return "\n".join(said)


# ------------------------------------------------------------------------------------------ judgement


def judge(kept: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], float]:
    """(every bound that is missed, in words; the largest difference of AUC between float32 and shipped)."""
    problems = []
    rows = [row for section in kept.values() for row in section.get("rows", ())]
    worst = max((r["parity"] for r in rows if "parity" in r), default=0.0)
    if worst > RESULTS["parity"]:
        problems.append(f"AUC of a shipped file is {worst:.3f} from its float32 one, at most {RESULTS['parity']}")
    sizes = [r for r in [*rows, *kept.get("lives", {}).get("lines", ())] if r.get("kb", 0) > RESULTS["kb"]]
    problems += [f"{r['model']} has {r['kb']:.0f} kB, at most {RESULTS['kb']:.0f}" for r in sizes]
    if "mnist" in kept:
        best = max(mnist_means(kept["mnist"]["rows"]).values())
        if best < RESULTS["mnist_auc"]:
            problems.append(f"MNIST: best mean AUC {best:.3f}, at least {RESULTS['mnist_auc']}")
    problems += [f"{name} missed its own bound" for name in ("mask", "staged") if kept.get(name, {}).get("ok") is False]
    return problems, worst


def mnist_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """model -> mean AUC over the digits."""
    return {
        model: float(np.mean([r["auc"] for r in rows if r["model"] == model]))
        for model in dict.fromkeys(r["model"] for r in rows)
    }


def write(kept: Mapping[str, Mapping[str, Any]]) -> None:
    """Tables into docs/results.md, plots beside it."""
    for name in ("vibration", "sound"):
        if name in kept:
            rows = kept[name]["rows"]
            write_section(f"results-{name}", f"{cells_table(rows)}\n\n{losses(rows)}")
    if "lives" in kept:
        write_section("results-lives", lives_table(kept["lives"]["lines"]))
    if "mnist" in kept:
        means = mnist_means(kept["mnist"]["rows"])
        said = ", ".join(f"`{model}` {value:.3f}" for model, value in means.items())
        text = f"{cells_table(kept['mnist']['rows'])}\n\nMean AUC over the three digits: {said}.\n\n"
        write_section("results-mnist", text + decisions_table(kept["mnist"]["decisions"]))
    for name in ("mask", "staged"):
        if name in kept and "markdown" in kept[name]:
            write_section(f"results-{name}", kept[name]["markdown"])
    plot(kept)


def plot(kept: Mapping[str, Mapping[str, Any]]) -> None:
    """docs/img/results-auc.png: AUC of every row, networks as dots, baselines as lines."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = [r for name in ("vibration", "sound", "mnist") for r in kept.get(name, {}).get("rows", ())]
    if not rows:
        return
    sets = list(dict.fromkeys(r["set"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows if not is_plain(r["model"])))
    colours = colormaps["tab20"].resampled(20)(np.r_[0:20:2, 1:20:2])
    figure = Figure(figsize=(8.0, 0.42 * len(sets) + 1.8), layout="constrained")
    axes = figure.subplots()
    for r in rows:
        y = sets.index(r["set"])
        if is_plain(r["model"]):
            style = ":" if r["model"] == "statistics_mahalanobis" else "-"
            axes.plot([r["auc"]] * 2, [y - 0.36, y + 0.36], style, color="black", linewidth=1.5)
        else:
            i = models.index(r["model"])
            axes.plot(r["auc"], y + 0.5 * (i / max(len(models) - 1, 1) - 0.5), "o", color=colours[i], markersize=5)
    for i, model in enumerate(models):
        axes.plot([], [], "o", color=colours[i], label=model)
    axes.plot([], [], "-", color="black", label="mean spectrum + k-NN")
    axes.plot([], [], ":", color="black", label="15 statistics")
    axes.set_yticks(range(len(sets)), sets)
    axes.set_ylim(len(sets) - 0.4, -0.6)
    axes.set_xlabel("AUC of the file as shipped")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    target = PAGE.parent / "img" / "results-auc.png"
    figure.savefig(target, dpi=100, metadata={"Software": None})


def main() -> int:
    """The command line; the exit code of a verifying target."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.results", description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=SECTIONS, action="append", help="these sections only; may be repeated")
    parser.add_argument("--write", action="store_true", help="put tables and plots into docs/")
    args = parser.parse_args()
    # In force in the processes of the tasks: one thread each, two at a time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = _data.data_dir()
    if missing := [name for name in FILES if not (folder / name).exists()]:
        return _data.skip(NAME, f"{folder} lacks {', '.join(missing)}")
    KEPT.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    for name in args.only or SECTIONS:
        say(f"== {name}")
        found = SECTIONS[name](folder)
        (KEPT / f"{name}.json").write_text(json.dumps(found, allow_nan=False))
    kept = {
        name: json.loads((KEPT / f"{name}.json").read_text()) for name in SECTIONS if (KEPT / f"{name}.json").exists()
    }
    for name in ("vibration", "sound", "mnist"):
        if name in kept:
            say(cells_table(kept[name]["rows"]))
    if "lives" in kept:
        say(lives_table(kept["lives"]["lines"]))
    if args.write:
        write(kept)
    problems, worst = judge(kept)
    for problem in problems:
        say(f"missed: {problem}")
    rows = [row for section in kept.values() for row in section.get("rows", ())]
    return _data.finish(
        NAME, not problems, rows=rows, worst_parity=worst, lines=kept.get("lives", {}).get("lines", []),
        mask={k: v for k, v in kept.get("mask", {}).items() if k != "markdown"},
        staged={k: v for k, v in kept.get("staged", {}).items() if k != "markdown"},
        minutes=round((time.perf_counter() - begin) / 60.0, 1),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
