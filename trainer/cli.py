"""`edge-trainer fit | staged | evaluate | report | sign | keygen`: thin calls into the library.

Results go to stdout, everything else to stderr. Exit codes: 0 well, 1 failed, 2 usage, 78 bad recipe.
"""

from __future__ import annotations

import argparse
import errno
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent import thresholds
from edge_agent.errors import ConfigError, EdgeAgentError
from trainer import architectures, recipe
from trainer.fit import Progress
from trainer.recipe import Recipe, Source
from trainer.words import counted, told

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
    except OSError as error:
        # A folder that cannot be written, a full disk: the system's words and the path say it.
        place = f"{error.filename}: " if error.filename is not None else ""
        print(f"edge-trainer: {place}{error.strerror or error}; nothing more was written", file=sys.stderr)
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
        epilog="defaults\n"
        + (inspect.getdoc(recipe.default_mapping) or "").partition("\n\n")[2].replace("`", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    fit.add_argument(
        "recipe",
        nargs="?",
        type=Path,
        metavar="RECIPE.yaml",
        help="everything about the run in one file (docs/recipes.md); or give --model and --data",
    )
    fit.add_argument(
        "--model",
        choices=(*architectures.names(), "indicator"),
        help="instead of a recipe: the model with the defaults below; indicator is one feature, no network",
    )
    fit.add_argument(
        "--data",
        type=Path,
        metavar="PATH",
        help="file or folder of recordings (docs/recordings.md); overrides the recipe's",
    )
    fit.add_argument("--fs", type=float, metavar="HZ", help="sampling rate, for files that state none")
    fit.add_argument(
        "--channel", type=int, action="append", metavar="N", help="0-based; may be repeated; default all"
    )
    fit.add_argument(
        "--method",
        choices=thresholds.METHODS,
        help="how the limit is fitted; default the recipe's, else gamma",
    )
    fit.add_argument(
        "--false-alarm-rate",
        type=float,
        metavar="P",
        help="share of healthy windows above the limit, 1e-6 to 0.5; default the recipe's, else 0.001",
    )
    fit.add_argument("--out", type=Path, metavar="DIR", help="the bundle; default models/NAME")
    fit.add_argument("--seed", type=int, metavar="N", help="of the training; default the recipe's, else 0")
    fit.add_argument(
        "--epochs",
        type=int,
        metavar="N",
        help="passes over the data, at most; default the recipe's, else 100",
    )
    fit.add_argument("--plots", type=Path, metavar="DIR", help="folder for PNG files; default out/NAME")
    fit.add_argument("--json", action="store_true", help="one JSON object on stdout")
    fit.set_defaults(run=_fit)
    _add_staged(commands)
    evaluate = commands.add_parser(
        "evaluate",
        help="AUC, pAUC, false alarms and delay of the bundle as shipped",
        description="AUC, pAUC, false alarms and detection delay of the bundle as shipped, on labelled recordings.",
    )
    report = commands.add_parser(
        "report",
        help="one self-contained HTML page",
        description="One self-contained HTML page: the card, plots and, with --data, figures.",
    )
    for command in (evaluate, report):
        command.add_argument(
            "--bundle",
            type=Path,
            required=True,
            metavar="DIR",
            help="folder that fit wrote, such as models/NAME",
        )
        command.add_argument(
            "--data",
            type=Path,
            required=command is evaluate,
            metavar="PATH",
            help="file or folder of recordings (docs/recordings.md)"
            + ("" if command is evaluate else "; without it the page shows the training only"),
        )
        command.add_argument(
            "--labels",
            type=Path,
            metavar="CSV",
            help="columns file,label[,onset][,group]; label is normal or anomaly; default by file or folder names",
        )
        command.add_argument(
            "--baselines",
            type=Path,
            metavar="PATH",
            help="healthy recordings, not those to judge: adds what needs no training, the nearest mean spectrum and the "
            "statistics' Mahalanobis distance, to every table",
        )
        command.add_argument(
            "--fs", type=float, metavar="HZ", help="sampling rate, for files that state none"
        )
        command.add_argument(
            "--channel", type=int, action="append", metavar="N", help="0-based; may be repeated; default all"
        )
        command.add_argument("--machine", metavar="ID", help="of all recordings, where names do not say it")
    evaluate.add_argument("--json", action="store_true", help="one JSON object on stdout")
    evaluate.set_defaults(run=_evaluate)
    report.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.html", help="the page to write"
    )
    report.set_defaults(run=_report)
    sign = commands.add_parser(
        "sign",
        help="sign a bundle, so that agents with the public key accept it",
        description="Verify a bundle and write bundle.sig: an Ed25519 signature over bundle.json, which holds the sha256 of "
        "every other file (docs/security.md). Training it again takes the signature away.",
    )
    sign.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="folder that fit wrote")
    sign.add_argument("--key", type=Path, required=True, metavar="FILE", help="private key that keygen wrote (PEM)")
    sign.set_defaults(run=_sign)
    keygen = commands.add_parser("keygen", help="make a pair of keys for sign", description="Make a pair of Ed25519 keys.")
    keygen.add_argument(
        "-o", "--output", type=Path, required=True, metavar="NAME",
        help="writes NAME.key, which signs and stays with you, and NAME.pub, which agents verify with",
    )  # fmt: skip
    keygen.set_defaults(run=_keygen)
    return parser


def _sign(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from edge_agent import bundle, signing

    found = bundle.load(args.bundle)
    print(f"{signing.sign(args.bundle, args.key)}: {found.manifest.name} {found.manifest.version}, sha256 {found.sha256}")
    return OK


def _keygen(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from edge_agent import signing

    _make(args.output.parent)
    private, public = signing.make_keys(args.output)
    print(f"{private}: signs bundles; keep it to yourself\n{public}: for `bundles: {{public_key: …}}` of every agent")
    return OK


def _add_staged(commands: Any) -> None:
    command = commands.add_parser(
        "staged",
        help="learn faults from recordings that nobody has labelled",
        description="Three stages (docs/staged.md): Deep SVDD on all records, pseudo-labels from its scores, a classifier "
        "on those. Names of files and folders are never read as labels. Writes DIR and DIR-stage1.",
    )
    command.add_argument(
        "recipe",
        nargs="?",
        type=Path,
        metavar="RECIPE.yaml",
        help="of stage 1 (deep_svdd or vae); or give --data",
    )
    command.add_argument(
        "--data", type=Path, metavar="PATH", help="file or folder of recordings; overrides the recipe's"
    )
    command.add_argument("--fs", type=float, metavar="HZ", help="sampling rate, for files that state none")
    command.add_argument(
        "--channel", type=int, action="append", metavar="N", help="0-based; may be repeated; default all"
    )
    command.add_argument(
        "--stage1",
        choices=("deep_svdd", "vae"),
        help="network of stage 1, without a recipe; default deep_svdd",
    )
    command.add_argument(
        "--method",
        choices=("mad", "percentile", "pot"),
        default="mad",
        help="how the limits are set; default mad",
    )
    command.add_argument(
        "--folds", type=int, default=2, metavar="K",
        help="a record is scored by a network that learnt from the other folds; 1: by the one that knows it; default 2",
    )  # fmt: skip
    command.add_argument(
        "--labels",
        type=Path,
        metavar="CSV",
        help="columns file,label[,onset] of the few recordings that a person knows, or what edge-agent export --labels wrote",
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="the bundle; default models/NAME")
    command.add_argument(
        "--seed", type=int, metavar="N", help="of the training; default the recipe's, else 0"
    )
    command.add_argument("--epochs", type=int, metavar="N", help="of stage 1; default the recipe's")
    command.add_argument("--plots", type=Path, metavar="DIR", help="folder for PNG files; default out/NAME")
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.set_defaults(run=_staged, model=None, false_alarm_rate=None)


def _staged(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from trainer import plots, report, staged
    from trainer.evaluate import Truth, read_labels
    from trainer.spans import Span, is_spans, read_spans

    if args.recipe is None:
        if args.data is None or not args.data.exists():
            parser.error("staged takes RECIPE.yaml, or --data PATH of recordings that exist")
        stage1 = args.stage1 or "deep_svdd"
        name = (
            args.out.name
            if args.out is not None
            else f"{re.sub(r'[^a-z0-9_-]+', '-', args.data.stem.lower())}-staged"
        )
        chosen = staged.default_recipe(name, args.data, args.fs, stage1)
        if args.channel is not None:
            chosen = replace(chosen, data=(replace(chosen.data[0], channels=tuple(args.channel)),))
        for key in ("seed", "epochs"):
            if (value := getattr(args, key)) is not None:
                chosen = replace(chosen, train=replace(chosen.train, **{key: value}))
    else:
        if args.stage1 is not None:
            parser.error("--stage1 goes with --data; a recipe names its model itself")
        # Of both limits of stage 2, not of the bundle's.
        chosen = _chosen(argparse.Namespace(**(vars(args) | {"method": None})), parser)
    out = args.out or Path("models") / chosen.name
    pictures = args.plots or Path("out") / chosen.name
    for folder in (out.parent, pictures):
        _make(folder)
    truths: Mapping[str, Truth] | Sequence[Span] | None = None
    if args.labels:
        truths = read_spans(args.labels) if is_spans(args.labels) else read_labels(args.labels)
    with _progress() as progress:
        result = staged.staged(
            chosen, out, method=args.method, folds=args.folds, truths=truths, progress=progress
        )
    for name, png in report.images(result.last.bundle).items():
        (pictures / f"{name}.png").write_bytes(png)
    (pictures / "pseudo-labels.png").write_bytes(
        plots.pseudo_labels(result.scores, result.groups, result.limits)
    )
    warnings = [text for text in (result.limits.note, *result.first.warnings, *result.last.warnings) if text]
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    limit = result.last.manifest.threshold
    summary = {
        "bundle": str(out),
        "stage1": str(result.first.bundle.path),
        "version": result.last.manifest.version,
        "quantization": result.last.manifest.quantization.type,
        "windows": len(result.scores),
        "pseudo_normal": result.count(staged.NORMAL),
        "uncertain": result.count(staged.UNCERTAIN),
        "pseudo_anomalous": result.count(staged.ANOMALOUS),
        "real_labels": int(result.real.sum()),
        "limits": {
            "method": args.method,
            "low": round(result.limits.low, 6),
            "high": round(result.limits.high, 6),
        },
        "threshold": round(limit.value, 6),
        "validation_f1": result.last.manifest.training["figures"].get("validation_f1"),
        "warnings": warnings,
        "plots": str(pictures),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        print(
            f"{out}: classifier {summary['quantization']}, limit {limit.value:.3g}; of {counted(len(result.scores), 'window')} "
            f"{summary['pseudo_normal']} pseudo-normal, {summary['uncertain']} uncertain, {summary['pseudo_anomalous']} "
            f"pseudo-anomalous; stage 1 in {summary['stage1']}; look at {pictures / 'pseudo-labels.png'}"
        )
    return OK


def _fit(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    chosen = _chosen(args, parser)
    out = args.out or Path("models") / chosen.name
    pictures = args.plots or Path("out") / chosen.name
    # Before minutes of training, not after them.
    for folder in (out.parent, pictures):
        _make(folder)
    from trainer import report
    from trainer.run import run

    with _progress() as progress:
        result = run(chosen, out, progress=progress)
    for name, png in report.images(result.bundle).items():
        (pictures / f"{name}.png").write_bytes(png)
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    manifest = result.manifest
    size = sum(p.stat().st_size for p in out.iterdir())
    # What stopped the training early and the labelled anomalies have shaped the network too.
    learnt = np.concatenate([result.parts.train, result.parts.validation, result.parts.anomalies])
    learnt_on = len(np.unique(result.table.recording[learnt])) if manifest.model != "indicator" else 0
    summary = {
        "bundle": str(out),
        "version": manifest.version,
        "model": manifest.model,
        "quantization": manifest.quantization.type,
        "bytes": size,
        "threshold": round(manifest.threshold.value, 6),
        "calibration_windows": len(result.scores),
        "recordings": len(result.table.clips),
        "trained_on": learnt_on,
        "channels": manifest.features.n_channels,
        "parity": {k: round(v, 6) for k, v in manifest.quantization.parity.items()},
        "warnings": list(result.warnings),
        "plots": str(pictures),
    }
    if args.json:
        print(json.dumps(summary))
    else:
        limit = manifest.threshold
        kind = manifest.model + (
            f" {manifest.quantization.type}" if manifest.quantization.type != "none" else ""
        )
        trained = f"trained on {learnt_on} of " if manifest.model != "indicator" else ""
        print(
            f"{out}: {kind}, {size / 1000:.0f} kB, limit {limit.value:.3g} ({limit.method}, {limit.false_alarm_rate:g}) "
            f"from {counted(limit.n, 'healthy window')}{' of ' + manifest.classes[0] if manifest.classes else ''}; "
            f"{trained}{counted(len(result.table.clips), 'recording')}, {counted(manifest.features.n_channels, 'channel')}; "
            f"plots in {pictures}"
        )
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
        if not args.data.exists():
            parser.error(f"--data {args.data} does not exist")
        fallback = f"{re.sub(r'[^a-z0-9_-]+', '-', args.data.stem.lower())}-{args.model.replace('_', '-')}"
        name = args.out.name if args.out is not None else fallback
        mapping = recipe.default_mapping(name, args.model, args.data, args.fs)
        if args.channel is not None:
            mapping["data"]["channels"] = args.channel
        chosen = recipe.parse(mapping)
    if args.method is not None:
        chosen = replace(chosen, threshold=replace(chosen.threshold, method=args.method))
    if args.false_alarm_rate is not None:
        if not 1e-6 <= args.false_alarm_rate <= 0.5:
            parser.error(
                f"--false-alarm-rate is {args.false_alarm_rate:g}; expected 1e-6 to 0.5, a share of windows"
            )
        chosen = replace(chosen, threshold=replace(chosen.threshold, false_alarm_rate=args.false_alarm_rate))
    if args.seed is not None:
        chosen = replace(chosen, train=replace(chosen.train, seed=args.seed))
    if args.epochs is not None:
        chosen = replace(chosen, train=replace(chosen.train, epochs=args.epochs))
    return chosen


def _evaluate(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from trainer.evaluate import evaluate
    from trainer.labels import read_labels

    labels = read_labels(args.labels) if args.labels else None
    result = evaluate(args.bundle, _recordings(args), labels=labels, healthy=_healthy(args))
    _say_unlabelled(result)
    if args.json:
        print(json.dumps(result))
        return OK
    for line in told(result):
        print(line)
    return OK


def _say_unlabelled(result: Mapping[str, Any]) -> None:
    if n := result["unlabelled"]:
        print(
            f"{counted(n, 'recording')} carr{'ies' if n == 1 else 'y'} no label: put normal or anomaly into the file or "
            "folder name, or give --labels CSV with columns file,label[,onset][,group] where label is normal or anomaly",
            file=sys.stderr,
        )
    if n := result["left_out"]:
        print(f"{counted(n, 'recording')} to learn from: not judged", file=sys.stderr)


def _make(folder: Path) -> None:
    """Create a folder to write into; an OSError names the path where that cannot be."""
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "is not writable", str(folder))


def _report(args: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    from trainer import report
    from trainer.evaluate import score_labelled, summary
    from trainer.labels import read_labels

    _make(args.output.parent)
    scored: list[Any] = []
    figures = None
    if args.data is not None:
        labels = read_labels(args.labels) if args.labels else None
        judged = score_labelled(args.bundle, _recordings(args), labels, _healthy(args))
        figures = summary(args.bundle, judged, labels)
        _say_unlabelled(figures)
        scored = judged.every
    args.output.write_text(report.page(args.bundle, scored, figures), encoding="utf-8")
    print(f"{args.output}: {args.output.stat().st_size / 1000:.0f} kB")
    return OK


def _recordings(args: argparse.Namespace, path: Path | None = None) -> Iterator[Any]:
    from trainer import data

    channels = None if args.channel is None else tuple(args.channel)
    return data.recordings(Source(path or args.data, args.fs, channels, args.machine))


def _healthy(args: argparse.Namespace) -> Iterator[Any] | None:
    return None if args.baselines is None else _recordings(args, args.baselines)


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
