"""`make arm64` and `make oldest`: the agent on another processor and under the oldest Python, beside this machine.

    arm64    a fresh Debian 12 for aarch64 in which every program runs under qemu-user
    oldest   an environment of the lowest Python that setup.cfg names

In each: the tests of the core, the golden windows of every bundle, the same windows at other levels and with noise scored there
and here, and the agent live through a broker until an alarm; its rows are compared with those of the agent here.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks import _agent, _scores
from benchmarks._data import ROOT
from benchmarks._report import say, write_section
from benchmarks.bounds import ELSEWHERE
from deploy.deb import roots
from deploy.deb.roots import Target, UnreachableError
from edge_agent.simulate import demo_machine, growing
from edge_agent.simulate_files import write_vibration

PAGE = ROOT / "docs" / "install.md"
#: What the tests of the core need beside the agent.
TEST_TOOLS = ("pytest>=8", "pytest-timeout>=2.2", "hypothesis>=6.90", "scikit-learn>=1.3", "soundfile>=0.12")
#: Pure functions, above the line in docs/architecture.md; those that simulate hours are left out: in emulation they would take hours.
CORE_TESTS = (
    "alarms", "bearings", "features_envelope", "features_house", "features_image3", "features_raw", "features_spectral",
    "features_time_domain", "features_vector1200", "fft", "packing", "payloads", "pipeline", "scoring", "signals", "thresholds",
    "windowing",
)  # fmt: skip
#: Folders and files that are copied there; the trainer is not among them.
CODE = ("edge_agent", "tests", "models", "benchmarks", "examples", "config.yaml", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
#: Seconds of the demo machine that are sent live; its bearing begins to fail half-way.
LIVE_S, ONSET_S = 40.0, 20.0


@dataclass
class Place:
    """Where it runs: how to start a command there, and where a folder of the host is seen from there."""

    name: str
    root: roots.Root | None
    python: str
    code: str
    scratch: Path
    patience_s: float

    def command(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        """What to start on the host."""
        own = {"PYTHONPATH": self.code, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        inner = ["env", "-C", self.code, *(f"{k}={v}" for k, v in own.items()), *argv]
        return inner if self.root is None else self.root.command(inner)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """To its end."""
        env = None if self.root is None else roots.environment()
        done = subprocess.run(self.command(argv), capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            say(done.stdout[-3000:] + done.stderr[-3000:])
            raise RuntimeError(f"{self.name}: {' '.join(argv)}: exit code {done.returncode}")
        return done

    def seen(self, path: Path) -> str:
        """A path below scratch as the other side names it."""
        return str(path) if self.root is None else "/" + str(path.relative_to(self.root.path))


@contextmanager
def arm64() -> Iterator[Place]:
    """A Debian 12 for aarch64 with the agent's requirements and pytest in an environment of its own."""
    target = Target("12", "arm64")
    wanted = [*requirements(), *TEST_TOOLS]

    def install(root: roots.Root) -> None:
        say("installing the agent's requirements on aarch64 (some minutes in emulation) ...")
        root.run(f"python{target.python}", "-m", "venv", "/venv")
        root.run("/venv/bin/python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", *wanted)

    name = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:12]
    with roots.fresh(target, [f"python{target.python}", f"python{target.python}-venv"], (name, install)) as root:
        code = root.inside("/work")
        _copy_code(code)
        scratch = root.inside("/scratch")
        scratch.mkdir()
        yield Place("arm64", root, "/venv/bin/python", "/work", scratch, 600.0)


def requirements() -> list[str]:
    """What setup.cfg asks of a device, with the extra for signed bundles; markers are for pip to judge."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"] + parser["options.extras_require"]["signing"]
    return [line for line in lines.splitlines() if line.strip()]


def lowest_python() -> str:
    """3.10 of `python_requires = >=3.10`."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    found = re.fullmatch(r">=\s*(3\.\d+)", parser["options"]["python_requires"])
    if found is None:
        raise ValueError(f"setup.cfg: python_requires is {parser['options']['python_requires']!r}; expected >=3.N")
    return found[1]


def find_python(version: str) -> str:
    """A program of this version, from PATH or pyenv; UnreachableError with what to do."""
    candidates = [shutil.which(f"python{version}"), *sorted(map(str, Path.home().glob(f".pyenv/versions/{version}.*/bin/python")))]
    for candidate in candidates:
        if candidate is None:
            continue
        done = subprocess.run([candidate, "--version"], capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return candidate
    raise UnreachableError(f"no Python {version} here: pyenv install {version}, or apt-get install python{version} where Debian has it")


@contextmanager
def oldest() -> Iterator[Place]:
    """An environment of the lowest Python, outside the repository."""
    version = lowest_python()
    python = find_python(version)
    with tempfile.TemporaryDirectory(prefix="edge-oldest-") as name:
        say(f"installing the agent's requirements for Python {version} ...")
        subprocess.run([python, "-m", "venv", f"{name}/venv"], check=True)
        pip = [f"{name}/venv/bin/python", "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--only-binary=:all:"]
        subprocess.run([*pip, *requirements(), *TEST_TOOLS], check=True, stdout=sys.stderr)
        code, scratch = Path(name) / "work", Path(name) / "scratch"
        _copy_code(code)
        scratch.mkdir()
        yield Place("oldest", None, f"{name}/venv/bin/python", str(code), scratch, 120.0)


def _copy_code(there: Path) -> None:
    there.mkdir()
    for name in CODE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, there / name)


def core_tests(place: Place) -> dict[str, Any]:
    """Run them there; counts, and the last lines where one fails."""
    files = [f"tests/test_{name}.py" for name in CORE_TESTS]
    begin = time.monotonic()
    done = place.run(place.python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=0", *files, check=False)
    counts = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout.splitlines()[-1] if done.stdout else "")}
    if done.returncode:
        say(done.stdout[-4000:] + done.stderr[-2000:])
    return {"files": len(files), **counts, "exit": done.returncode, "seconds": round(time.monotonic() - begin)}


def compare_scores(place: Place, seed: int) -> dict[str, Any]:
    """Golden windows and noisy ones, there and here."""
    windows = _scores.windows_of(ROOT / "models", seed)
    path = place.scratch / "windows.npz"
    np.savez(path, **windows)
    there = json.loads(place.run(place.python, "-m", "benchmarks._scores", f"{place.code}/models", place.seen(path)).stdout.splitlines()[-1])
    here = _scores.scores(ROOT / "models", windows)
    differs, bundles = {}, sorted(windows)
    for name in bundles:
        a, b = np.array(here["ratios"][name]), np.array(there["ratios"][name])  # type: ignore[index]
        # Far above the limit what counts is the relative difference.
        differs[name] = float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(a))))
    for name in bundles:
        say(f"  {name}: golden off by {there['golden'][name]:.2g}, {len(windows[name])} windows differ by at most {differs[name]:.2g}")
    return {
        "bundles": len(bundles), "windows": sum(len(w) for w in windows.values()), "golden": there["golden"], "differs": differs,
        "here": {k: here[k] for k in ("machine", "python", "packages")}, "there": {k: there[k] for k in ("machine", "python", "packages")},
    }  # fmt: skip


def live(place: Place, recording: Path, folder: Path, port: int) -> tuple[dict[int, float], list[str], float]:
    """The agent there with one sensor, until all windows of the recording are rows: (seq -> ratio), event types, seconds to start."""
    config = folder / "config.yaml"
    sensor = {
        "topic": f"plant/{place.name}/waveform", "payload": {"format": "f32le", "header": "ts_seq"}, "fs_hz": 10240, "unit": "g",
        "model": f"{place.code}/models/demo-lstm-ae",
    }  # fmt: skip
    content = {
        "agent": {"id": place.name}, "mqtt": {"host": "127.0.0.1", "port": port}, "database": place.seen(folder / "agent.db"),
        "sensors": {"demo": sensor},
    }  # fmt: skip
    config.write_text(yaml.safe_dump(content))
    begin = time.monotonic()
    log = (folder / "agent.log").open("w+")
    argv = [place.python, "-m", "edge_agent", "run", "-c", place.seen(config)]
    process = subprocess.Popen(
        place.command(argv), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=None if place.root is None else roots.environment()
    )
    try:
        # The agent's database is made after its bundles were verified; its subscription follows at once.
        _wait(lambda: (folder / "agent.db").exists() and _says(log, "connected to"), place.patience_s, process, log)
        started = time.monotonic() - begin
        replay = [place.python, "-m", "edge_agent", "replay", place.seen(recording), "-c", place.seen(config), "--sensor", "demo", "--speed", "max"]
        place.run(*replay)
        expected = int(LIVE_S * 10240) // 8192
        _wait(lambda: len(_rows(folder)) >= expected - 5, place.patience_s, process, log)
        # Rows are committed every 5 s; the last ones at the end.
        _terminate(process, place)
        process.wait(place.patience_s)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        log.close()
    with sqlite3.connect(folder / "agent.db") as db:
        types = [row[0] for row in db.execute("SELECT type FROM events ORDER BY ts")]
    return _rows(folder), types, started


def _says(log: Any, word: str) -> bool:
    log.seek(0)
    return word in log.read()


def _wait(ready: Any, patience_s: float, process: subprocess.Popen[bytes], log: Any) -> None:
    deadline = time.monotonic() + patience_s
    while not ready():
        if time.monotonic() > deadline or process.poll() is not None:
            log.seek(0)
            raise RuntimeError(f"the agent was not ready within {patience_s:g} s (exit code {process.poll()}): {log.read()[-2000:]}")
        time.sleep(0.1)


def _rows(folder: Path) -> dict[int, float]:
    with sqlite3.connect(folder / "agent.db") as db:
        rows = db.execute("SELECT ts, ratio FROM scores WHERE ratio IS NOT NULL ORDER BY ts").fetchall()
    return dict(enumerate(ratio for _, ratio in rows))


def _terminate(process: subprocess.Popen[bytes], place: Place) -> None:
    """SIGTERM to the agent itself: beneath a root it is a child of unshare."""
    if place.root is None:
        process.send_signal(signal.SIGTERM)
        return
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            inside = (entry / "root").resolve() == place.root.path.resolve()
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if inside and b"edge_agent" in words and b"run" in words:
            os.kill(int(entry.name), signal.SIGTERM)
            return
    raise RuntimeError("the agent's process was not found")


def compare_live(place: Place, seed: int) -> dict[str, Any]:
    """The same 40 s there and here; both must raise the alarm."""
    recording = place.scratch / "machine.npz"
    write_vibration(recording, demo_machine(), LIVE_S, growing(ONSET_S, 10.0), seed)
    with ExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-live-"))
        port = stack.enter_context(_agent.broker(Path(name)))
        (place.scratch / "live").mkdir()
        there, told, started = live(place, recording, place.scratch / "live", port)
        (Path(name) / "here").mkdir()
        own = Place("here", None, sys.executable, str(ROOT), Path(name), 120.0)
        here, told_here, _ = live(own, recording, Path(name) / "here", port)
    both = sorted(there.keys() & here.keys())
    a, b = np.array([here[i] for i in both]), np.array([there[i] for i in both])
    return {
        "rows": len(there), "rows_here": len(here), "events": told, "events_here": told_here, "start_s": round(started, 1),
        "largest_ratio": round(float(a.max()), 2), "differs": float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(a)))),
    }  # fmt: skip


def missed(result: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, in words."""
    wrong = []
    tests, scored, lived = result["tests"], result["scores"], result["live"]
    if tests["exit"] or not tests.get("passed"):
        wrong.append(f"tests of the core: {tests}")
    for name, differs in scored["differs"].items():
        if not differs <= ELSEWHERE["differs"]:
            wrong.append(f"{name}: scores differ by {differs:.3g}, at most {ELSEWHERE['differs']}")
    if not lived["differs"] <= ELSEWHERE["differs"]:
        wrong.append(f"live: scores differ by {lived['differs']:.3g}, at most {ELSEWHERE['differs']}")
    if lived["rows"] != lived["rows_here"] or lived["events"] != lived["events_here"] or "new" not in lived["events"]:
        wrong.append(f"live: rows or events are others than here, or none: {lived}")
    return wrong


def table(result: Mapping[str, Any]) -> str:
    """For docs/install.md."""
    there, here = result["scores"]["there"], result["scores"]["here"]
    versions = ", ".join(f"{name} {version}" for name, version in there["packages"].items())
    own = ", ".join(f"{name} {version}" for name, version in here["packages"].items())
    tests, lived = result["tests"], result["live"]
    lines = [
        f"Python {there['python']} on {there['machine']} ({versions}), beside Python {here['python']} on {here['machine']} ({own}): "
        f"{tests['passed']} tests of the core in {tests['files']} files pass ({tests.get('skipped', 0)} skipped); the agent, live, stored "
        f"{lived['rows']} scored windows and the events {', '.join(lived['events'])}, as here; its ratios differ by at most {lived['differs']:.2g}.",
        "",
        "| bundle | golden windows off by | other windows differ by at most |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {off:.2g} | {result['scores']['differs'][name]:.2g} |" for name, off in result["scores"]["golden"].items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of them; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.elsewhere", description=__doc__)
    parser.add_argument("place", choices=("arm64", "oldest"))
    parser.add_argument("--seed", type=int, help="of the windows and the machine (drawn)")
    parser.add_argument("--write", action="store_true", help="put the table into docs/install.md")
    args = parser.parse_args(argv)
    roots.end_tidily()
    seed = secrets.randbelow(2**31) if args.seed is None else args.seed
    say(f"seed {seed}")
    try:
        with {"arm64": arm64, "oldest": oldest}[args.place]() as place:
            result: dict[str, Any] = {"scores": compare_scores(place, seed)}
            result["live"] = compare_live(place, seed)
            say(f"  live: {result['live']}")
            result["tests"] = core_tests(place)
            say(f"  tests of the core: {result['tests']}")
    except UnreachableError as why:
        say(f"left out: {why}")
        print(json.dumps({"name": args.place, "ok": False, "skipped": str(why)}))
        return 77
    wrong = missed(result)
    largest = max([*result["scores"]["differs"].values(), result["live"]["differs"]])
    if args.write and not wrong:
        write_section(args.place, table(result), PAGE)
    print(json.dumps({"name": args.place, "ok": not wrong, "wrong": wrong, "seed": seed, "largest_difference": largest, **result}))
    return 0 if not wrong else 1


if __name__ == "__main__":
    sys.exit(main())
