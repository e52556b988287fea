"""The configuration file, typed: `parse` is pure, `load` reads the file.

    YAML ─► tree of plain values ─► one table of keys (`KEYS`) checks every value ─► Config
             (YAML 1.2 scalars,       type, bounds, nearest known key;
              no duplicate keys)      every mistake is kept, none stops the next

All mistakes are raised together as one ConfigError. Text may hold `${env:NAME}`, `${file:PATH}` or `${cred:NAME}`
(systemd's LoadCredential=); what these stand for, and every password, never appears in an error, a repr or a log.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import math
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from edge_agent import budget, payloads, regimes, thresholds
from edge_agent.alarms import AlarmPolicy
from edge_agent.budget import Budget
from edge_agent.errors import ConfigError, Problem
from edge_agent.payloads import PayloadLayout

ID = re.compile(r"[a-z0-9_-]+")
_SECRET_NAME = re.compile(r"pass|secret|token|pwd|credential", re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{(env|file|cred):([^}]*)\}")
_REFERENCES = "${env:NAME}, ${file:PATH} or ${cred:NAME}"
#: The largest message MQTT can carry.
MAX_MQTT_BYTES = 268_435_455
#: Values of a file, aliases counted where they are used: ten lines of them can stand for more than memory holds.
MAX_NODES = 50_000


@dataclass(frozen=True)
class TlsConfig:
    """Files in PEM form. ca: who may have signed the broker; cert and key: who we are (both or none)."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True)
class MqttConfig:
    """The broker and how to speak to it.

    client_id : None lets the agent make one and keep it beside the database
    protocol  : "5" (falls back to 3.1.1) or "3.1.1"
    base      : the topic above all of the agent's own
    require_subscriber : an event counts as sent only where somebody was there to hear it (MQTT 5)
    """

    host: str
    port: int
    username: str | None
    password: str | None = field(repr=False)
    client_id: str | None
    protocol: str
    tls: TlsConfig | None
    base: str
    require_subscriber: bool = False


@dataclass(frozen=True)
class StorageConfig:
    """How much history the database keeps.

    max_mb      : size in MB (10^6 bytes) beyond which the oldest scores go; events never do
    scores_days : age in days at which single scores become one row a minute
    """

    max_mb: float = 1000.0
    scores_days: float = 35.0

    @property
    def max_bytes(self) -> float:
        """max_mb in bytes."""
        return self.max_mb * 1e6


@dataclass(frozen=True)
class WindowOverride:
    """Window length and hop, each in samples or in seconds; None leaves the bundle's."""

    n_samples: int | None = None
    hop_samples: int | None = None
    duration_s: float | None = None
    hop_s: float | None = None


@dataclass(frozen=True)
class ThresholdOverride:
    """A method and rate to fit anew, or a value by hand; None leaves the bundle's."""

    method: str | None = None
    false_alarm_rate: float | None = None
    value: float | None = None


@dataclass(frozen=True)
class SensorConfig:
    """One sensor; `model` is the bundle's folder.

    public_key : the key that must have signed its bundles; None asks for no signature
    store      : where bundles are installed, one of which may stand in for `model`
    """

    id: str
    topic: str
    layout: PayloadLayout
    channels: tuple[int, ...]
    fs_hz: float
    unit: str | None
    machine: str | None
    model: Path
    window: WindowOverride | None
    threshold: ThresholdOverride | None
    policy: AlarmPolicy
    false_alarms: Budget | None
    silent_after_s: float
    max_payload_bytes: int
    max_messages_per_s: float | None = None
    regime: regimes.Spec | None = None
    public_key: Path | None = None
    store: Path | None = None

    @property
    def regime_topic(self) -> str | None:
        """Where this sensor's operating value comes from."""
        return None if self.regime is None else self.regime.topic


@dataclass(frozen=True)
class MetricsConfig:
    """Where Prometheus may ask: port None is nowhere."""

    port: int | None = None
    bind: str = "127.0.0.1"


@dataclass(frozen=True)
class Config:
    """The whole file. sha256 is that of its text; passwords are hidden from repr."""

    path: Path
    agent_id: str
    mqtt: MqttConfig
    database: Path
    health_every_s: float
    sensors: dict[str, SensorConfig]
    sha256: str
    storage: StorageConfig = StorageConfig()
    metrics: MetricsConfig = MetricsConfig()


class _Wrong(Exception):  # noqa: N818 - becomes a Problem
    """A value that a key does not take; the text is what was expected."""


_Read = Callable[[Any], Any]


def _text(expected: str, pattern: re.Pattern[str] | None = None) -> _Read:
    def read(value: Any) -> str:
        if isinstance(value, (bool, int, float)):
            raise _Wrong(f"{expected} (put it in quotes: YAML reads it as a number or boolean)")
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise _Wrong(expected)
        if pattern is not None and not pattern.fullmatch(value):
            raise _Wrong(expected)
        return value

    return read


def _choice(*known: str) -> _Read:
    expected = "one of " + ", ".join(known)

    def read(value: Any) -> str:
        # protocol: 5 and protocol: "5" mean the same to a person.
        text = str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) else ""
        if text not in known:
            near = difflib.get_close_matches(text.lower(), known, 1)
            raise _Wrong(expected + (f"; did you mean {near[0]}?" if near else ""))
        return text

    return read


def _number(low: float, high: float, unit: str = "", *, above: bool = False, whole: bool = False) -> _Read:
    kind = "a whole number" if whole else "a number"
    span = f"above {low:.10g}, at most {high:.10g}" if above else f"{low:.10g} to {high:.10g}"
    expected = f"{kind}, {span}{' ' + unit if unit else ''}"

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _Wrong(expected)
        if whole and value != (whole_value := int(value) if math.isfinite(value) else 0):
            raise _Wrong(expected)
        if not (low < value if above else low <= value) or not value <= high:
            raise _Wrong(expected)
        return whole_value if whole else float(value)

    return read


def _boolean(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in ("yes", "on", "no", "off", "y", "n"):
        return value.lower() in ("yes", "on", "y")
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _channels(value: Any) -> tuple[int, ...]:
    expected = "a list of different 0-based channel numbers, such as [0] or [0, 2]"
    if not isinstance(value, list) or not value or not all(type(v) is int and 0 <= v < 1024 for v in value):
        raise _Wrong(expected)
    if len(set(value)) != len(value):
        raise _Wrong(expected)
    return tuple(value)


def _vote(value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(type(v) is int for v in value):
        raise _Wrong("[k, n]: k of the last n windows, such as [3, 5]")
    if not 1 <= value[0] <= value[1] <= 100:
        raise _Wrong("[k, n] with 1 <= k <= n <= 100")
    return value[0], value[1]


def _edges(value: Any) -> tuple[float, ...]:
    expected = "a rising list of 1 to 20 numbers, such as [600, 1200]: the limits between regimes"
    if not isinstance(value, list) or not 1 <= len(value) <= 20:
        raise _Wrong(expected)
    if not all(type(v) in (int, float) and math.isfinite(v) for v in value):
        raise _Wrong(expected)
    if any(b <= a for a, b in pairwise(value)):
        raise _Wrong(expected)
    return tuple(float(v) for v in value)


def _scale(value: Any) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or value == 0
    ):
        raise _Wrong("a finite number other than 0: the physical unit of one count")
    return float(value)


def _budget(value: Any) -> Budget:
    try:
        return budget.parse(value if isinstance(value, str) else "")
    except ValueError:
        raise _Wrong("so many events in a time, such as 1 per 30 d (s, min, h, d; 1 per 1 min to 1 per 3660 d)") from None


def _address(value: Any) -> str:
    try:
        return str(ipaddress.ip_address(value if isinstance(value, str) else ""))
    except ValueError:
        raise _Wrong("an address of this machine, such as 127.0.0.1 (or 0.0.0.0 for all)") from None


def _topic(value: Any) -> str:
    expected = "a literal topic such as plant/pump-1/waveform, without + # and not beginning with $ or /"
    if not isinstance(value, str) or not value or value[0] in "$/" or any(c in value for c in "+#\0"):
        raise _Wrong(expected)
    if len(value.encode()) > 65535:
        raise _Wrong("a topic of at most 65535 bytes")
    return value


@dataclass(frozen=True)
class Key:
    """One key of the file: how its value is read, and what stands for it where it is absent."""

    read: _Read
    default: Any = None
    required: str | None = None  # what is expected, where there is no default
    literal: bool = False  # never a reference: commands that leave those as they stand must not miss it


_ID_TEXT = "an id of small letters, digits, _ and -"

#: Every key of the configuration; `*` stands for a sensor's id. docs/configuration.md lists the same.
KEYS: dict[str, Key] = {
    "agent.id": Key(_text(_ID_TEXT, ID)),
    "mqtt.host": Key(_text("a host name or address"), "localhost"),
    "mqtt.port": Key(_number(1, 65535, whole=True), 1883),
    "mqtt.username": Key(_text("text")),
    "mqtt.password": Key(_text(f"text, {_REFERENCES}")),
    "mqtt.client_id": Key(_text("text")),
    "mqtt.protocol": Key(_choice("5", "3.1.1"), "5"),
    "mqtt.tls.ca": Key(_text("a path")),
    "mqtt.tls.cert": Key(_text("a path")),
    "mqtt.tls.key": Key(_text("a path")),
    "mqtt.base": Key(_topic),
    "mqtt.require_subscriber": Key(_boolean, False),
    "database": Key(_text("a path"), required="the path of the database file, such as data/edge-agent.db"),
    "bundles.public_key": Key(_text("a path, written out", re.compile(r"[^$]+")), literal=True),
    "storage.max_mb": Key(_number(1, 1e6, "MB"), 1000.0),
    "storage.scores_days": Key(_number(1, 3650, "d"), 35.0),
    "metrics.port": Key(_number(1, 65535, whole=True)),
    "metrics.bind": Key(_address, "127.0.0.1"),
    "health_every_s": Key(_number(1, 3600, "s"), 60.0),
    "sensors.*.topic": Key(_topic, required="the topic the sensor publishes to"),
    "sensors.*.payload.format": Key(
        _choice(*payloads.formats()), required=f"a payload format: {', '.join(payloads.formats())}"
    ),
    "sensors.*.payload.n_channels": Key(_number(1, 1024, "channels", whole=True)),
    "sensors.*.payload.header": Key(_choice("none", "ts_seq"), "none"),
    "sensors.*.payload.scale": Key(_scale),
    "sensors.*.channels": Key(_channels, (0,)),
    "sensors.*.fs_hz": Key(_number(0, 1e7, "Hz", above=True), required="the sampling rate in Hz"),
    "sensors.*.unit": Key(_text("text such as g or m/s^2")),
    "sensors.*.machine": Key(_text(_ID_TEXT, ID)),
    "sensors.*.model": Key(_text("a path"), required="the path of a bundle's folder"),
    "sensors.*.window.n_samples": Key(_number(1, 1e8, "samples", whole=True)),
    "sensors.*.window.hop_samples": Key(_number(1, 1e8, "samples", whole=True)),
    "sensors.*.window.duration_s": Key(_number(0, 1e6, "s", above=True)),
    "sensors.*.window.hop_s": Key(_number(0, 1e6, "s", above=True)),
    "sensors.*.threshold.method": Key(_choice(*thresholds.METHODS)),
    "sensors.*.threshold.false_alarm_rate": Key(_number(1e-6, 0.5, "a window")),
    "sensors.*.threshold.value": Key(_number(0, 1e30, above=True)),
    "sensors.*.false_alarms": Key(_budget),
    "sensors.*.alarm.vote": Key(_vote, (3, 5)),
    "sensors.*.alarm.on_delay_s": Key(_number(0, 1e6, "s"), 0.0),
    "sensors.*.alarm.off_delay_s": Key(_number(0, 1e6, "s"), 0.0),
    "sensors.*.alarm.deadband": Key(_number(0, 0.9, "of the limit"), 0.1),
    "sensors.*.alarm.warning_ratio": Key(_number(0, 1e6, "times the threshold", above=True), 1.0),
    "sensors.*.alarm.alarm_ratio": Key(_number(0, 1e6, "times the threshold", above=True), 1.5),
    "sensors.*.alarm.latching": Key(_boolean, False),
    "sensors.*.alarm.require_ack": Key(_boolean, False),
    "sensors.*.regime.topic": Key(_topic),
    "sensors.*.regime.edges": Key(_edges),
    "sensors.*.regime.max_age_s": Key(_number(0, 1e6, "s", above=True), 60.0),
    "sensors.*.regime.clusters": Key(_number(2, 8, "clusters", whole=True)),
    "sensors.*.silent_after_s": Key(_number(0, 1e6, "s", above=True), 60.0),
    "sensors.*.max_payload_bytes": Key(_number(1, MAX_MQTT_BYTES, "bytes", whole=True), 1 << 20),
    "sensors.*.max_messages_per_s": Key(_number(0, 1e6, "a second", above=True)),
}

#: Ways to say the same thing: a sensor that uses one drops what `defaults` say in the other.
_ALTERNATIVES = (
    ("window", ("n_samples",), ("duration_s",)),
    ("window", ("hop_samples",), ("hop_s",)),
    ("threshold", ("method", "false_alarm_rate"), ("value",)),
)


def load(path: Path, *, secrets: bool = True) -> Config:
    """Read and parse the file; raises ConfigError with every mistake.

    secrets : False reads `${env:X}` and its like as absent, but for keys that must be there (the database, a topic):
              for commands that never connect
    """
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        problem = Problem("file", f"byte {error.start} is not UTF-8", "YAML text in UTF-8")
        raise ConfigError(str(path), [problem]) from None
    except OSError as error:
        raise ConfigError(
            str(path), [Problem("file", error.strerror or "unreadable", "a YAML file")]
        ) from None
    return parse(
        text, path, os.environ, lambda p: p.read_text("utf-8"), socket.gethostname(), secrets=secrets
    )


def parse(
    text: str,
    path: Path,
    env: Mapping[str, str] | None,
    read_file: Callable[[Path], str],
    hostname: str = "agent",
    *,
    secrets: bool = True,
) -> Config:
    """The configuration in `text`; raises one ConfigError with every mistake.

    path      : where the text stands; relative paths resolve from its folder
    env       : for `${env:X}`; None is none, and no secrets
    read_file : for `${file:X}` and `${cred:X}`; its errors (OSError, UnicodeDecodeError) become mistakes
    hostname  : the default of agent.id, made an id
    secrets   : as in `load`
    """
    parser = _Parser(path, env, read_file, secrets and env is not None)
    tree = parser.tree(text)
    parser.stop_if_wrong()
    config = parser.config(tree, hostname, hashlib.sha256(text.encode()).hexdigest())
    parser.stop_if_wrong()
    assert config is not None  # without a mistake there is a configuration
    return config


class _Parser:
    """Collects mistakes while it reads."""

    def __init__(
        self, path: Path, env: Mapping[str, str] | None, read_file: Callable[[Path], str], secrets: bool
    ) -> None:
        self.path, self.env, self.read_file, self.secrets = path, env, read_file, secrets
        self._said: set[Problem] = set()
        self._once: set[int] = set()
        self.problems: list[Problem] = []
        self._nodes = 0
        self.readable: tuple[SensorConfig, ...] = ()

    def stop_if_wrong(self) -> None:
        if self.problems:
            raise ConfigError(str(self.path), self.problems, self.readable)

    def wrong(self, where: str, value: Any, expected: str) -> None:
        problem = Problem(where, _shown(where, value), expected)
        if problem not in self._said:
            self._said.add(problem)
            self.problems.append(problem)

    # -- YAML -> plain values ------------------------------------------------------------------------

    def tree(self, text: str) -> dict[str, Any]:
        """Nested dictionaries, lists and scalars. Scalars follow YAML 1.2: `on`, `no` and `22:30` are
        text and 1e-3 is a number, whatever YAML 1.1 makes of them."""
        expected = "one YAML mapping with agent, mqtt, database, defaults, sensors"
        try:
            node = yaml.compose(text, Loader=yaml.BaseLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "file"
            self.wrong(
                where, error.problem or "a syntax error", "valid YAML: check indentation, colons and quotes"
            )
            return {}
        except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
            # An escape such as "\\UFFFFFFFF" is no character, and PyYAML lets Python's error through.
            what = "too deeply nested" if isinstance(error, RecursionError) else str(error).splitlines()[0]
            self.wrong("file", what, "valid YAML")
            return {}
        if node is None:
            self.wrong("file", "nothing", expected)
            return {}
        try:
            tree = self._plain(node, "", ())
        except RecursionError:
            self.wrong("file", "too deeply nested", expected)
            return {}
        if not isinstance(tree, dict):
            self.wrong("file", f"a {'list' if isinstance(tree, list) else 'plain value'}", expected)
            return {}
        return tree

    def _plain(self, node: Any, where: str, above: tuple[int, ...]) -> Any:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            if self._nodes == MAX_NODES + 1:
                self.wrong("file", "aliases that multiply", f"at most {MAX_NODES} values, aliases counted where they are used")
            return None
        if id(node) in above:
            if id(node) not in self._once:  # however often it is used
                self._once.add(id(node))
                self.wrong(where, "an alias of something that contains it", "values that do not contain themselves")
            return None
        if isinstance(node, yaml.ScalarNode):
            self._characters(where or "file", node.value)
            return node.value if node.style else _scalar(node.value)
        if isinstance(node, yaml.SequenceNode):
            return [self._plain(v, f"{where}[{i}]", (*above, id(node))) for i, v in enumerate(node.value)]
        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.wrong(
                    where or "file", f"a list or mapping as a key in line {line}", "a plain word as a key"
                )
                continue
            key = str(key_node.value)
            if not self._characters(where or "file", key):
                continue
            inner = f"{where}.{key}" if where else key
            if key in result:
                self.wrong(inner, f"the key twice (lines {lines[key]} and {line})", "every key once")
                continue
            lines[key] = line
            result[key] = self._plain(value_node, inner, (*above, id(node)))
        return result

    def _characters(self, where: str, text: str) -> bool:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            self.wrong(where, f"half a character (position {error.start})", "text: write the character itself, not as two \\u escapes")
            return False
        return True

    # -- plain values -> Config ----------------------------------------------------------------------

    def config(self, tree: dict[str, Any], hostname: str, digest: str) -> Config | None:
        top = self.section({k: v for k, v in tree.items() if k not in ("defaults", "sensors")}, "", "")
        agent_id = top.get("agent.id") or _as_id(hostname)
        if agent_id is None:
            self.wrong("agent.id", None, f"{_ID_TEXT}: the host name {hostname!r} has none")
            agent_id = "agent"
        base = top.get("mqtt.base") or f"edge/{agent_id}"
        if base.endswith("/"):
            self.wrong("mqtt.base", base, "a topic without a / at its end")
        mqtt = MqttConfig(
            top.get("mqtt.host", ""),
            top.get("mqtt.port", 0),
            top.get("mqtt.username"),
            top.get("mqtt.password"),
            top.get("mqtt.client_id"),
            top.get("mqtt.protocol", ""),
            self.tls(tree, top),
            base,
            top.get("mqtt.require_subscriber", False),
        )
        # Without secrets a reference reads as nothing.
        if mqtt.password is not None and mqtt.username is None and self.secrets:
            self.wrong("mqtt.username", None, "a name to go with mqtt.password")
        sensors = self.sensors(tree, base)
        key = top.get("bundles.public_key")
        key_file = None if key is None else self.resolve(key)
        store = None if top.get("database") is None else self.resolve(top["database"]).with_name("bundles")
        sensors = {name: replace(s, public_key=key_file, store=store) for name, s in sensors.items()}
        if not any(problem.where.startswith("bundles") for problem in self.problems):
            # Else it is not known whose bundles may be looked into.
            self.readable = tuple(sensors.values())
        self.overlaps(sensors)
        if self.problems:
            return None
        database = self.resolve(top["database"])
        storage = StorageConfig(top["storage.max_mb"], top["storage.scores_days"])
        metrics = MetricsConfig(top["metrics.port"], top["metrics.bind"])
        return Config(self.path, agent_id, mqtt, database, top["health_every_s"], sensors, digest, storage, metrics)

    def tls(self, tree: dict[str, Any], top: dict[str, Any]) -> TlsConfig | None:
        mqtt = tree.get("mqtt")
        if not isinstance(mqtt, dict) or mqtt.get("tls") is None:
            return None
        ca, cert, key = (top.get(f"mqtt.tls.{name}") for name in ("ca", "cert", "key"))
        if cert is not None and key is None:
            self.wrong("mqtt.tls.key", None, "the private key that belongs to mqtt.tls.cert")
        if key is not None and cert is None:
            self.wrong("mqtt.tls.cert", None, "the certificate that belongs to mqtt.tls.key")
        return TlsConfig(*(None if v is None else self.resolve(v) for v in (ca, cert, key)))

    def sensors(self, tree: dict[str, Any], base: str) -> dict[str, SensorConfig]:
        defaults = _spelt_out(tree.get("defaults"))
        self.section(defaults, "sensors.*.", "defaults", partial=True)
        reported = {problem.where for problem in self.problems if problem.where.startswith("defaults.")}
        given = tree.get("sensors")
        if not isinstance(given, dict) or not given:
            self.wrong("sensors", given or None, "a mapping of sensor ids, with at least one sensor")
            return {}
        sensors = {}
        for name, section in given.items():
            where = f"sensors.{name}"
            if not ID.fullmatch(name):
                self.wrong(where, name, _ID_TEXT)
            own = {} if section is None else _spelt_out(section)
            merged = _merge(_without_alternatives(defaults, own), own)
            before = len(self.problems)
            values = self.section(merged, "sensors.*.", where)
            sensor = self.sensor(name, where, values, base)
            # What is wrong in `defaults` is said once, there, not under every sensor.
            self.problems[before:] = [
                p
                for p in self.problems[before:]
                if "defaults" + p.where[len(where) :] not in reported or _has(own, p.where[len(where) + 1 :])
            ]
            if sensor is not None:
                sensors[name] = sensor
        return sensors

    def sensor(self, name: str, where: str, v: dict[str, Any], base: str) -> SensorConfig | None:
        """Checks between keys, on the values that are sound by themselves."""
        before = len(self.problems)
        topic = v.get("topic")
        if topic is not None and (topic == base or topic.startswith(base + "/")):
            self.wrong(
                f"{where}.topic", topic, f"a topic outside {base}/, which is the agent's own (mqtt.base)"
            )
        layout = self.layout(where, v)
        for pair in (("n_samples", "duration_s"), ("hop_samples", "hop_s")):
            if all(v.get(f"window.{key}") is not None for key in pair):
                self.wrong(f"{where}.window", f"{pair[0]} and {pair[1]}", "one of the two")
        value = v.get("threshold.value")
        if value is not None and any(
            v.get(f"threshold.{k}") is not None for k in ("method", "false_alarm_rate")
        ):
            self.wrong(
                f"{where}.threshold", "value and method or false_alarm_rate", "a value, or what to fit"
            )
        regime = self.regime(where, v, base)
        if v.get("false_alarms") is not None and any(
            v.get(f"threshold.{k}") is not None for k in ("value", "method", "false_alarm_rate")
        ):
            self.wrong(f"{where}.false_alarms", str(v["false_alarms"]), "this or a threshold: a budget sets the limit itself")
        warning, alarm = v.get("alarm.warning_ratio"), v.get("alarm.alarm_ratio")
        if warning is not None and alarm is not None and alarm < warning:
            self.wrong(f"{where}.alarm.alarm_ratio", alarm, f"at least warning_ratio ({warning:g})")
        if len(self.problems) > before or layout is None or any(k not in v for k in _SENSOR_KEYS):
            return None
        window = WindowOverride(
            *(v[f"window.{k}"] for k in ("n_samples", "hop_samples", "duration_s", "hop_s"))
        )
        threshold = ThresholdOverride(*(v[f"threshold.{k}"] for k in ("method", "false_alarm_rate", "value")))
        return SensorConfig(
            id=name,
            topic=v["topic"],
            layout=layout,
            channels=v["channels"],
            fs_hz=v["fs_hz"],
            unit=v["unit"],
            machine=v["machine"],
            model=self.resolve(v["model"]),
            window=None if window == WindowOverride() else window,
            threshold=None if threshold == ThresholdOverride() else threshold,
            policy=AlarmPolicy(**{k[6:]: v[k] for k in v if k.startswith("alarm.")}),
            false_alarms=v["false_alarms"],
            silent_after_s=v["silent_after_s"],
            max_payload_bytes=v["max_payload_bytes"],
            regime=regime,
            max_messages_per_s=v["max_messages_per_s"],
        )

    def regime(self, where: str, v: dict[str, Any], base: str) -> regimes.Spec | None:
        topic, edges, clusters = (v.get(f"regime.{key}") for key in ("topic", "edges", "clusters"))
        if topic is None and edges is None and clusters is None:
            return None
        if clusters is not None and (topic is not None or edges is not None):
            self.wrong(f"{where}.regime", "clusters and topic or edges", "a topic with edges, or clusters")
        # What is wrong by itself is missing from v and was said already.
        elif clusters is None and topic is None and "regime.topic" in v:
            self.wrong(f"{where}.regime.topic", None, "the topic of the value that regime.edges divide")
        elif clusters is None and edges is None and "regime.edges" in v:
            self.wrong(f"{where}.regime.edges", None, "a rising list of the values between regimes, such as [600, 1200]")
        if topic is not None and (topic == base or topic.startswith(base + "/") or topic == v.get("topic")):
            self.wrong(f"{where}.regime.topic", topic, f"a topic outside {base}/ that is not the sensor's own")
        return regimes.Spec(topic, edges or (), v.get("regime.max_age_s", 60.0), clusters or 0)

    def layout(self, where: str, v: dict[str, Any]) -> PayloadLayout | None:
        kind, channels = v.get("payload.format"), v.get("channels")
        if kind is None or channels is None or "payload.header" not in v:
            return None
        n_channels = v.get("payload.n_channels") or len(channels)
        if max(channels) >= n_channels:
            self.wrong(
                f"{where}.channels",
                list(channels),
                f"numbers below payload.n_channels ({n_channels}; its default is the number of channels)",
            )
        if v["payload.header"] != "none" and kind not in ("f32le", "i16le"):
            self.wrong(f"{where}.payload.header", v["payload.header"], f"none: {kind} carries its own time")
        if kind == "record_json" and n_channels != 1:
            self.wrong(f"{where}.payload.n_channels", n_channels, "1: record_json carries one channel")
        return PayloadLayout(kind, n_channels, v["payload.header"], v.get("payload.scale"))

    def overlaps(self, sensors: dict[str, SensorConfig]) -> None:
        """Sensors of one topic must read one layout at one rate, and different channels of it."""
        by_topic: dict[str, list[SensorConfig]] = {}
        for sensor in sensors.values():
            for other in by_topic.setdefault(sensor.topic, []):
                where = f"sensors.{sensor.id}"
                if sensor.layout != other.layout:
                    self.wrong(
                        f"{where}.payload", _describe(sensor.layout), _same(other, "payload", other.layout)
                    )
                elif sensor.fs_hz != other.fs_hz:
                    self.wrong(f"{where}.fs_hz", sensor.fs_hz, _same(other, "fs_hz", other.fs_hz))
                elif shared := sorted(set(sensor.channels) & set(other.channels)):
                    self.wrong(
                        f"{where}.topic",
                        sensor.topic,
                        f"a topic of its own: sensors.{other.id} reads channel {shared[0]} of it as well",
                    )
            by_topic[sensor.topic].append(sensor)

    def section(self, value: Any, prefix: str, where: str, *, partial: bool = False) -> dict[str, Any]:
        """Values of all keys below `prefix`, by the rest of their name, defaults filled in.

        A key whose value is wrong is missing from the answer. `partial` demands and fills in nothing.
        """
        found: dict[str, Any] = {}
        self._walk(value, prefix, where, "", found)
        for name, key in KEYS.items():
            if not name.startswith(prefix) or (not prefix and "*" in name) or partial:
                continue
            rest = name[len(prefix) :]
            if rest in found:
                if found[rest] is _BAD:
                    del found[rest]
            elif key.required is not None:
                self.wrong(f"{where}.{rest}" if where else rest, None, key.required)
            else:
                found[rest] = key.default
        return found

    def _walk(self, value: Any, prefix: str, where: str, rest: str, found: dict[str, Any]) -> None:
        here = ".".join(part for part in (where, rest) if part)
        key = KEYS.get(prefix + rest)
        if value is None:
            return  # `key:` with nothing behind it is the same as no key
        if key is not None:
            found[rest] = self._value(key, value, here)
            return
        below = prefix + rest + ("." if rest else "")
        known = sorted(
            {name[len(below) :].split(".")[0] for name in KEYS if name.startswith(below)} - {"sensors"}
        )
        if not isinstance(value, dict):
            self.wrong(here or "file", value, f"a mapping with {', '.join(known)}")
            for name in KEYS:
                if name.startswith(below):
                    found[name[len(prefix) :]] = _BAD
            return
        for name, inner in value.items():
            if name in known:
                self._walk(inner, prefix, where, f"{rest}.{name}" if rest else name, found)
                continue
            candidates = known if here else [*known, "defaults", "sensors"]
            near = difflib.get_close_matches(name.lower(), candidates, 1)
            near += [k for k in candidates if k.startswith(name)]  # fs for fs_hz
            expected = (
                "a known key; the nearest is `" + near[0] + "`" if near else f"one of {', '.join(candidates)}"
            )
            dotted = f"{here}.{name}" if here else name
            hidden = dotted.startswith("mqtt.") or isinstance(inner, (dict, list))
            self.wrong(dotted or "''", _UNKNOWN if hidden else _Unknown(inner), expected)

    def _value(self, key: Key, value: Any, where: str) -> Any:
        meant = value
        if isinstance(value, str) and "${" in value and not key.literal:
            if not self.secrets and key.required is None:
                return key.default
            try:
                meant = _REFERENCE.sub(self._secret, value)
                if "${" in _REFERENCE.sub("", value):
                    raise _Wrong(_REFERENCES)
            except _Wrong as wrong:
                self.wrong(where, value, str(wrong))
                return _BAD
        try:
            try:
                return key.read(meant)
            except _Wrong:
                if meant is value:
                    raise
                return key.read(_scalar(meant))  # a number that came as ${env:PORT}
        except _Wrong as wrong:
            self.wrong(where, value, str(wrong))
            return _BAD

    def _secret(self, match: re.Match[str]) -> str:
        kind, name = match.groups()
        if kind == "env":
            if self.env is None or name not in self.env:
                raise _Wrong(f"the environment variable {name}, which is not set")
            return self.env[name]
        if "\0" in name:
            raise _Wrong("a path without the character NUL")
        file = self._credential(name) if kind == "cred" else self.resolve(name)
        try:
            return self.read_file(file).strip()
        except OSError as error:
            raise _Wrong(f"a readable file {file} ({error.strerror or 'cannot be read'})") from None
        except UnicodeDecodeError:
            raise _Wrong(f"text in UTF-8 in {file}") from None

    def _credential(self, name: str) -> Path:
        if not name or "/" in name or name in (".", ".."):
            raise _Wrong("the plain name of a credential, as in LoadCredential=NAME:PATH")
        folder = (self.env or {}).get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise _Wrong(
                f"the credential {name}, but CREDENTIALS_DIRECTORY is not set: systemd sets it for a service with "
                f"LoadCredential={name}:PATH"
            )
        return Path(folder) / name

    def resolve(self, path: str) -> Path:
        # The home of somebody unknown is left as it stands: whoever opens the file names it.
        return Path(os.path.normpath(self.path.parent / os.path.expanduser(path)))  # noqa: PTH111


class _Unknown:
    """The value of an unknown key, to be shown as such."""

    def __init__(self, value: Any) -> None:
        self.value = value


_BAD = object()
_UNKNOWN = object()
_SENSOR_KEYS = tuple(name.removeprefix("sensors.*.") for name in KEYS if name.startswith("sensors.*."))

_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


def _scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?[0-9]{1,300}", text):
        return int(text)
    if _NUMBER.fullmatch(text):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)", text):
        return -math.inf if text[0] == "-" else math.inf
    if text in (".nan", ".NaN", ".NAN"):
        return math.nan
    return text


def _shown(where: str, value: Any) -> str:
    """A value as an error may show it: short, and never a secret."""
    if value is None:
        return "nothing"
    if value is _UNKNOWN:
        return "an unknown key"
    if isinstance(value, _Unknown):
        hidden = _SECRET_NAME.search(where)
        return "an unknown key" if hidden else f"an unknown key with {_shown(where, value.value)}"
    if _SECRET_NAME.search(where.rsplit(".", 1)[-1]) and not (
        isinstance(value, str) and _REFERENCE.fullmatch(value)
    ):
        return "a value that is not shown"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    text = repr(value) if isinstance(value, (str, list)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _as_id(hostname: str) -> str | None:
    return re.sub(r"[^a-z0-9_-]+", "-", hostname.split(".")[0].lower()).strip("-") or None


def _spelt_out(section: Any) -> Any:
    """`payload: f32le` is short for `payload: {format: f32le}`."""
    if isinstance(section, dict) and isinstance(section.get("payload"), str):
        return {**section, "payload": {"format": section["payload"]}}
    return section


def _merge(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {**under, **{k: _merge(under.get(k), v) if k in under else v for k, v in over.items()}}
    return over


def _without_alternatives(defaults: Any, own: Any) -> Any:
    """`defaults` without what the sensor says in the other way."""
    if not isinstance(defaults, dict) or not isinstance(own, dict):
        return defaults
    result = dict(defaults)
    for section, one, other in _ALTERNATIVES:
        for mine, theirs in ((one, other), (other, one)):
            inner, outer = own.get(section), result.get(section)
            if isinstance(inner, dict) and isinstance(outer, dict) and any(k in inner for k in mine):
                result[section] = {k: v for k, v in outer.items() if k not in theirs}
    for key, instead in (("threshold", "false_alarms"), ("false_alarms", "threshold")):
        if key in own:
            result.pop(instead, None)
    return result


def _has(section: Any, dotted: str) -> bool:
    for part in dotted.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True


def _describe(layout: PayloadLayout) -> str:
    scale = "" if layout.scale is None else f", scale {layout.scale:g}"
    return f"{layout.format}, n_channels {layout.n_channels}, header {layout.header}{scale}"


def _same(other: SensorConfig, what: str, value: PayloadLayout | float) -> str:
    shown = _describe(value) if isinstance(value, PayloadLayout) else f"{value:g}"
    return f"the {what} of sensors.{other.id} ({shown}), which reads the same topic; or another topic"
