"""`edge-agent`: thin calls into the library. Results go to stdout, messages to stderr.

Exit codes: 0 well, 1 failed, 2 usage, 3 an alarm is active (`status`), 78 bad configuration.
Each command imports what it needs when it is called: a small board starts the agent in a second.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from edge_agent import __version__
from edge_agent.errors import ConfigError, EdgeAgentError, TransportError

if TYPE_CHECKING:
    from edge_agent.config import Config

WELL, FAILED, USAGE, ALARM_ACTIVE, BAD_CONFIG = 0, 1, 2, 3, 78

_NOTHING_YET = "no scores yet; the agent commits every 5 s"

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        if args[:1] == ["simulate"]:
            from edge_agent import simulate_files

            return simulate_files.main(args[1:], prog="edge-agent simulate")
        parsed = _parser().parse_args(args)
    except SystemExit as stop:  # argparse has said why
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = parsed.run
    try:
        code = run(parsed)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        _say(str(error))
        return BAD_CONFIG
    except EdgeAgentError as error:
        _say(str(error))
        return FAILED
    except BrokenPipeError:
        # The reader (`| head`) has seen enough. Python flushes stdout at exit and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return WELL
    except KeyboardInterrupt:
        return FAILED


def duration(text: str) -> float:
    """Seconds of `90`, `60s`, `30m`, `8h`, `2d`; ValueError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r}; expected seconds, or a number with s, m, h or d, such as 8h")
    return float(match[1]) * _UNITS[match[2]]


# -- commands ------------------------------------------------------------------------------------------


def _run(a: argparse.Namespace) -> int:
    from edge_agent import daemon

    return daemon.run(a.config)


def _check(a: argparse.Namespace) -> int:
    from edge_agent.assemble import assemble, load

    config = load(a.config)
    pipelines = assemble(config)
    for name, pipeline in pipelines.items():
        if pipeline.threshold.warning:
            _say(f"{a.config}: sensors.{name}: note: {pipeline.threshold.warning}")
    bundles = {p.identity.sha256 for p in pipelines.values()}
    if not a.json:
        # Before the broker is tried: whether the file is well does not hang on it.
        print(
            f"{a.config}: well: {_count(len(pipelines), 'sensor')}, {_count(len(bundles), 'bundle')}", flush=True
        )
    broker, problem = f"{config.mqtt.host}:{config.mqtt.port}", None
    if a.connect:
        from edge_agent import transport

        try:
            transport.probe(config.mqtt)
        except TransportError as error:
            problem = str(error)
            _say(problem)
        else:
            if not a.json:
                print(f"broker {broker}: answers")
    if a.json:
        verdict = {"ok": problem is None, "path": str(a.config), "sensors": sorted(pipelines)}
        verdict |= {"bundles": sorted(bundles), "broker": broker if a.connect else None}
        _line(verdict if problem is None else {**verdict, "error": problem})
    return WELL if problem is None else FAILED


def _replay(a: argparse.Namespace) -> int:
    from edge_agent import replay
    from edge_agent.config import load

    config = load(a.config)
    _known_sensor(config, a.sensor)
    result = replay.replay(config, a.sensor, a.path, a.channel, a.speed, _progress())
    if a.json:
        _line(result)
    else:
        print(", ".join(f"{key} {_cell(value)}" for key, value in result.items()))
    return WELL


def _capture(a: argparse.Namespace) -> int:
    from edge_agent import replay
    from edge_agent.config import load

    config = load(a.config)
    _known_sensor(config, a.sensor)
    n = replay.capture(config, a.sensor, a.out, a.for_s)
    if a.json:
        _line({"sensor": a.sensor, "path": str(a.out), "messages": n})
    else:
        print(f"{a.out}: {_count(n, 'message')} of {a.sensor}")
    return WELL if n else FAILED


def _score(a: argparse.Namespace) -> int:
    from edge_agent import bundle as bundles
    from edge_agent import offline
    from edge_agent.pipeline import score_fields
    from edge_agent.recordings import Ask, open_recordings

    bundle = bundles.load(a.bundle, a.machine)
    ask = Ask(a.fs, None if a.channel is None else (a.channel,))
    columns = _Columns(ts=24, start=24, seq=7, score=12, threshold=12, ratio=9, quality=8, reasons=14, recording=0)
    rows = 0
    for recording in open_recordings(a.path, ask):
        before = rows
        for m in offline.score_recording(bundle, recording):
            rows += 1
            _row(a.json, columns, {**score_fields(m), "recording": recording.name})
        if rows == before:
            n = bundle.manifest.features.n_samples
            _say(f"{recording.path}: {recording.name}: no window in it; one takes {n} samples without a gap")
    if not rows:
        _say(f"{a.path}: nothing was scored")
    return WELL if rows else FAILED


def _status(a: argparse.Namespace) -> int:
    from edge_agent import queries, replay, store

    config = _offline_config(a)
    found, running = queries.status(config.database, list(config.sensors)), store.in_use(config.database)
    for row in found:
        sensor = config.sensors[row["sensor"]]
        row["note"] = _note(row, sensor.silent_after_s + replay.window_s(sensor) if running else None)
    noted = {"note": 0} if any(row["note"] for row in found) else {}
    columns = _Columns(sensor=20, state=8, severity=9, since=24, shelved_until=24, ratio=9, ts=24, quality=8, **noted)
    for row in found:
        _row(a.json, columns, row, alert=row["active"])
    if not any(row["ts"] for row in found):
        _say(_NOTHING_YET)
    elif not running:
        _say("no agent is running with this database: that is how it was when it ended (edge-agent doctor)")
    return ALARM_ACTIVE if any(row["active"] for row in found) else WELL


def _note(row: dict[str, Any], silent_after_s: float | None) -> str | None:
    """Why a sensor may say less than its row looks like; None where nothing stands against it.

    silent_after_s : with the time of a window, at whose end a state is stored; None where no agent runs, and all are silent
    """
    from edge_agent import commissioning, keeper, regimes
    from edge_agent.signals import parse_time

    notes = []
    if silent_after_s is not None and row["heard"] is not None:
        silent_s = time.time() - parse_time(row["heard"])
        if silent_s > silent_after_s + keeper.COMMIT_S:
            notes.append(f"nothing usable for {silent_s:.0f} s" if silent_s < 600.0 else f"nothing usable since {row['heard']}")
    if row["quality_alarm"] is not None:
        notes.append("trouble: " + ", ".join(row["quality_alarm"]["reasons"]))
    if row["regime"] == regimes.UNKNOWN:
        notes.append("unknown regime, not voted on")
    c = row["commissioning"]
    if c["phase"] in commissioning.ACTIVE:
        notes.append(f"{c['phase']} {c['percent']} %")
    return "; ".join(notes) or None


def _alarms(a: argparse.Namespace) -> int:
    from edge_agent import queries

    config = _offline_config(a)
    if a.summary:
        return _summary(a, config)
    if a.notices:
        return _notices(a, config)
    columns = _Columns(alarm_id=26, sensor=20, severity=8, state=8, since=24, ended=24, events=6, verdict=0)
    found = queries.alarms(config.database, a.sensor, a.limit, a.since)
    for row in found:
        _row(a.json, columns, row, alert=row["state"] in queries.ACTIVE)
    if not found:
        _say("no alarms" if a.sensor is None else f"no alarms of {a.sensor}")
    return WELL


def _notices(a: argparse.Namespace, config: Config) -> int:
    from edge_agent import queries

    columns = _Columns(ts=24, sensor=20, type=7, kind=13, text=0)
    found = queries.beside(config.database, a.sensor, a.limit, a.since)
    for row in found:
        _row(a.json, columns, row)
    if not found:
        _say("no sensor trouble and no notices")
    return WELL


def _summary(a: argparse.Namespace, config: Config) -> int:
    from edge_agent import summary

    sensors = list(config.sensors) if a.sensor is None else [a.sensor]
    s = summary.summary(config.database, sensors, _moment("30d") if a.since is None else a.since)
    if a.json:
        _line(s)
        return WELL
    if s["days"] is None:
        _say(_NOTHING_YET)
        return WELL
    rate = f"{s['alarms_per_day']:g} a day" if s["alarms_per_day"] is not None else "less than a day: no rate"
    judged = s["verdicts"]
    hours = s["days"] * 24
    span = f"{s['days']:.3g} days" if hours >= 24 else f"{hours:.2g} h" if hours >= 1 else f"{hours * 60:.2g} min"
    print(f"{s['since']} to {s['until']}, {span}: {_count(s['alarms'], 'alarm')}, {rate}")
    print(f"at most {s['peak_10_min']} in 10 minutes, {_count(s['floods'], 'flood')} (more than {summary.FLOOD} in 10 minutes)")
    print(f"chattering: {_count(s['chattering'], 'sensor')}")
    print(f"now: {s['standing']} standing, {s['unacknowledged']} of them not acknowledged, {s['latched']} latched, {s['stale']} stale (a day or longer); "
          f"{s['shelved']} shelved")  # fmt: skip
    print(f"judged by people (one raised again counts once here): {judged['true']} true, {judged['false']} false, {judged['none']} not yet")
    columns = _Columns(sensor=20, alarms=7, alarms_per_day=14, share=6, chattering=10, stale=6, false=0)
    for row in s["sensors"]:
        columns.print({**row, "stale": "yes" if row["stale"] else "no"}, alert=row["stale"])
    return WELL


def _history(a: argparse.Namespace) -> int:
    from edge_agent import queries

    config = _offline_config(a)
    columns = _Columns(sensor=20, ts=24, start=24, seq=7, score=12, threshold=12, ratio=9, quality=8, reasons=0)
    found = False
    for row in queries.history(config.database, a.sensor, a.since, a.until, a.limit):
        found = True
        _row(a.json, columns, row)
    if not found:
        asked = a.sensor is not None or a.since is not None or a.until is not None
        _say("no scores of this sensor and time" if asked else _NOTHING_YET)
    return WELL


def _what_if(a: argparse.Namespace) -> int:
    from edge_agent import what_if
    from edge_agent.assemble import assemble
    from edge_agent.config import load

    config = _offline_config(a)
    settings = assemble(config)
    chosen = settings if a.sensor is None else {a.sensor: settings[a.sensor]}
    against = None if a.against is None else assemble(load(a.against, secrets=False))
    columns = _Columns(sensor=20, change=10, began=24, ended=24, severity=8, before=0)
    refused = False
    for answer in what_if.ask(config.database, chosen, a.since, a.until, against):
        refused |= answer.refused is not None
        if a.json:
            _line(answer.fields())
            continue
        if answer.refused is not None:
            _say(answer.summary())
            continue
        print(answer.summary())
        for row in answer.rows():
            columns.print({"sensor": answer.sensor, **row}, alert=False)
    return FAILED if refused else WELL


def _export(a: argparse.Namespace) -> int:
    from edge_agent import queries

    config = _offline_config(a)
    out: TextIO = sys.stdout if a.out is None else _writable(a.out)
    try:
        if a.alarm is not None:
            _line(queries.alarm(config.database, a.alarm), out)
            return WELL
        if a.labels:
            found = queries.labels(config.database, a.sensor)
            for label in found if a.json or a.format == "json" else ():
                _line(label, out)
            if not (a.json or a.format == "json"):
                _csv(found, out, ("sensor", "t_start", "t_end", "label"))
            if not found:
                _say("no verdicts yet: edge-agent verdict ALARM_ID true|false")
            return WELL
        rows = queries.history(config.database, a.sensor, a.since, a.until)
        if a.json or a.format == "json":
            for row in rows:
                _line(row, out)
        else:
            _csv(rows, out)
    finally:
        if a.out is not None:
            out.close()
    return WELL


def _command(a: argparse.Namespace) -> int:
    from edge_agent import remote
    from edge_agent.config import load

    config = load(a.config)
    _known_sensor(config, a.sensor)
    more = {key: getattr(a, key) for key in ("action", "windows", "healthy") if getattr(a, key, None) is not None}
    return _answered(a, remote.command(config, a.command, a.sensor, a.by, a.why, getattr(a, "for_s", None), **more))


def _reload(a: argparse.Namespace) -> int:
    from edge_agent import remote
    from edge_agent.config import load

    # What is wrong with the file is said here, line by line, and not by the agent.
    return _answered(a, remote.command(load(a.config), "reload", None, None, None, None))


def _verdict(a: argparse.Namespace) -> int:
    from edge_agent import remote
    from edge_agent.config import load

    config = load(a.config)
    what = {"alarm_id": a.alarm_id, "verdict": a.verdict}
    return _answered(a, remote.command(config, "verdict", None, a.by, a.why, None, **what))


def _answered(a: argparse.Namespace, answer: tuple[bool, str]) -> int:
    ok, message = answer
    if a.json:
        _line({"ok": ok, "message": message})
    elif ok:
        print(message)
    if not ok:
        _say(message)
    return WELL if ok else FAILED


def _bundle_list(a: argparse.Namespace) -> int:
    from edge_agent import bundle_commands
    from edge_agent.config import load

    found = bundle_commands.listing(load(a.config, secrets=False))
    columns = _Columns(bundle=36, sha256=14, signature=12, sensors=20, shadow=0)
    beside = _Columns(
        bundle=36, sensor=20, compared=8, agree=8, live_over=9, shadow_over=11, live_alarms=11, shadow_alarms=0
    )
    for row in found:
        shown = row if a.json else {**row, "sha256": row["sha256"] and row["sha256"][:12]}
        _row(a.json, columns, shown, alert=row["problem"] is not None)
        if row["problem"] is not None:
            _say(row["problem"])
    if not a.json and any(row["comparisons"] for row in found):
        print()
        for row in found:
            for comparison in row["comparisons"]:
                beside.print({"bundle": row["bundle"], **comparison}, alert=False)
    return FAILED if any(row["problem"] is not None for row in found) else WELL


def _bundle_verify(a: argparse.Namespace) -> int:
    from edge_agent import bundle_commands, installed
    from edge_agent.config import load

    key, source = a.key, a.bundle
    alone = Path(source).exists() and a.config == Path("config.yaml") and not a.config.exists()
    if not alone and (key is None or not Path(source).exists()):
        config = load(a.config, secrets=False)
        key = key or next(iter(config.sensors.values())).public_key
        if not Path(source).exists():
            store = bundle_commands.store_of(config)
            source = store / installed.find(store, source)
    bundle = bundle_commands.verify(Path(source), bundle_commands.verifier_of(key))
    m = bundle.manifest
    if a.json:
        _line({"ok": True, "path": str(bundle.path), "name": m.name, "version": m.version, "sha256": bundle.sha256,
               "signature": "not checked" if key is None else "good"})  # fmt: skip
    else:
        signed = "signature not checked (no public key)" if key is None else "signature good"
        print(f"{bundle.path}: {m.name} {m.version}: {signed}, files as hashed, golden windows score as they should")
    return WELL


def _bundle_install(a: argparse.Namespace) -> int:
    from edge_agent import bundle_commands
    from edge_agent.config import load

    label, bundle, new = bundle_commands.install(load(a.config, secrets=False), a.path)
    if a.json:
        _line({"bundle": label, "path": str(bundle.path), "sha256": bundle.sha256, "new": new})
    else:
        print(f"{label}: {'installed' if new else 'was installed already'} in {bundle.path}")
    return WELL


def _bundle_change(a: argparse.Namespace) -> int:
    from edge_agent import bundle_commands
    from edge_agent.config import load

    config = load(a.config)
    _known_sensor(config, a.sensor)
    if a.what == "activate":
        ok, message = bundle_commands.activate(config, a.sensor, a.bundle, shadow=a.shadow)
    else:
        ok, message = bundle_commands.rollback(config, a.sensor, shadow=a.shadow)
    return _answered(a, (ok, message))


def _doctor(a: argparse.Namespace) -> int:
    from edge_agent import doctor

    columns = _Columns(verdict=7, check=22, found=0)
    wrong = False
    for check in doctor.examine(a.config, a.for_s):
        wrong = wrong or check.verdict == doctor.WRONG
        _row(a.json, columns, doctor.as_dict(check), alert=check.verdict == doctor.WRONG)
        if check.do and not a.json:
            print(f"{'':9}-> {check.do}")
        sys.stdout.flush()
    return FAILED if wrong else WELL


def _support(a: argparse.Namespace) -> int:
    from edge_agent import support

    path, sizes = support.write(a.config, a.out, listen_s=a.for_s, log=a.log)
    if a.json:
        _line({"path": str(path), "bytes": path.stat().st_size, "files": sizes})
    else:
        print(f"{path}: {path.stat().st_size} bytes, {_count(len(sizes), 'file')}; look through it before you give it away")
    return WELL


def _demo(a: argparse.Namespace) -> int:
    from edge_agent import demo

    return demo.main(a.port, a.no_fault, a.seconds, a.json, stay=a.stay)


def _completion(a: argparse.Namespace) -> int:
    from edge_agent import completion

    print(completion.bash(_parser()), end="")
    return WELL


# -- what they share -----------------------------------------------------------------------------------


class _Columns:
    """Aligned columns for people: name=width, a heading before the first line."""

    def __init__(self, **widths: int) -> None:
        self.widths = widths
        self._headed = False

    def print(self, row: Mapping[str, Any], alert: bool) -> None:
        if not self._headed:
            print(self._join({name: name for name in self.widths}))
            self._headed = True
        text = self._join(row)
        colour = alert and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print(f"\x1b[31m{text}\x1b[0m" if colour else text)

    def _join(self, row: Mapping[str, Any]) -> str:
        return "  ".join(_cell(row[name]).ljust(width) for name, width in self.widths.items()).rstrip()


def _row(json: bool, columns: _Columns, row: Mapping[str, Any], alert: bool = False) -> None:
    if json:
        _line(row)
    else:
        columns.print(row, alert)


def _line(value: Mapping[str, Any], out: TextIO | None = None) -> None:
    """One JSON line. msgspec writes no NaN or Infinity: they would become null."""
    import msgspec

    print(msgspec.json.encode(value).decode(), file=out or sys.stdout)


_SCORE_COLUMNS = ("sensor", "ts", "start", "seq", "score", "threshold", "ratio", "quality", "reasons", "regime")


def _csv(rows: Iterable[Mapping[str, Any]], out: TextIO, columns: Sequence[str] = _SCORE_COLUMNS) -> None:
    import csv

    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ",".join(value) or "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _count(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


def _say(message: str) -> None:
    print(message, file=sys.stderr)



def _offline_config(a: argparse.Namespace) -> Config:
    """The configuration for a command that only reads the database: it needs no password."""
    from edge_agent.config import load

    config = load(a.config, secrets=False)
    if getattr(a, "sensor", None) is not None:
        _known_sensor(config, a.sensor)
    return config


def _known_sensor(config: Config, sensor: str) -> None:
    if sensor not in config.sensors:
        near = difflib.get_close_matches(sensor, config.sensors, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(config.sensors)}"
        raise EdgeAgentError(f"{config.path}: has no sensor {sensor!r}; {hint}")


def _writable(path: Path) -> TextIO:
    try:
        return path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise EdgeAgentError(
            f"{path}: cannot be written ({error.strerror}): name another file with -o"
        ) from None


def _progress() -> Callable[[str], None] | None:
    """Writes over one line of the terminal; None where stderr is none."""
    if not sys.stderr.isatty():
        return None
    return lambda text: print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# -- the parser ----------------------------------------------------------------------------------------


def _argument(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse hides the text of a ValueError; this keeps it."""

    def convert(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def _moment(text: str) -> str:
    """A time as the database writes it, from RFC 3339 or from a duration before now."""
    from edge_agent.signals import parse_time, rfc3339

    try:
        return rfc3339(time.time() - duration(text))
    except ValueError:
        pass
    try:
        return rfc3339(parse_time(text))
    except ValueError:
        raise ValueError(
            f"{text!r}; expected a time before now (90, 30m, 8h, 7d) or RFC 3339 such as 2026-11-22T03:53:10Z"
        ) from None


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise ValueError(f"{text!r}; expected max, or a number above 0 (1 is real time)")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Watch machines on the device itself: waveforms in over MQTT, alarms out.",
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(
        name: str,
        run: Callable[[argparse.Namespace], int],
        help_text: str,
        *,
        config: bool = True,
        json: bool = True,
    ) -> argparse.ArgumentParser:
        p = commands.add_parser(name, help=help_text, description=help_text)
        p.set_defaults(run=run, command=name)
        if config:
            p.add_argument(
                "-c", "--config", type=Path, default=Path("config.yaml"), help="configuration (config.yaml)"
            )
        if json:
            p.add_argument("--json", action="store_true", help="JSON Lines on stdout")
        return p

    span, plain = _argument(duration), "a plain number is seconds"
    moment = _argument(_moment)

    add("run", _run, "run the agent until SIGTERM", json=False)

    p = add("check", _check, "check configuration and bundles, print every mistake")
    p.add_argument("--connect", action="store_true", help="the broker too")

    p = add("replay", _replay, "publish a recording to a sensor's topic")
    p.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    p.add_argument("--sensor", required=True, metavar="ID", help="the sensor whose messages it becomes")
    p.add_argument("--channel", type=int, metavar="N", help="channel of the recording")
    p.add_argument(
        "--speed", type=_argument(_speed), default=1.0, metavar="N|max", help="times real time (1); max: as fast as it is scored"
    )

    p = add("score", _score, "score a recording offline, one line a window", config=False)
    p.add_argument("path", type=Path, metavar="PATH", help="file or folder")
    p.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the model: a folder under models/")
    p.add_argument("--fs", type=float, metavar="HZ", help="sampling rate, for files that state none")
    p.add_argument("--channel", type=int, metavar="N", help="channel of the recording")
    p.add_argument("--machine", metavar="ID", help="the machine, for bundles that know several")

    p = add("capture", _capture, "record live messages to a file")
    p.add_argument("--sensor", required=True, metavar="ID", help="the sensor to listen to")
    p.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="ends in .capture")
    p.add_argument("--for", dest="for_s", type=span, metavar="TIME", help=f"for so long: 60s, 5m ({plain}); else until Ctrl-C")

    add("status", _status, "the sensors as the database has them; exit code 3 while an alarm is active")

    p = add("alarms", _alarms, "alarms, newest first")
    p.add_argument("--sensor", metavar="ID", help="of this sensor only")
    p.add_argument("--limit", type=int, default=100, metavar="N", help="the newest N (100)")
    p.add_argument(
        "--since", type=moment, metavar="TIME", help=f"on then or later: RFC 3339, or before now: 8h, 30m ({plain}); with --summary 30d"
    )
    p.add_argument("--summary", action="store_true", help="alarms per day, floods, chattering, stale, the ten worst sensors")
    p.add_argument("--notices", action="store_true", help="what was told beside: sensor trouble, commissioning, drift, unknown regimes")

    p = add("history", _history, "scores, oldest first")
    p.add_argument("--limit", type=int, default=100, metavar="N", help="the newest N (100)")
    e = add("export", _export, "all scores as CSV or JSON, or one alarm with its events")
    e.add_argument("--alarm", metavar="ID", help="one alarm as one JSON object")
    e.add_argument("--labels", action="store_true", help="verdicts as labels to learn from: sensor,t_start,t_end,label")
    e.add_argument("--format", choices=("csv", "json"), default="csv", help="csv; json: JSON Lines, as --json")
    e.add_argument("-o", "--out", type=Path, metavar="FILE", help="instead of stdout")
    w = add("what-if", _what_if, "what other alarm settings would have told: stored scores replayed")
    w.add_argument("--against", type=Path, metavar="FILE", help="compare with these settings, not with what was told")
    for q in (p, e, w):
        q.add_argument("--sensor", metavar="ID", help="of this sensor only")
        when = f"RFC 3339, or before now: 8h, 30m ({plain})"
        q.add_argument(
            "--since", type=moment, default="30d" if q is w else None, metavar="TIME", help=f"from then on: {when}"
        )
        q.add_argument("--until", type=moment, metavar="TIME", help=f"until then: {when}")

    for name, what in (
        ("ack", "acknowledge a sensor's alarm: it was seen"),
        ("reset", "clear a latched alarm: it was dealt with"),
        ("shelve", "silence a sensor for a time"),
        ("unshelve", "end the silence"),
        ("commission", "learn what is normal for a sensor's machine, on the device"),
    ):
        p = add(name, _command, what)
        p.add_argument("sensor", metavar="SENSOR", help="its id in the configuration")
        if name == "shelve":
            p.add_argument(
                "--for", dest="for_s", type=span, required=True, metavar="TIME", help=f"for so long: 8h, 2d ({plain})"
            )
        if name == "commission":
            p.add_argument("--for", dest="for_s", type=span, metavar="TIME", help=f"learn and verify so long at least: 24h ({plain})")
            p.add_argument("--windows", type=int, metavar="N", help="so many windows at least (300)")
            p.add_argument(
                "--healthy", action="store_true", default=None, help="the machine is known to be in order, whatever the bundle says"
            )
            p.set_defaults(action="start")
            what_else = p.add_mutually_exclusive_group()
            for action, does in (("cancel", "give up the one that runs"), ("rollback", "back to what acted before the last one")):
                what_else.add_argument(f"--{action}", dest="action", action="store_const", const=action, default="start", help=does)
        p.add_argument("--by", metavar="NAME", help="who says so")
        p.add_argument("--why", metavar="TEXT", help="and why")

    add("reload", _reload, "have the running agent read its configuration again")

    p = add("verdict", _verdict, "say whether an alarm was true or false")
    p.add_argument("alarm_id", metavar="ALARM_ID", help="as `edge-agent alarms` shows it")
    p.add_argument("verdict", choices=("true", "false"), help="true: there was a fault; false: there was none")
    p.add_argument("--by", metavar="NAME", help="who says so")
    p.add_argument("--why", metavar="TEXT", help="and why")

    _add_bundle(commands)

    for name, run, what in (
        ("doctor", _doctor, "what is wrong around the agent, and what to do; exit code 1 where something is"),
        ("support", _support, "an archive for whoever helps, without secrets"),
    ):
        p = add(name, run, what)
        p.add_argument("--for", dest="for_s", type=span, default=10.0, metavar="TIME", help=f"listen to the sensors so long: 10s, 5m ({plain})")
    p.add_argument("-o", "--out", type=Path, metavar="FILE", help="the archive (edge-agent-support-TIME.tar.gz)")
    p.add_argument("--log", type=Path, metavar="FILE", help="the agent's log (systemd's journal of edge-agent)")

    p = add("demo", _demo, "broker, simulated machine and agent in one; ends by itself", config=False)
    p.add_argument("--port", type=int, metavar="N", help="where the broker listens (a free one)")
    p.add_argument("--no-fault", action="store_true", help="the machine stays healthy")
    p.add_argument("--seconds", type=float, metavar="N", help="give up after so many seconds")
    p.add_argument("--stay", action="store_true", help="go on after the alarm, so that it can be acknowledged from another terminal; Ctrl-C ends it")

    add("completion", _completion, "print the completion script for bash", config=False, json=False)
    commands.add_parser("simulate", help="write simulated recordings: sound, vibration, life")
    return parser


def _add_bundle(commands: Any) -> None:
    group = commands.add_parser(
        "bundle",
        help="install bundles, try them beside, activate them, go back",
        description="Bundles installed beside the database, and which of them each sensor uses (docs/security.md).",
    )
    actions = group.add_subparsers(metavar="ACTION", required=True, help="what to do with bundles")

    def add(name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        p: argparse.ArgumentParser = actions.add_parser(name, help=help_text, description=help_text)
        p.set_defaults(run=run, what=name)
        p.add_argument("-c", "--config", type=Path, default=Path("config.yaml"), help="configuration (config.yaml)")
        p.add_argument("--json", action="store_true", help="JSON Lines on stdout")
        return p

    add("list", _bundle_list, "what is installed, what each sensor uses, how shadow runs compare")
    p = add("verify", _bundle_verify, "signature, hashes and golden windows, on this machine")
    p.add_argument("bundle", metavar="PATH|NAME[/VERSION]", help="a folder, an archive, or an installed bundle")
    p.add_argument("--key", type=Path, metavar="FILE", help="public key (the configuration's bundles.public_key)")
    p = add("install", _bundle_install, "verify a bundle and copy it beside the database")
    p.add_argument("path", type=Path, metavar="PATH", help="a folder, .tar, .tar.gz or .zip")
    p = add("activate", _bundle_change, "have a sensor use an installed bundle")
    p.add_argument("sensor", metavar="SENSOR", help="its id in the configuration")
    p.add_argument("bundle", metavar="NAME[/VERSION]", help="an installed bundle")
    p.add_argument("--shadow", action="store_true", help="only score it beside: rows in shadow_scores, no alarms")
    p = add("rollback", _bundle_change, "go back to the bundle that the sensor used before")
    p.add_argument("sensor", metavar="SENSOR", help="its id in the configuration")
    p.add_argument("--shadow", action="store_true", help="only end the shadow run")
