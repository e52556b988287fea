"""`edge-trainer fit | evaluate | report`: thin calls into the library.

Results go to stdout, everything else to stderr. Exit codes: 0 well, 1 failed, 2 usage, 78 bad recipe.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_agent.errors import ConfigError, EdgeAgentError
from trainer import architectures, recipe
from trainer.fit import Progress
from trainer.recipe import Recipe, Source

OK, FAILED, USAGE, BAD_RECIPE = 0, 1, 2, 78


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        code: int = args.run(args, parser)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return BAD_RECIPE
    except EdgeAgentError as error:
        print(f"edge-trainer: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("edge-trainer: interrupted; nothing was written", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-trainer", description="Train, judge and show bundles for edge-agent."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fit = commands.add_parser(
        "fit",
        help="train, calibrate, quantize, verify and write a bundle",
        description="Train from a recipe, or from --model and --data with the defaults below.",
        epilog="defaults\n" + (inspect.getdoc(recipe.default_mapping) or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.add_argument("recipe", nargs="?", type=Path, metavar="RECIPE.yaml")
    fit.add_argument("--model", choices=(*architectures.names(), "indicator"), help="instead of a recipe")
    fit.add_argument("--data", type=Path, metavar="PATH", help="recordings; overrides the recipe's")
    fit.add_argument("--fs", type=float, metavar="HZ", help="sampling rate, for files that state none")
    fit.add_argument(
        "--channel", type=int, action="append", metavar="N", help="0-based; may be repeated; default all"
    )
    fit.add_argument("--out", type=Path, metavar="DIR", help="the bundle; default models/NAME")
    fit.add_argument("--seed", type=int, metavar="N", help="overrides the recipe's")
    fit.add_argument("--epochs", type=int, metavar="N", help="overrides the recipe's")
    fit.add_argument("--plots", type=Path, metavar="DIR", help="default out/NAME")
    fit.add_argument("--json", action="store_true", help="one JSON object on stdout")
    fit.set_defaults(run=_fit)
    evaluate = commands.add_parser(
        "evaluate", help="AUC, pAUC, false alarms and delay of the bundle as shipped"
    )
    report = commands.add_parser("report", help="one self-contained HTML page")
    for command in (evaluate, report):
        command.add_argument("--bundle", type=Path, required=True, metavar="DIR")
        command.add_argument("--data", type=Path, required=command is evaluate, metavar="PATH")
        command.add_argument("--labels", type=Path, metavar="CSV", help="columns file,label[,onset]")
        command.add_argument(
            "--fs", type=float, metavar="HZ", help="sampling rate, for files that state none"
        )
        command.add_argument(
            "--channel", type=int, action="append", metavar="N", help="0-based; may be repeated"
        )
        command.add_argument("--machine", metavar="ID", help="of all recordings, where names do not say it")
    evaluate.add_argument("--json", action="store_true", help="one JSON object on stdout")
    evaluate.set_defaults(run=_evaluate)
    report.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.html")
    report.set_defaults(run=_report)
    return parser


def _fit(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    chosen = _chosen(args, parser)
    out = args.out or Path("models") / chosen.name
    from trainer import report
    from trainer.run import run

    with _progress() as progress:
        result = run(chosen, out, progress=progress)
    pictures = args.plots or Path("out") / chosen.name
    pictures.mkdir(parents=True, exist_ok=True)
    for name, png in report.images(result.bundle).items():
        (pictures / f"{name}.png").write_bytes(png)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    manifest = result.manifest
    size = sum(p.stat().st_size for p in out.iterdir())
    summary = {
        "bundle": str(out),
        "version": manifest.version,
        "model": manifest.model,
        "quantization": manifest.quantization.type,
        "bytes": size,
        "threshold": round(manifest.threshold.value, 6),
        "calibration_windows": len(result.scores),
        "parity": {k: round(v, 6) for k, v in manifest.quantization.parity.items()},
        "warnings": list(result.warnings),
        "plots": str(pictures),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(f"{out}: {manifest.model} {manifest.quantization.type}, {size / 1000:.0f} kB, limit {summary['threshold']:g} "
              f"from {len(result.scores)} healthy windows; plots in {pictures}")  # fmt: skip
    return OK


def _chosen(args: argparse.Namespace, parser: argparse.ArgumentParser) -> Recipe:
    """The recipe of the command line: a file with overrides, or a model's defaults."""
    if (args.recipe is None) == (args.model is None):
        parser.error("fit takes either RECIPE.yaml or --model NAME --data PATH")
    if args.recipe is not None:
        chosen = recipe.load(args.recipe)
        if args.data is not None:
            if len(chosen.data) != 1:
                parser.error(
                    f"{args.recipe} has {len(chosen.data)} data sources; --data can replace one only"
                )
            if not args.data.exists():
                parser.error(f"--data {args.data} does not exist")
            chosen = replace(chosen, data=(replace(chosen.data[0], path=args.data, simulate=None),))
        changes: dict[str, Any] = {}
        if args.fs is not None:
            changes["fs_hz"] = args.fs
        if args.channel is not None:
            changes["channels"] = tuple(args.channel)
        if changes:
            chosen = replace(chosen, data=tuple(replace(source, **changes) for source in chosen.data))
    else:
        if args.data is None:
            parser.error("fit --model needs --data PATH")
        fallback = f"{re.sub(r'[^a-z0-9_-]+', '-', args.data.stem.lower())}-{args.model.replace('_', '-')}"
        name = args.out.name if args.out is not None else fallback
        mapping = recipe.default_mapping(name, args.model, args.data, args.fs)
        if args.channel is not None:
            mapping["data"]["channels"] = args.channel
        chosen = recipe.parse(mapping)
    if args.seed is not None:
        chosen = replace(chosen, train=replace(chosen.train, seed=args.seed))
    if args.epochs is not None:
        chosen = replace(chosen, train=replace(chosen.train, epochs=args.epochs))
    return chosen


def _evaluate(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from trainer.evaluate import evaluate, read_labels

    labels = read_labels(args.labels) if args.labels else None
    result = evaluate(args.bundle, _recordings(args), labels=labels)
    if args.json:
        print(json.dumps(result))
        return OK
    machines, detections = result.pop("machines", []), result.pop("detections", [])
    for key, value in result.items():
        print(f"{key:22} {value}")
    for found in detections:
        delay = f"event {found['delay_s']:g} s after the fault began" if found["found"] else "no event"
        print(f"{'detection':22} {delay}")
    for row in machines:
        print(f"  {row['machine']:12} AUC {row['auc']}  pAUC {row['pauc']}  windows {row['windows']}")
    return OK


def _report(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from trainer import report
    from trainer.evaluate import evaluate, read_labels, score_labelled

    scored: list[Any] = []
    figures = None
    if args.data is not None:
        labels = read_labels(args.labels) if args.labels else None
        figures = evaluate(args.bundle, _recordings(args), labels=labels)
        groups = score_labelled(args.bundle, _recordings(args), labels)
        scored = [s for members in groups.values() for s in members]
    args.output.write_text(report.page(args.bundle, scored, figures), encoding="utf-8")
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")
    return OK


def _recordings(args: argparse.Namespace) -> Iterator[Any]:
    from trainer import data

    channels = None if args.channel is None else tuple(args.channel)
    return data.recordings(Source(args.data, args.fs, channels, args.machine))


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, epoch: int, epochs: int, losses: Mapping[str, float]) -> None:
            text = "  ".join(f"{k} {v:.4g}" for k, v in losses.items())
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=epochs, losses=text)
            bars.update(tasks[stage], completed=epoch, losses=text)

        yield show
