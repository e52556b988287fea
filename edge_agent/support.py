"""`edge-agent support`: one archive for whoever helps, with all that helps and without secrets.

    configuration ┐
    doctor        │                ┌─ values of keys named like secrets, and of unknown keys, are never copied
    database      ├─► text ─► Scrub┤  every secret known from the configuration, as it is and encoded
    broker        │                └─ what looks like one: password=..., Bearer ..., a private key, user:pass@host
    log           ┘                        │
                                           ▼
                              edge-agent-support-….tar.gz (mode 0600)

The configuration is written anew from what YAML reads of it, so comments stay here. Keys and certificates are told by their
path only; the environment is not read but for what the configuration names.
"""

from __future__ import annotations

import base64
import io
import json
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from edge_agent import __version__, doctor, host
from edge_agent import config as configuration
from edge_agent.errors import ConfigError, EdgeAgentError
from edge_agent.signals import rfc3339

HIDDEN = "(removed)"
#: A secret shorter than this is removed where its key names it, and not hunted for in every text.
SHORT = 4
EVENTS, SCORES, LOG_LINES = 500, 2000, 5000
PACKAGES = (
    "ai-edge-litert", "tflite-runtime", "cryptography", "msgspec", "numpy", "paho-mqtt", "prometheus-client", "PyWavelets",
    "PyYAML", "scipy", "sqlite-utils",
)  # fmt: skip
_SECRET_KEY = re.compile(r"pass|secret|token|pwd|credential|api_?key|auth|private", re.IGNORECASE)
#: What stands behind the name of a secret, in a log or a text of a person.
_NAMED = re.compile(
    r"""(?ix) (["']?\b[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|pwd|credential|api[_-]?key|authorization)[\w.-]*["']?
    (?:\s*[=:]\s*|\s+is\s+)) (?:(?:bearer|basic)\s+)? (\\"[^"\\]*\\"|"(?:[^"\\]|\\.)*"|'[^']*'|[^\s,;}\]"'\\]+)"""
)
_BEARER = re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]{6,}")
_LOGIN = re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)[^\s/@:]*:[^\s/@]+@")
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL)


class Scrub:
    """Takes secrets out of texts. secrets: those that are known; each is looked for as it is, in JSON, in a URL, in base64."""

    def __init__(self, secrets: Iterable[str]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            for line in {secret, *secret.splitlines()}:
                if len(line.strip()) >= SHORT:
                    forms |= _forms(line.strip())
        self._known = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))) if forms else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        text = _PEM.sub(HIDDEN, text)
        text = _LOGIN.sub(rf"\1{HIDDEN}@", text)
        text = _NAMED.sub(_unnamed, text)
        return _BEARER.sub(rf"\1 {HIDDEN}", text)


def _unnamed(match: re.Match[str]) -> str:
    """The name stays, and so do the quotes, without which JSON would be none."""
    quote = re.match(r"""\\?["']?""", match[2])
    around = (quote[0] if quote else "") or ('"' if match[1].startswith('"') and ":" in match[1] else "")
    return f"{match[1]}{around}{HIDDEN}{around}"


def _forms(secret: str) -> set[str]:
    raw = secret.encode()
    # In base64 it looks otherwise by where it begins in its text: the characters that hang on it alone, for each beginning.
    inside = [base64.b64encode(b"\0" * lead + raw).decode()[-(-8 * lead // 6) : 8 * (lead + len(raw)) // 6] for lead in range(3)]
    plain = [form for form in inside if len(form) >= 6]
    return {
        secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret), repr(secret)[1:-1], raw.hex(), *plain,
        *(form.replace("+", "-").replace("/", "_") for form in plain),
    }  # fmt: skip


# ---------------------------------------------------------------- the configuration


def secrets_of(path: Path, env: Mapping[str, str]) -> set[str]:
    """Every secret that the file holds or refers to, also where it is no valid configuration."""
    try:
        text = path.read_text("utf-8", "replace")
    except OSError:
        return set()
    found: set[str] = set()
    for kind, name in re.findall(r"\$\{(env|file|cred):([^}]*)\}", text):
        try:
            if kind == "env":
                found.add(env.get(name, ""))
                continue
            folder = path.parent if kind == "file" else Path(env.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
            found.add((folder / os.path.expanduser(name)).read_text("utf-8", "replace").strip())  # noqa: PTH111
        except (OSError, ValueError):
            continue  # not there to be told
    for _, value, hide in _leaves(_tree(text)):
        if hide and value is not None and not re.fullmatch(r"\$\{[^}]*\}", str(value)):
            found.add(str(value))
    return found - {""}


def _tree(text: str) -> Any:
    """What YAML reads; None where it reads nothing, or more than a configuration can be (aliases that multiply or loop)."""
    left = configuration.MAX_NODES

    def plain(node: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("too many values")
        if isinstance(node, dict):
            return {str(key): plain(value) for key, value in node.items()}
        return [plain(value) for value in node] if isinstance(node, list) else node

    try:
        return plain(yaml.load(text, Loader=_TextBaseLoader))
    except (yaml.YAMLError, RecursionError, ValueError, TypeError):
        return None


class _TextBaseLoader(yaml.BaseLoader):
    """Every scalar as its text."""


def _leaves(node: Any, where: tuple[str, ...] = (), hide: bool = False) -> Iterator[tuple[tuple[str, ...], Any, bool]]:
    """(path, value, whether it is not to be copied) of everything in the tree that is no mapping and no list."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*where, str(key)), hide or _hides((*where, str(key))))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _leaves(value, (*where, str(i)), hide)
    else:
        yield where, node, hide


def _hides(where: tuple[str, ...]) -> bool:
    """Whether what stands under this key stays here: a name like a secret's, or a key that nobody knows."""
    if _SECRET_KEY.search(where[-1]) and not (len(where) == 2 and where[0] == "sensors"):
        return True  # a sensor may well be called bypass-1
    known = ["*" if i == 1 and where[0] == "sensors" else part for i, part in enumerate(where)]
    if known[0] == "defaults":
        known = ["sensors", "*", *known[1:]]
    name = ".".join(known)
    return not any(key == name or key.startswith(name + ".") for key in (*configuration.KEYS, "sensors.*"))


def without_secrets(text: str) -> str:
    """The configuration written anew; a comment says why where YAML cannot read it."""
    tree = _tree(text)
    if not isinstance(tree, dict):
        return "# The file is no YAML mapping, so it is not copied: nobody can say which of its words are secrets.\n"
    return yaml.safe_dump(_copied(tree), sort_keys=False, allow_unicode=True)


def _copied(node: Any, where: tuple[str, ...] = ()) -> Any:
    if isinstance(node, dict):
        return {str(k): HIDDEN if _hides((*where, str(k))) and not _reference(v) else _copied(v, (*where, str(k))) for k, v in node.items()}
    if isinstance(node, list):
        return [_copied(v, (*where, str(i))) for i, v in enumerate(node)] if len(where) < 20 else HIDDEN
    return node


def _reference(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\$\{(env|file|cred):[^}]*\}", value) is not None


# ---------------------------------------------------------------- what else helps


def _versions() -> dict[str, Any]:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    total, _, free = shutil.disk_usage("/")
    return {
        "edge-agent": __version__, "python": sys.version, "sqlite": sqlite3.sqlite_version, "packages": packages,
        "platform": platform.platform(), "machine": platform.machine(), "cores": os.cpu_count(), "memory": _memory(),
        "root_disk_mib": {"total": total >> 20, "free": free >> 20}, "clock_synced": host.clock_synced(),
    }  # fmt: skip


def _memory() -> dict[str, str]:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines) if key in ("MemTotal", "MemAvailable", "SwapTotal")}


def _database(path: Path) -> Iterator[tuple[str, str]]:
    """Schema, counts, alarms, the last events and scores."""
    if not path.is_file():
        yield "database.json", json.dumps({"path": str(path), "problem": "there is none"}, indent=1)
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)) as db:
            db.row_factory = sqlite3.Row
            schema = [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")]
            tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")]
            # A count of a large table reads all of it: the largest rowid says as much.
            counts = {name: _count(db, name) for name in tables}
            alarms = [dict(row) for row in db.execute("SELECT * FROM alarm_state")]
            unsent = dict(db.execute("SELECT count(*) AS unsent, min(created) AS oldest FROM outbox WHERE sent IS NULL").fetchone())
            told = {
                "path": str(path), "bytes": path.stat().st_size, "rows": counts, "outbox": unsent, "alarm_state": alarms,
                "version": [row[0] for row in db.execute("SELECT version FROM schema_version")],
            }  # fmt: skip
            yield "database.json", json.dumps(told, indent=1)
            yield "schema.sql", ";\n".join(schema) + ";\n"
            events = [row[0] for row in db.execute("SELECT payload FROM events ORDER BY rowid DESC LIMIT ?", (EVENTS,))]
            yield "events.jsonl", "".join(f"{payload}\n" for payload in reversed(events))
            scores = [dict(row) for row in db.execute("SELECT * FROM scores ORDER BY id DESC LIMIT ?", (SCORES,))]
            yield "scores.jsonl", "".join(f"{json.dumps(row)}\n" for row in reversed(scores))
    except sqlite3.Error as error:
        yield "database-problem.txt", f"{path}: {error}\n"


def _count(db: sqlite3.Connection, table: str) -> int | None:
    try:
        return int(db.execute(f'SELECT ifnull(max(rowid), 0) FROM "{table}"').fetchone()[0])
    except sqlite3.OperationalError:  # a table WITHOUT ROWID
        return int(db.execute(f'SELECT count(*) FROM "{table}"').fetchone()[0])


def _log(file: Path | None) -> tuple[str, str]:
    """The agent's own log: a file, or systemd's journal of the unit."""
    if file is not None:
        try:
            lines = file.read_text("utf-8", "replace").splitlines()
        except OSError as error:
            raise EdgeAgentError(f"{file}: the log cannot be read ({error.strerror}): name another with --log") from None
        return "log.txt", "\n".join(lines[-LOG_LINES:]) + "\n"
    command = ["journalctl", "-u", "edge-agent", "-n", str(LOG_LINES), "--no-pager", "-o", "short-iso"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return "log.txt", f"(no journal: {error}; give the agent's log with --log FILE)\n"
    return "log.txt", done.stdout or f"(the journal says nothing: {done.stderr.strip()}; give the agent's log with --log FILE)\n"


_README = """\
Support archive of edge-agent, made {when}.

config.yaml     the configuration, written anew: without comments, secrets, and keys that are not known
problems.txt    its mistakes, where it has any
doctor.json     what `edge-agent doctor` found, and what it says to do
versions.json   versions, processor, memory, disk
database.json   counts, alarm states, outbox;  schema.sql: its tables
events.jsonl    the last {events} events;  scores.jsonl: the last {scores} windows
bundles.json    bundle.json of every bundle the sensors use
log.txt         the last {lines} lines of the log

Removed: {n} secrets that the configuration holds or names, wherever they stand, also encoded; what looks like a password, a
token, a private key or a login in an address. No waveform, no private key and no environment is in here. Names of sensors and
persons, topics and addresses are: look through it before you give it away.
"""


def members(
    path: Path, *, listen_s: float, log: Path | None = None, env: Mapping[str, str] | None = None,
    clock: Callable[[], float] = time.time,
) -> dict[str, str]:  # fmt: skip
    """Name -> text of everything that goes into the archive, secrets removed."""
    known = secrets_of(path, os.environ if env is None else env)
    scrub = Scrub(known)
    texts = {
        "README.txt": _README.format(when=rfc3339(clock()), events=EVENTS, scores=SCORES, lines=LOG_LINES, n=len(known)),
        "versions.json": json.dumps(_versions(), indent=1),
        "doctor.json": json.dumps(doctor.report(path, listen_s), indent=1),
    }
    try:
        texts["config.yaml"] = without_secrets(path.read_text("utf-8", "replace"))
    except OSError as error:
        texts["config.yaml"] = f"# {path}: {error.strerror}\n"
    try:
        config = configuration.load(path, secrets=False)
    except ConfigError as error:
        texts["problems.txt"] = f"{error}\n"
    else:
        texts.update(_database(config.database))
        texts["bundles.json"] = json.dumps(_bundles(config), indent=1)
    name, text = _log(log)
    texts[name] = text
    return {name: scrub(text) for name, text in texts.items()}


def _bundles(config: configuration.Config) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, sensor in config.sensors.items():
        try:
            found[name] = {"path": str(sensor.model), "bundle": json.loads((sensor.model / "bundle.json").read_text("utf-8"))}
        except (OSError, ValueError) as error:
            found[name] = {"path": str(sensor.model), "problem": str(error)}
    return found


def write(
    path: Path, out: Path | None = None, *, listen_s: float = doctor.LISTEN_S, log: Path | None = None,
    clock: Callable[[], float] = time.time,
) -> tuple[Path, dict[str, int]]:  # fmt: skip
    """Make the archive: its path, and the size of each text in it."""
    now = clock()
    stamp = re.sub(r"[^0-9TZ]", "", rfc3339(now)[:19] + "Z")
    target = Path(f"edge-agent-support-{stamp}.tar.gz") if out is None else out
    texts = members(path, listen_s=listen_s, log=log, clock=clock)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in texts.items():
            data = text.encode("utf-8", "replace")
            info = tarfile.TarInfo(f"edge-agent-support/{name}")
            info.size, info.mtime, info.mode = len(data), int(now), 0o600
            archive.addfile(info, io.BytesIO(data))
    try:
        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(buffer.getvalue())
    except OSError as error:
        raise EdgeAgentError(f"{target}: cannot be written ({error.strerror}): name another file with -o") from None
    return target, {name: len(text.encode("utf-8", "replace")) for name, text in texts.items()}
