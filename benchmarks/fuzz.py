"""`make fuzz`: mutated messages, configurations and bundle manifests: each is decoded or refused with a reason.

    tests/corpus, models/*/bundle.json ─► mutant (seed, kind, number) ─► decode | parse ─► well · refused · CRASH · HANG

A crash is any exception but PayloadError, ConfigError, BundleError (and what the other two parsers of the network promise),
an answer that breaks its promise (samples that are not finite, an error without words, a secret in an error), or a message
that decodes and cannot be encoded and decoded again. A hang is an input that takes longer than `bounds.FUZZ["hang_s"]`.
Each mutant hangs on (seed, kind, number) only: `--only KIND/NUMBER` with the printed seed makes it again.

    python -m benchmarks.fuzz [--payloads N] [--configs N] [--manifests N] [--seed N] [--only KIND/NUMBER]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import multiprocessing
import os
import queue
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from benchmarks import _data
from benchmarks.bounds import FUZZ
from edge_agent import bundle, commands, config, payloads, regimes
from edge_agent.errors import BundleError, ConfigError, PayloadError
from edge_agent.payloads import PayloadLayout
from edge_agent.signals import Chunk

NAME = "fuzz"
CORPUS = _data.ROOT / "tests" / "corpus"
N_PAYLOADS, N_CONFIGS, N_MANIFESTS = 1_000_000, 100_000, 100_000
#: Inputs of the traced pass, of each kind of parser.
TRACED = 4000
#: Mutants of each kind that are tried again and again for growth, and how often.
REPEATED, ROUNDS = 600, 40
PROCESSES = 2
#: Strings to fill the interpreter's table of them with before the first look at memory.
INTERNED = 50_000
#: What a reference in a configuration stands for; no error may show it.
SECRET = "xK7-swordfish-Qz"
_NUMBERS = (
    "0", "-0", "1", "-1", "2", "65535", "65536", "4294967296", "9223372036854775807", "-9223372036854775809", "1e-400", "1e308",
    "1e309", "-1e999", "1e-7", "0.1", "1.", ".5", "+1", "1_000", "0x10", "0o7", "NaN", "Infinity", "-.inf", ".nan", "9" * 400,
    "9" * 5000, "1" + "0" * 320, "253402300800", "-62135596801", "1e11", "00", "1e", "--1", "1,2",
)  # fmt: skip
_SCALARS = (
    "null", "~", "true", "on", '""', '"\\0"', '"\\ud800"', '"\\U0010ffff"', '"\\Uffffffff"', "[]", "{}", "[[]]", "{a: 1}", "*a",
    "&a", "!!int 1", "!!python/object:os.system x", "2026-11-22T03:53:10Z", "2026-11-22T03:53:10+99:99", "0000-00-00",
    '"${env:SECRET}"', '"${env:NONE}"', '"${file:secret}"', '"${file:missing}"', '"${file:binary}"', '"${file:a\\0b}"',
    '"${cred:secret}"', '"${cred:../x}"', '"${env:PORT}"', '"${env:"', '"${}"', '"${what:x}"', "~nobody-at-all/x", "a/../../b",
    "ümläut", "'", '"', "|", ">", "[1, 2", "edge/pi-07/x", "plant/#", "$SYS/x", "x" * 300,
)  # fmt: skip
_JSON_VALUES = (
    "null", "true", "false", '""', '"\\u0000"', '"\\ud800"', "[]", "{}", "[[]]", "[[1],[2]]", '"AAAA"', '"f4"', '"i2"', '"json"',
    '"2026-11-22T03:53:10.125Z"', '"0001-01-01T00:00:00"', '"9999-12-31T23:59:59.9999"', '"1,2,3"', '"1,,2"', '"nan"', "[NaN]",
    "[1e999]", '"' + "9" * 400 + '"', "[" * 2000, '{"a":' * 500, '"x' + "y" * 300 + '"', '"../../etc/passwd"', '"int8"', '"none"',
)  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|[A-Za-z]+|[\[\]{},:]|\s+|.', re.DOTALL)
_LAYOUTS = [
    (n, header, scale) for n in (1, 2, 3) for header in ("none", "ts_seq") for scale in (None, 1.0, 0.001, 1e30)
]


class _Broken(Exception):  # noqa: N818 - a finding
    """An answer that breaks its promise."""


class _Hang(BaseException):
    """Raised by the timer in the middle of whatever takes so long."""


@dataclass(frozen=True)
class Seed:
    """One entry of the corpus."""

    name: str
    data: bytes
    layout: PayloadLayout | None = None


@dataclass
class Findings:
    """What one process saw."""

    inputs: Counter[str] = field(default_factory=Counter)
    well: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    slowest: str = ""
    rss: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)
    large: list[tuple[int, int]] = field(default_factory=list)


# ---------------------------------------------------------------- corpus


def corpus() -> dict[str, list[Seed]]:
    """Kind (a payload format, command, operating, config, manifest) -> its seeds."""
    layouts = json.loads((CORPUS / "layouts.json").read_text())
    seeds: dict[str, list[Seed]] = {}
    for path in sorted(CORPUS.rglob("*")):
        if path.parent == CORPUS or not path.is_file():
            continue
        kind, name = path.parent.name, f"{path.parent.name}/{path.name}"
        layout = PayloadLayout(kind, **layouts.get(name, {})) if kind in payloads.formats() else None
        seeds.setdefault(kind, []).append(Seed(name, path.read_bytes(), layout))
    missing = {*payloads.formats(), "command", "operating", "config"} - set(seeds)
    if missing:
        raise FileNotFoundError(f"{CORPUS}: no folder with examples of {', '.join(sorted(missing))}")
    seeds["config"].append(Seed("config.yaml", (_data.ROOT / "config.yaml").read_bytes()))
    for path in sorted((_data.ROOT / "models").glob("*/bundle.json")):
        seeds.setdefault("manifest", []).append(Seed(f"models/{path.parent.name}", path.read_bytes()))
    return seeds


# ---------------------------------------------------------------- mutations


def _position(rng: Random, data: bytearray) -> int:
    return rng.randrange(len(data) + 1)


def _flip(rng: Random, data: bytearray, _other: bytes) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: Random, data: bytearray, _other: bytes) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x22, 0x5B, 0x7B, 0x0A, rng.randrange(256)))


def _cut(rng: Random, data: bytearray, _other: bytes) -> None:
    del data[_position(rng, data) :]


def _remove(rng: Random, data: bytearray, _other: bytes) -> None:
    at = _position(rng, data)
    del data[at : at + rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 64)))]


def _insert(rng: Random, data: bytearray, _other: bytes) -> None:
    at = _position(rng, data)
    data[at:at] = rng.randbytes(rng.choice((1, 1, 2, 4, rng.randrange(1, 64))))


def _repeat(rng: Random, data: bytearray, _other: bytes) -> None:
    at = _position(rng, data)
    data[at:at] = data[at : at + rng.randrange(1, 64)] * rng.choice((1, 1, 2, 16))


def _splice(rng: Random, data: bytearray, other: bytes) -> None:
    start = rng.randrange(len(other) + 1)
    piece = other[start : start + rng.randrange(1, 256)]
    at = _position(rng, data)
    data[at : at + rng.choice((0, len(piece)))] = piece


def _extreme(rng: Random, data: bytearray, _other: bytes) -> None:
    width = rng.choice((1, 2, 4, 4, 8))
    value = rng.choice((0, 1, 2**31, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 0x7F800000, 0x7FC00000, 0xFFFE, rng.getrandbits(64)))
    at = rng.randrange(max(1, len(data) - width + 1))
    data[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, rng.choice(("little", "little", "big")))


def _tokens(values: Sequence[str]) -> Callable[[Random, bytearray, bytes], None]:
    def mutate(rng: Random, data: bytearray, other: bytes) -> None:
        found = list(_TOKEN.finditer(data))
        if not found:
            return
        token = rng.choice(found)
        start, end = token.span()
        what = rng.randrange(6)
        if what == 0:
            data[start:end] = rng.choice(_NUMBERS).encode()
        elif what == 1:
            data[start:end] = rng.choice(values).encode()
        elif what == 2:
            del data[start:end]
        elif what == 3:
            data[start:start] = data[start:end]
        elif what == 4:
            mate = rng.choice(found).group()
            data[start:end] = mate
        else:
            # Numbers are what most of a message is; a number for a number keeps its form.
            numbers = [t for t in found if t.group()[:1] in b"-0123456789"]
            if numbers:
                start, end = rng.choice(numbers).span()
                data[start:end] = rng.choice(_NUMBERS).encode()

    return mutate


def _lines(rng: Random, data: bytearray, other: bytes) -> None:
    """Lines of YAML: removed, doubled, swapped, indented otherwise, given another value, taken from elsewhere."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    what = rng.randrange(8)
    if what == 0:
        del lines[at]
    elif what == 1:
        lines.insert(at, lines[at])
    elif what == 2:
        mate = rng.randrange(len(lines))
        lines[at], lines[mate] = lines[mate], lines[at]
    elif what == 3:
        lines[at] = rng.choice((b" ", b"  ", b"\t", b"- ")) + lines[at]
    elif what == 4:
        lines[at] = lines[at][rng.choice((1, 2)) :]
    elif what == 5:
        lines.insert(at, rng.choice(other.split(b"\n")))
    else:
        key, colon, _ = lines[at].partition(b":")
        if colon:
            lines[at] = key + b": " + rng.choice((rng.choice(_NUMBERS), rng.choice(_SCALARS))).encode()
    data[:] = b"\n".join(lines)


_BYTES = (_flip, _overwrite, _cut, _remove, _insert, _repeat, _splice, _extreme)
_JSON = _tokens(_JSON_VALUES)
_YAML = _tokens(_SCALARS)
_OPERATIONS: dict[str, tuple[Callable[[Random, bytearray, bytes], None], ...]] = {
    "text": (*_BYTES, *(_JSON,) * len(_BYTES)),
    "config": (_flip, _remove, _splice, _YAML, _YAML, _YAML, *(_lines,) * 6),
    "binary": _BYTES,
}


def mutant(rng: Random, kind: str, seeds: Sequence[Seed]) -> tuple[Seed, bytes]:
    """One seed and what became of it: one mutation mostly, up to eight."""
    seed, other = rng.choice(seeds), rng.choice(seeds)
    family = "config" if kind == "config" else "binary" if kind in ("f32le", "i16le", "wav") else "text"
    data = bytearray(seed.data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 8))):
        rng.choice(_OPERATIONS[family])(rng, data, other.data)
    return seed, bytes(data)


# ---------------------------------------------------------------- what is held to its promise


def _payload(rng: Random, seed: Seed, data: bytes) -> str | None:
    layout = seed.layout
    assert layout is not None
    if rng.random() < 0.1:
        n, header, scale = rng.choice(_LAYOUTS)
        packed = layout.format in ("f32le", "i16le")
        layout = PayloadLayout(layout.format, n, header if packed else "none", scale)
    try:
        chunk = payloads.decode(data, layout)
    except PayloadError as error:
        if not str(error):
            raise _Broken("a PayloadError without words") from error
        return error.reason
    x = chunk.samples
    if x.dtype != np.float32 or x.ndim != 2 or x.shape[0] != layout.n_channels or not x.size or not np.isfinite(x).all():
        raise _Broken(f"decoded to {x.dtype} {x.shape}, or to samples that are not finite")
    if chunk.t is not None and not math.isfinite(chunk.t):
        raise _Broken(f"decoded to the time {chunk.t}")
    if rng.random() < 0.05 and _carried(chunk, layout):
        again = payloads.decode(payloads.encode(chunk, layout), layout).samples
        if again.shape != x.shape:
            raise _Broken(f"encoded and decoded again it is {again.shape}, was {x.shape}")
    return None


def _carried(chunk: Chunk, layout: PayloadLayout) -> bool:
    """Whether the format can state the chunk's rate: a WAV file says whole Hz, and bytes a second, in 32 bits."""
    return layout.format != "wav" or (float(chunk.fs_hz or 0.0).is_integer() and 4 * layout.n_channels * (chunk.fs_hz or 0.0) < 2**32)


def _command(rng: Random, _seed: Seed, data: bytes) -> str | None:
    try:
        command = commands.parse(rng.choice((*commands.NAMES, "explode")), data)
        commands.result(command.request_id, True, "done")
    except commands.Unusable as error:
        if not str(error):
            raise _Broken("a refused command without words") from error
        commands.result(error.request_id, False, str(error))
        return "unusable"
    return None


def _operating(_rng: Random, _seed: Seed, data: bytes) -> str | None:
    try:
        value = regimes.parse(data, 0.0).value
    except ValueError as error:
        if not str(error):
            raise _Broken("a refused operating value without words") from error
        return "refused"
    if not math.isfinite(value):
        raise _Broken(f"an operating value of {value}")
    return None


def read_file(path: Path) -> str:
    """Files as a configuration may name them."""
    if "binary" in path.name:
        b"\xff".decode()
    if "\0" in str(path):
        raise ValueError("embedded null byte")  # as open() does
    if "secret" not in path.name:
        raise FileNotFoundError(2, "No such file or directory")
    return f"{SECRET}\n"


def _config(rng: Random, _seed: Seed, data: bytes) -> str | None:
    text = data.decode("utf-8", "replace")
    env = None if rng.random() < 0.1 else {"SECRET": SECRET, "PORT": "1884", "CREDENTIALS_DIRECTORY": "/run/credentials/x"}
    try:
        made = config.parse(
            text, Path("/etc/edge-agent/config.yaml"), env, read_file, rng.choice(("pi-07.local", "Pi", "...")), secrets=rng.random() < 0.8
        )
    except ConfigError as error:
        if not error.problems or not all(p.where and p.value and p.expected for p in error.problems):
            raise _Broken("a ConfigError without words") from error
        if SECRET in str(error):
            raise _Broken("an error that shows a secret") from error
        return "config"
    if "password=" in repr(made.mqtt):
        raise _Broken("a repr that shows the password")
    return None


def _manifest(_rng: Random, _seed: Seed, data: bytes) -> str | None:
    try:
        bundle.parse_manifest(Path("models/x"), data)
    except BundleError as error:
        if not str(error):
            raise _Broken("a BundleError without words") from error
        return "manifest"
    return None


TARGETS: dict[str, Callable[[Random, Seed, bytes], str | None]] = {
    **dict.fromkeys(payloads.formats(), _payload),
    "command": _command,
    "operating": _operating,
    "config": _config,
    "manifest": _manifest,
}


# ---------------------------------------------------------------- the run


def one(seed: int, kind: str, number: int, seeds: Mapping[str, Sequence[Seed]]) -> tuple[bytes, str | None]:
    """Make the mutant and try it: its bytes, and the reason it was refused for; None where it is well."""
    rng = Random(f"{seed}/{kind}/{number}")
    origin, data = mutant(rng, kind, seeds[kind])
    return data, TARGETS[kind](rng, origin, data)


def schedule(counts: Mapping[str, int], worker: int, workers: int) -> Iterator[tuple[str, int]]:
    """(kind, number) of one worker, all kinds spread evenly over the run, so that memory is seen in a steady state."""
    due = dict.fromkeys(counts, 0.0)
    longest = max(counts.values(), default=0)
    number = dict.fromkeys(counts, worker)
    for _ in range(-(-longest // workers)):
        for kind, n in counts.items():
            due[kind] += n / longest
            while due[kind] >= 1.0 - 1e-9 and number[kind] < n:
                due[kind] -= 1.0
                yield kind, number[kind]
                number[kind] += workers
    for kind, n in counts.items():
        for left in range(number[kind], n, workers):
            yield kind, left


def shares(n_payloads: int, n_configs: int, n_manifests: int) -> dict[str, int]:
    """Inputs of each kind; commands and operating values come from the network too and are a twentieth of the messages."""
    formats = payloads.formats()
    each = -(-n_payloads // len(formats))
    return {
        **dict.fromkeys(formats, each), "command": n_payloads // 20, "operating": n_payloads // 20,
        "config": n_configs, "manifest": n_manifests,
    }  # fmt: skip


def _alarm(_number: int, _frame: object) -> None:
    raise _Hang


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of malloc.h."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


_TRIM: Any = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
_INFO: Any = getattr(ctypes.CDLL(None), "mallinfo2", None)  # glibc 2.33 and later
if _INFO is not None:
    _INFO.restype = _MallInfo


def fill_interned() -> None:
    """Have the interpreter's table of interned strings (the parts of each path are) double now: by half a MiB, once, whatever follows."""
    for number in range(INTERNED):
        sys.intern(f"a string that goes at once {number}")


def rss_bytes() -> int:
    """Of this process, once what is no longer used has been given back: a peak that the collector has not yet seen is no growth."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def large_bytes() -> int:
    """In use on the heap of C: each object above 512 bytes, arrays too; smaller ones are `sys.getallocatedblocks`. 0 without glibc 2.33."""
    if _INFO is None:
        return 0
    info = _INFO()
    return int(info.uordblks + info.hblkhd)


def run(
    seed: int, inputs: Iterator[tuple[str, int]], seeds: Mapping[str, Sequence[Seed]], *, hang_s: float,
    tell: Callable[[int], object] = lambda _n: None,
) -> Findings:  # fmt: skip
    """Try them all in this (main) thread."""
    fill_interned()
    found = Findings()
    old = signal.signal(signal.SIGALRM, _alarm)
    done = 0
    try:
        for kind, number in inputs:
            name = f"{kind}/{number}"
            began = time.perf_counter()
            try:
                signal.setitimer(signal.ITIMER_REAL, hang_s)
                try:
                    reason = one(seed, kind, number, seeds)[1]
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0.0)
                found.reasons[reason or "well"] += 1
                found.well[kind] += reason is None
            except _Hang:
                found.hangs.append(name)
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                found.crashes.append(f"{name}: {type(error).__name__}: {str(error)[:160]} ({Path(where.filename).name}:{where.lineno})")
            took = time.perf_counter() - began
            if took > found.slowest_s:
                found.slowest_s, found.slowest = took, name
            found.inputs[kind] += 1
            done += 1
            if done % 1000 == 0:
                found.rss.append((done, rss_bytes()))
                # Of these three lists three blocks an entry each are alive themselves.
                found.blocks.append((done, sys.getallocatedblocks() - 9 * len(found.rss)))
                found.large.append((done, large_bytes()))
                tell(done)
    finally:
        signal.signal(signal.SIGALRM, old)
    return found


def growth(seen: Sequence[tuple[int, int]]) -> float:
    """What (inputs, size) grows by over the last three quarters of a run, by regression."""
    late = seen[len(seen) // 4 :]
    if len(late) < 8:
        return 0.0
    n, size = np.array(late, np.float64).T
    slope = float(np.polyfit(n - n.mean(), size, 1)[0])
    return slope * float(n[-1] - n[0])


def in_process_of_its_own(flag: str, n: int, seed: int, **env: str) -> Any:
    """The JSON line of this module started with `flag N`; None where it failed."""
    out = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz", flag, str(n), "--seed", str(seed)],
        stdout=subprocess.PIPE, text=True, check=False, cwd=_data.ROOT, env={**os.environ, **env},
    )  # fmt: skip
    return None if out.returncode else json.loads(out.stdout.splitlines()[-1])


def main_repeated(seed: int, n: int) -> int:
    """The same mutants, n of each format and fewer of the slow kinds, given to the parsers `ROUNDS` times: memory after each round.

    Mutating scatters memory of its own; here it is over before the first look.
    """
    seeds = corpus()
    mutants = [
        (kind, number, *mutant(Random(f"{seed}/{kind}/{number}"), kind, seeds[kind]))
        for kind in seeds
        for number in range(n // 4 if kind in ("config", "manifest") else n)
    ]
    fill_interned()
    rss = []
    for turn in range(ROUNDS):
        for kind, number, origin, data in mutants:
            TARGETS[kind](Random(f"{seed}/{kind}/{number}"), origin, data)
        rss.append((turn, rss_bytes()))
    print(json.dumps({"inputs": len(mutants) * ROUNDS, "growth_mib": growth(rss) / 2**20}))
    return 0


def _work(seed: int, counts: dict[str, int], worker: int, workers: int, out: Any) -> None:
    found = run(
        seed, schedule(counts, worker, workers), corpus(), hang_s=FUZZ["hang_s"], tell=lambda n: out.put((worker, n, None))
    )
    out.put((worker, None, found))


def in_parallel(seed: int, counts: dict[str, int], workers: int) -> list[Findings]:
    """Two processes; one that says nothing for a minute hangs where no timer reaches it, and is ended."""
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=_work, args=(seed, counts, i, workers, out)) for i in range(workers)]
    for process in processes:
        process.start()
    total, done = sum(counts.values()), [0] * workers
    heard, results = [time.monotonic()] * workers, [Findings() for _ in range(workers)]
    running = set(range(workers))
    while running:
        try:
            worker, n, found = out.get(timeout=5.0)
            heard[worker] = time.monotonic()
            if found is None:
                done[worker] = n
                if sys.stderr.isatty():
                    print(f"\r\x1b[K{sum(done)} of {total}", end="", file=sys.stderr, flush=True)
            else:
                results[worker] = found
                running.discard(worker)
        except queue.Empty:
            pass
        for worker in list(running):
            silent = time.monotonic() - heard[worker] > FUZZ["silent_s"]
            if silent or not processes[worker].is_alive():
                what = f"no answer after input {done[worker]} of process {worker}"
                (results[worker].hangs if silent else results[worker].crashes).append(what)
                processes[worker].kill()
                running.discard(worker)
    for process in processes:
        process.join()
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return results


# ---------------------------------------------------------------- coverage


def traced(seed: int, n: int) -> dict[str, float]:
    """Branch coverage in percent of the payload and the configuration code, by a traced pass in a process of its own."""
    figures: dict[str, float] | None = in_process_of_its_own("--trace", n, seed)
    return {"payloads": 0.0, "config": 0.0} if figures is None else figures


def main_traced(seed: int, n: int) -> int:
    """The corpus as it is, and n mutants of each kind of parser, under coverage."""
    import coverage

    package = _data.ROOT / "edge_agent"
    for name in [m for m in sys.modules if m.startswith(("edge_agent", "benchmarks")) and m != "benchmarks"]:
        del sys.modules[name]  # what is defined at import counts as well, so all is imported again, traced
    measured = coverage.Coverage(
        branch=True, data_file=None, config_file=False, include=[f"{package}/payloads/*", f"{package}/config.py"]
    )
    measured.start()
    from benchmarks import fuzz

    fuzz.everything(seed, n)
    measured.stop()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    taken: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, file in files.items():
        what = "config" if name.endswith("config.py") else "payloads"
        taken[what] += file["summary"]["covered_branches"]
        total[what] += file["summary"]["num_branches"]
        if file["missing_branches"]:
            print(f"{name}: branches not taken (from line, to line): {file['missing_branches']}", file=sys.stderr)
    figures = {what: round(100.0 * taken[what] / total[what], 2) for what in sorted(total)}
    print(json.dumps(figures))
    return 0


def everything(seed: int, n: int) -> Findings:
    """The corpus unchanged, files as `config.load` meets them, and n mutants of each kind."""
    seeds = corpus()
    for kind, some in seeds.items():
        for entry in some:
            for number in range(3):
                TARGETS[kind](Random(f"{seed}/{number}"), entry, entry.data)
    for path in (CORPUS / "config" / "whole.yaml", CORPUS / "none.yaml", CORPUS / "f32le", CORPUS / "f32le" / "plain"):
        for hidden in (True, False):
            try:
                config.load(path, secrets=hidden)
            except ConfigError as error:
                print(f"refused as it should be: {str(error).splitlines()[-1][:120]}", file=sys.stderr)
    for what in unencodable():
        print(f"refused as it should be: {what[:120]}", file=sys.stderr)
    counts = {kind: n if kind == "config" else 2 * n for kind in seeds}
    return run(seed, schedule(counts, 0, 1), seeds, hang_s=10.0 * FUZZ["hang_s"])


def unencodable() -> list[str]:
    """What each chunk that a format cannot carry is refused with, and layouts that no configuration lets through."""
    fine = Chunk(np.ones((1, 4), np.float32), fs_hz=1000.0, t=1.0, seq=1)
    broken = np.array([[1.0, math.nan]], np.float32)
    cases = [
        *((Chunk(broken, fs_hz=1000.0, t=1.0, seq=1), PayloadLayout(f, 1)) for f in payloads.formats() if f not in ("f32le", "wav")),
        (Chunk(fine.samples), PayloadLayout("wav", 1)),
        (Chunk(fine.samples, fs_hz=0.5), PayloadLayout("wav", 1)),
        (Chunk(fine.samples, fs_hz=2e9), PayloadLayout("wav", 1)),
        (Chunk(fine.samples), PayloadLayout("f32le", 1, "ts_seq")),
        (Chunk(np.ones((2, 4), np.float32)), PayloadLayout("record_json", 2)),
        (fine, PayloadLayout("i16le", 1, "ts")),
        (fine, PayloadLayout("f33", 1)),
    ]
    said = []
    for chunk, layout in cases:
        try:
            payloads.encode(chunk, layout)
        except (PayloadError, ValueError) as error:
            said.append(str(error))
            continue
        raise _Broken(f"{layout} carries {chunk}, which it cannot")
    return said


# ---------------------------------------------------------------- verdict


def judged(results: Sequence[Findings], coverage_percent: Mapping[str, float], seed: int, again: Mapping[str, float] | None) -> dict[str, Any]:
    """The figures and whether they keep within `bounds.FUZZ`; again: what `main_repeated` printed."""
    inputs: Counter[str] = sum((r.inputs for r in results), Counter())
    well: Counter[str] = sum((r.well for r in results), Counter())
    reasons: Counter[str] = sum((r.reasons for r in results), Counter())
    messages = [kind for kind in inputs if kind in payloads.formats()]
    n_messages = sum(inputs[kind] for kind in messages)
    share = sum(well[kind] for kind in messages) / max(1, n_messages)
    kept = max((growth(r.blocks) for r in results), default=0.0)
    large = max((growth(r.large) for r in results), default=0.0) / 2**20
    rises = math.inf if again is None else again["growth_mib"]
    crashes, hangs = ([what for r in results for what in getattr(r, which)] for which in ("crashes", "hangs"))
    missed = [f"crash: {what}" for what in crashes[:20]] + [f"hang: {what}" for what in hangs[:20]]
    if share < FUZZ["decoded_share"]:
        missed.append(f"{share:.3f} of the messages decode, at least {FUZZ['decoded_share']}")
    if rises > FUZZ["growth_mib"]:
        missed.append(f"over the same inputs memory grows by {rises:.2f} MiB, at most {FUZZ['growth_mib']}")
    if kept > FUZZ["growth_blocks"]:
        missed.append(f"over new inputs {kept:.0f} blocks stay in memory, at most {FUZZ['growth_blocks']:.0f}")
    if large > FUZZ["growth_mib"]:
        missed.append(f"over new inputs {large:.2f} MiB of large objects stay in memory, at most {FUZZ['growth_mib']}")
    missed += [f"coverage of {what} {p}, at least {FUZZ['coverage']}" for what, p in coverage_percent.items() if p < FUZZ["coverage"]]
    slowest = max(results, key=lambda r: r.slowest_s)
    return {
        "ok": not missed, "inputs": {**inputs, "payloads": n_messages}, "decoded_share": round(share, 4),
        "well_share": {kind: round(well[kind] / n, 4) for kind, n in inputs.items()}, "reasons": dict(reasons),
        "crashes": len(crashes), "hangs": len(hangs), "slowest_ms": round(1e3 * slowest.slowest_s, 1), "slowest": slowest.slowest,
        "growth_mib": None if again is None else round(rises, 3), "repeated": again and again["inputs"], "growth_blocks": round(kept),
        "growth_large_mib": round(large, 3),
        "rss_slope_mib": round(max((growth(r.rss) for r in results), default=0.0) / 2**20, 3), "coverage": dict(coverage_percent), "seed": seed, "missed": missed,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Draw, try, judge."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__)
    parser.add_argument("--payloads", type=int, default=N_PAYLOADS)
    parser.add_argument("--configs", type=int, default=N_CONFIGS)
    parser.add_argument("--manifests", type=int, default=N_MANIFESTS)
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (SEED in the environment)")
    parser.add_argument("--only", metavar="KIND/NUMBER", help="make one mutant again and let its error through")
    parser.add_argument("--trace", type=int, metavar="N", help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, metavar="N", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    given = os.environ.get("SEED") if args.seed is None else args.seed
    seed = secrets.randbits(32) if given in (None, "") else int(given)
    if args.trace is not None:
        return main_traced(seed, args.trace)
    if args.repeat is not None:
        return main_repeated(seed, args.repeat)
    if args.only is not None:
        kind, number = args.only.split("/")
        origin, data = mutant(Random(f"{seed}/{kind}/{number}"), kind, corpus()[kind])
        print(f"from {origin.name}: {data!r}", file=sys.stderr)
        return _data.finish(NAME, True, reason=one(seed, kind, int(number), corpus())[1], seed=seed)
    print(f"seed {seed}; SEED={seed} repeats it", file=sys.stderr)
    counts = shares(args.payloads, args.configs, args.manifests)
    began = time.monotonic()
    results = in_parallel(seed, counts, PROCESSES)
    # The interpreter's own pools are given back only when wholly empty: what lies scattered in them would be taken for growth.
    again = in_process_of_its_own("--repeat", REPEATED, seed, PYTHONMALLOC="malloc")
    figures = judged(results, traced(seed, TRACED), seed, again)
    for line in figures.pop("missed"):
        print(f"missed: {line}", file=sys.stderr)
    return _data.finish(NAME, figures.pop("ok"), **figures, seconds=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    sys.exit(main())
