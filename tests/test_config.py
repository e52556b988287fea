"""The configuration: what is read, what is refused, and that every mistake is said at once."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bundles import make_indicator_bundle

from edge_agent import config as configuration
from edge_agent import regimes
from edge_agent.alarms import AlarmPolicy
from edge_agent.assemble import assemble, check
from edge_agent.config import KEYS, Config, ThresholdOverride, WindowOverride, load, parse
from edge_agent.errors import ConfigError, Problem
from edge_agent.payloads import PayloadLayout
from edge_agent.thresholds import fit

ROOT = Path(__file__).parent.parent
HERE = Path("/etc/edge/config.yaml")

MINIMAL = """
agent: {id: pi-07}
database: data/edge-agent.db
sensors:
  pump-1-de:
    topic: plant/pump-1/de/waveform
    payload: f32le
    fs_hz: 25600
    model: ../models/pump-ae
"""


def no_file(path: Path) -> str:
    raise FileNotFoundError(2, "No such file or directory")


def read(text: str, **options: Any) -> Config:
    options = {"env": {}, "read_file": no_file, "hostname": "Edge-Box.local", **options}
    return parse(text, HERE, **options)


def mistakes(text: str, **options: Any) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        read(text, **options)
    problems = caught.value.problems
    assert len({p.where for p in problems}) == len(problems), "one mistake was told twice"
    return {p.where: p for p in problems}


def sensor(lines: str, name: str = "s1") -> str:
    """A sound configuration with one sensor, and `lines` added to that sensor."""
    body = "".join(f"    {line}\n" for line in lines.splitlines())
    keys = re.findall(r"^(\w+)\s*:", lines, re.MULTILINE)
    sound = {"topic": "plant/a", "payload": "f32le", "fs_hz": "1000", "model": "m"}
    rest = "".join(f"    {k}: {v}\n" for k, v in sound.items() if k not in keys)
    return f"agent: {{id: a}}\ndatabase: db\nsensors:\n  {name}:\n{rest}{body}"


# -- what is read --------------------------------------------------------------------------------------


def test_minimal_configuration_has_the_defaults_of_the_contract() -> None:
    """A file with only the required keys gives every other key its documented default."""
    c = read(MINIMAL)
    assert c.agent_id == "pi-07"
    assert (c.mqtt.host, c.mqtt.port, c.mqtt.protocol, c.mqtt.base) == ("localhost", 1883, "5", "edge/pi-07")
    assert (c.mqtt.username, c.mqtt.password, c.mqtt.client_id, c.mqtt.tls) == (None, None, None, None)
    assert c.database == Path("/etc/edge/data/edge-agent.db")
    assert c.health_every_s == 60
    s = c.sensors["pump-1-de"]
    assert s.layout == PayloadLayout("f32le", 1, "none", None)
    assert (s.channels, s.fs_hz, s.unit, s.machine) == ((0,), 25600.0, None, None)
    assert s.model == Path("/etc/models/pump-ae")
    assert (s.window, s.threshold, s.policy) == (None, None, AlarmPolicy())
    assert (s.silent_after_s, s.max_payload_bytes) == (60.0, 1048576)


def test_every_key_is_read() -> None:
    """Each key of the reference arrives in its field with its type."""
    c = read(
        """
agent: {id: pi-07}
mqtt:
  {host: broker, port: 8883, username: u, password: p, client_id: me, protocol: "3.1.1", base: site/pi,
   tls: {ca: ca.pem, cert: c.pem, key: /k.pem}}
database: /var/db
health_every_s: 5
sensors:
  s1:
    topic: t/1
    payload: {format: i16le, n_channels: 3, header: ts_seq, scale: 1e-3}
    channels: [2, 0]
    fs_hz: 25.6e3
    unit: g
    machine: pump-1
    model: /m
    window: {n_samples: 8192, hop_samples: 4096}
    threshold: {method: pot, false_alarm_rate: 1e-4}
    alarm: {vote: [2, 7], on_delay_s: 1, off_delay_s: 2, deadband: 0.2, warning_ratio: 1.1, alarm_ratio: 2,
            latching: true, require_ack: yes}
    silent_after_s: 5
    max_payload_bytes: 2000000
"""
    )
    assert (c.mqtt.client_id, c.mqtt.protocol, c.mqtt.base) == ("me", "3.1.1", "site/pi")
    assert c.mqtt.tls == configuration.TlsConfig(
        Path("/etc/edge/ca.pem"), Path("/etc/edge/c.pem"), Path("/k.pem")
    )
    s = c.sensors["s1"]
    assert s.layout == PayloadLayout("i16le", 3, "ts_seq", 0.001)
    assert (s.channels, s.fs_hz, s.unit, s.machine) == ((2, 0), 25600.0, "g", "pump-1")
    assert s.window == WindowOverride(n_samples=8192, hop_samples=4096)
    assert s.threshold == ThresholdOverride("pot", 1e-4)
    assert s.policy == AlarmPolicy((2, 7), 1.0, 2.0, 0.2, 1.1, 2.0, True, True)
    assert (s.silent_after_s, s.max_payload_bytes) == (5.0, 2_000_000)


def test_defaults_are_merged_under_every_sensor() -> None:
    """A sensor's own keys win, deep inside sections, and the other keys of `defaults` stay."""
    c = read(
        """
agent: {id: a}
database: db
defaults: {payload: f32le, fs_hz: 1000, model: m, alarm: {latching: true, vote: [1, 2]}, silent_after_s: 9}
sensors:
  s1: {topic: t/1, alarm: {vote: [4, 6]}, payload: {n_channels: 2}}
  s2: {topic: t/2, silent_after_s: null, payload: i16le}
"""
    )
    assert c.sensors["s1"].policy == AlarmPolicy(vote=(4, 6), latching=True)
    assert c.sensors["s1"].layout == PayloadLayout("f32le", 2)
    assert c.sensors["s2"].policy == AlarmPolicy(vote=(1, 2), latching=True)
    assert c.sensors["s2"].layout == PayloadLayout("i16le", 1)
    assert (c.sensors["s1"].silent_after_s, c.sensors["s2"].silent_after_s) == (9, 60)


def test_a_sensors_alternative_replaces_that_of_the_defaults() -> None:
    """A sensor that sets its limit or window in the other way does not clash with `defaults`."""
    c = read(
        "defaults: {threshold: {method: gamma, false_alarm_rate: 0.01}, window: {n_samples: 8, hop_s: 1}}\n"
        + sensor("threshold: {value: 2}\nwindow: {duration_s: 3}")
    )
    assert c.sensors["s1"].threshold == ThresholdOverride(value=2.0)
    assert c.sensors["s1"].window == WindowOverride(duration_s=3.0, hop_s=1.0)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        (".5", 0.5),
        ("+0.25", 0.25),
        ("'0.5'", None),
        ("0.5s", None),
        ("1_0", None),
    ],
)
def test_numbers_are_what_a_person_means(written: str, meant: float | None) -> None:
    """1e-3 is a number (YAML 1.1 makes text of it); quoted or unit-bearing numbers are not."""
    text = sensor(f"threshold: {{false_alarm_rate: {written}}}")
    if meant is None:
        assert "sensors.s1.threshold.false_alarm_rate" in mistakes(text)
    else:
        found = read(text).sensors["s1"].threshold
        assert found is not None
        assert found.false_alarm_rate == meant


def test_yaml_1_1_traps_are_not_sprung() -> None:
    """`on`, `no` and `1:30` are text where text is meant, and `on` is true where a boolean is."""
    c = read(
        "agent: {id: no}\ndatabase: 1:30\nsensors:\n"
        "  on: {topic: yes, payload: f32le, fs_hz: 010, model: m, unit: off, alarm: {latching: on, require_ack: no}}\n"
    )
    s = c.sensors["on"]
    assert (c.agent_id, c.database.name, s.topic, s.unit) == ("no", "1:30", "yes", "off")
    assert (s.policy.latching, s.policy.require_ack, s.fs_hz) == (True, False, 10.0)


def test_agent_id_is_the_host_name_made_an_id() -> None:
    """Without agent.id the host name stands for it, in small letters and without its domain."""
    assert read(MINIMAL.replace("agent: {id: pi-07}", "")).agent_id == "edge-box"
    assert "agent.id" in mistakes(MINIMAL.replace("agent: {id: pi-07}", ""), hostname="...")


def test_hash_changes_with_the_text() -> None:
    """sha256 tells one configuration from another and is the same for the same text."""
    assert read(MINIMAL).sha256 == read(MINIMAL).sha256 != read(MINIMAL + "# x\n").sha256


# -- secrets -------------------------------------------------------------------------------------------


def test_secrets_come_from_environment_and_files_and_never_show() -> None:
    """${env:X} and ${file:PATH} are filled in, stripped, and stay out of repr."""
    text = "mqtt: {username: '${env:WHO}', password: '${file:secrets/pw}', port: '${env:PORT}'}\n" + MINIMAL
    asked = []

    def read_file(path: Path) -> str:
        asked.append(path)
        return " hunter2 \n"

    c = read(text, env={"WHO": "agent", "PORT": "2883"}, read_file=read_file)
    assert (c.mqtt.username, c.mqtt.password, c.mqtt.port) == ("agent", "hunter2", 2883)
    assert asked == [Path("/etc/edge/secrets/pw")]
    assert "hunter2" not in repr(c)


@pytest.mark.parametrize(
    ("mqtt", "env"),
    [
        ("password: [hunter2]", {}),
        ("password: 123450", {}),
        ("pasword: hunter2", {}),
        ("port: '${env:PW}'", {"PW": "hunter2"}),
        ("base: '${env:PW}/#'", {"PW": "hunter2"}),
        ("passwords: {a: hunter2}", {}),
        ("password: hunter2\n  password: hunter2", {}),
    ],
)
def test_a_wrong_secret_is_not_printed(mqtt: str, env: dict[str, str]) -> None:
    """No mistake about a secret, or about a key that may be meant as one, shows its value."""
    with pytest.raises(ConfigError) as caught:
        read(f"mqtt:\n  {mqtt}\n{MINIMAL}", env=env)
    assert "hunter2" not in str(caught.value)
    assert "123450" not in str(caught.value)


def test_missing_secrets_are_mistakes() -> None:
    """An unset variable, an unreadable file and a misspelt reference are told by key, all at once."""
    text = "mqtt: {username: '${ENV:X}', password: '${env:NOT_SET}', client_id: '${file:gone}'}\n" + MINIMAL
    found = mistakes(text)
    assert "NOT_SET" in found["mqtt.password"].expected
    assert "/etc/edge/gone" in found["mqtt.client_id"].expected
    assert "${env:NAME}" in found["mqtt.username"].expected


def test_commands_that_never_connect_need_no_secret() -> None:
    """Without an environment the references stay unread and the rest of the file is checked as ever."""
    c = read("mqtt: {username: u, password: '${env:NOT_SET}', port: '${env:PORT}'}\n" + MINIMAL, env=None)
    assert (c.mqtt.password, c.mqtt.port) == (None, 1883)


# -- mistakes ------------------------------------------------------------------------------------------


def test_all_mistakes_are_told_at_once() -> None:
    """Mistakes of every kind, in several sensors, come in one error with file, key, value and expectation."""
    found = mistakes(
        """
agent: {id: Pi 7}
mqtt: {port: 70000, protcol: "5"}
health_every_s: 0.5
defaults: {alarm: {deadband: 2}}
sensors:
  s1: {topic: a/+/b, payload: f32le, fs_hz: 0, model: m}
  s2: {topic: t/2, payload: {format: f16le}, model: m, alarm: {vote: [6, 5]}}
"""
    )
    assert set(found) == {
        "agent.id",
        "mqtt.port",
        "mqtt.protcol",
        "database",
        "health_every_s",
        "defaults.alarm.deadband",
        "sensors.s1.topic",
        "sensors.s1.fs_hz",
        "sensors.s2.payload.format",
        "sensors.s2.fs_hz",
        "sensors.s2.alarm.vote",
    }
    assert "70000" in found["mqtt.port"].value
    assert "65535" in found["mqtt.port"].expected
    assert "`protocol`" in found["mqtt.protcol"].expected
    assert "f32le" in found["sensors.s2.payload.format"].expected
    assert found["database"].value == "nothing"


@pytest.mark.parametrize(
    ("lines", "where"),
    [
        ("fs_hz: fast", "fs_hz"),
        ("fs_hz: 1e8", "fs_hz"),
        ("fs_hz: .nan", "fs_hz"),
        ("fs_hz: .inf", "fs_hz"),
        ("fs_hz: true", "fs_hz"),
        ("fs_hz: [1000]", "fs_hz"),
        ("fs_hz:", "fs_hz"),
        ("topic: ''", "topic"),
        ("topic: 5", "topic"),
        ("topic: a/#", "topic"),
        ("topic: $SYS/x", "topic"),
        ("topic: edge/a/s/x", "topic"),
        ("topic: edge/a", "topic"),
        ("topic: {a: b}", "topic"),
        ("payload: {n_channels: 2}", "payload.format"),
        ("payload: [f32le]", "payload"),
        ("payload: {format: f32le, n_channels: 0}", "payload.n_channels"),
        ("payload: {format: f32le, n_channels: 1.5}", "payload.n_channels"),
        ("payload: {format: f32le, header: seq}", "payload.header"),
        ("payload: {format: json, header: ts_seq}", "payload.header"),
        ("payload: {format: f32le, scale: 0}", "payload.scale"),
        ("payload: {format: record_json, n_channels: 2}", "payload.n_channels"),
        ("channels: 0", "channels"),
        ("channels: []", "channels"),
        ("channels: [0, 0]", "channels"),
        ("channels: [-1]", "channels"),
        ("channels: [true]", "channels"),
        ("channels: [1]", "channels"),
        ("unit: 5", "unit"),
        ("machine: Pump 1", "machine"),
        ("model: ''", "model"),
        ("window: {n_samples: 0}", "window.n_samples"),
        ("window: {n_samples: 8, duration_s: 1}", "window"),
        ("window: 8192", "window"),
        ("threshold: {method: gauss}", "threshold.method"),
        ("threshold: {false_alarm_rate: 0}", "threshold.false_alarm_rate"),
        ("threshold: {false_alarm_rate: 0.6}", "threshold.false_alarm_rate"),
        ("threshold: {value: -1}", "threshold.value"),
        ("threshold: {value: 1, method: gamma}", "threshold"),
        ("threshold: 0.3", "threshold"),
        ("alarm: {vote: 3}", "alarm.vote"),
        ("alarm: {vote: [0, 5]}", "alarm.vote"),
        ("alarm: {vote: [1, 101]}", "alarm.vote"),
        ("alarm: {on_delay_s: -1}", "alarm.on_delay_s"),
        ("alarm: {off_delay_s: 2e6}", "alarm.off_delay_s"),
        ("alarm: {deadband: 0.95}", "alarm.deadband"),
        ("alarm: {warning_ratio: 0}", "alarm.warning_ratio"),
        ("alarm: {warning_ratio: 2}", "alarm.alarm_ratio"),
        ("alarm: {latching: maybe}", "alarm.latching"),
        ("silent_after_s: 0", "silent_after_s"),
        ("max_payload_bytes: 0", "max_payload_bytes"),
        ("false_alarms: seldom", "false_alarms"),
        ("false_alarms: 0 per 30 d", "false_alarms"),
        ("alram: {vote: [1, 2]}", "alram"),
    ],
)
def test_a_bad_value_is_told_by_its_key(lines: str, where: str) -> None:
    """One wrong value gives exactly one mistake, at its dotted key."""
    assert list(mistakes(sensor(lines))) == [f"sensors.s1.{where}"]


@pytest.mark.parametrize(
    ("text", "where", "word"),
    [
        ("", "file", "nothing"),
        ("# only a comment\n", "file", "nothing"),
        ("- a\n- b\n", "file", "list"),
        ("just words", "file", "plain value"),
        ("agent: {id: a\n", "line 2", "expected"),
        ("a: b: c\n", "line 1", "mapping values"),
        ("a: 1\n---\nb: 2\n", "line 2", "document"),
        ("agent: {id: a}\nagent: {id: b}\n", "agent", "lines 1 and 2"),
        ("mqtt: {port: 1, port: 2}\n", "mqtt.port", "twice"),
        ("[a]: b\n", "file", "key in line 1"),
        ("a: &x {b: *x}\n", "a.b", "contains it"),
        ("a: \x07\n", "file", "special characters"),
        ("a: " + "[" * 5000, "file", "nested"),
    ],
)
def test_what_is_not_a_sound_yaml_mapping_is_refused(text: str, where: str, word: str) -> None:
    """Syntax errors give line and column, duplicate keys both lines; nothing raises but ConfigError."""
    found = mistakes(text)
    (problem,) = found.values()
    assert problem.where.startswith(where)
    assert word in problem.value


@pytest.mark.parametrize("sensors", ["", "sensors:\n", "sensors: {}\n", "sensors: [a]\n", "sensors: 5\n"])
def test_no_sensors_is_a_mistake(sensors: str) -> None:
    """A configuration without a sensor would watch nothing, so it is refused."""
    assert list(mistakes(f"agent: {{id: a}}\ndatabase: db\n{sensors}")) == ["sensors"]


def test_a_sensor_id_must_be_an_id() -> None:
    """Ids stand in topics and tables, so capitals, blanks and slashes are refused."""
    assert list(mistakes(sensor("", name="Pump 1"))) == ["sensors.Pump 1"]


def test_a_mistake_in_defaults_is_told_once() -> None:
    """What is wrong in `defaults` is reported there and not again under each sensor."""
    text = "defaults: {alarm: {vote: [9, 5]}, colour: red}\n" + sensor("")
    assert set(mistakes(text)) == {"defaults.alarm.vote", "defaults.colour"}


def test_nearest_known_key_is_named_at_every_level() -> None:
    """Misspelt keys at the top, in a section and in a sensor each name the key that was meant."""
    text = "agnet: {id: a}\ndatabase: db\nsensors: {s1: {topic: t, payload: f32le, fs: 1, fs_hz: 1, modle: m, model: m}}"
    found = mistakes(text)
    assert "`agent`" in found["agnet"].expected
    assert "`fs_hz`" in found["sensors.s1.fs"].expected
    assert "`model`" in found["sensors.s1.modle"].expected


def two(first: str, second: str) -> str:
    base = "fs_hz: 1000, model: m, topic: t"
    return f"agent: {{id: x}}\ndatabase: db\nsensors:\n  a: {{{base}, {first}}}\n  b: {{{base}, {second}}}\n"


def test_sensors_may_share_a_topic_with_different_channels() -> None:
    """Two sensors that read different channels of one message are no overlap."""
    payload = "payload: {format: f32le, n_channels: 2}"
    c = read(two(f"{payload}, channels: [0]", f"{payload}, channels: [1]"))
    assert c.sensors["a"].topic == c.sensors["b"].topic


@pytest.mark.parametrize(
    ("second", "where"),
    [
        ("payload: {format: f32le, n_channels: 2}, channels: [1, 0]", "sensors.b.topic"),
        ("payload: {format: i16le, n_channels: 2}, channels: [1]", "sensors.b.payload"),
        ("payload: {format: f32le, n_channels: 3}, channels: [1]", "sensors.b.payload"),
    ],
)
def test_any_other_overlap_names_both_sensors(second: str, where: str) -> None:
    """A shared topic with a shared channel or another layout is refused, naming the two sensors."""
    found = mistakes(two("payload: {format: f32le, n_channels: 2}, channels: [0]", second))
    assert list(found) == [where]
    assert "sensors.a" in found[where].expected


def test_a_shared_topic_has_one_rate() -> None:
    """One message cannot have two sampling rates."""
    payload = "payload: {format: f32le, n_channels: 2}"
    text = two(f"{payload}, channels: [0]", f"{payload}, channels: [1]")
    text = text[: text.rindex("1000")] + "2000" + text[text.rindex("1000") + 4 :]
    assert list(mistakes(text)) == ["sensors.b.fs_hz"]


def test_an_unreadable_file_is_a_configuration_error(tmp_path: Path) -> None:
    """A missing file, a folder and bytes that are not UTF-8 are told like any mistake."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"agent: {id: a}\n# caf\xe9\n")
    for path in (tmp_path / "gone.yaml", tmp_path, latin):
        with pytest.raises(ConfigError, match="file: got") as caught:
            load(path)
        assert str(path) in str(caught.value)


# -- assembly ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "rms"
    make_indicator_bundle(path, fs_hz=1000.0, n_samples=256, unit="g")
    return path


def configured(tmp_path: Path, sensors: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(
        f"agent: {{id: a}}\ndatabase: db\ndefaults: {{payload: f32le, fs_hz: 1000}}\nsensors:\n{sensors}"
    )
    return path


def test_pipelines_carry_the_bundles_and_the_sensors_settings(tmp_path: Path, bundle_path: Path) -> None:
    """Hop, limit and policy are the sensor's where it sets them, else the bundle's; the model is shared."""
    path = configured(
        tmp_path,
        f"  a: {{topic: t/a, model: {bundle_path}}}\n"
        f"  b: {{topic: t/b, model: {bundle_path}, machine: pump-1, window: {{hop_s: 0.1, duration_s: 0.256}},\n"
        "       threshold: {method: percentile, false_alarm_rate: 0.1}, alarm: {vote: [1, 1]}, silent_after_s: 7}\n"
        f"  c: {{topic: t/c, model: {bundle_path}, threshold: {{value: 2.5}}}}\n",
    )
    pipelines = assemble(load(path))
    a, b, c = pipelines["a"], pipelines["b"], pipelines["c"]
    assert a.judge is b.judge is c.judge
    assert (a.window.n_samples, a.window.hop_samples, a.identity.limit_source) == (256, 256, "bundle")
    assert (b.window.hop_samples, b.window.silent_after_s, b.policy.vote) == (100, 7.0, (1, 1))
    assert (b.identity.limit_source, b.identity.machine, b.threshold.method) == (
        "config",
        "pump-1",
        "percentile",
    )
    assert b.threshold.value == pytest.approx(a.threshold.value, rel=0.2)
    assert (c.threshold.value, c.threshold.method, c.threshold.false_alarm_rate) == (2.5, "value", None)


def test_a_limit_that_says_what_the_bundle_says_is_the_bundles(tmp_path: Path, bundle_path: Path) -> None:
    """Asking for the bundle's own method and rate does not fit anything again; half of it keeps the rest."""
    path = configured(
        tmp_path,
        f"  a: {{topic: t/a, model: {bundle_path}, threshold: {{method: gamma, false_alarm_rate: 1e-4}}}}\n"
        f"  b: {{topic: t/b, model: {bundle_path}, threshold: {{false_alarm_rate: 1e-2}}}}\n",
    )
    pipelines = assemble(load(path))
    assert pipelines["a"].identity.limit_source == "bundle"
    assert pipelines["b"].threshold.method == "gamma"
    assert pipelines["b"].threshold.value < pipelines["a"].threshold.value


def test_every_sensors_bundle_problem_is_told_at_once(tmp_path: Path, bundle_path: Path) -> None:
    """Missing bundles, wrong rates, channels, windows, units and unfit limits come in one error."""
    bad = tmp_path / "bad"
    make_indicator_bundle(bad)
    (bad / "calibration.npz").write_bytes(b"cut off")
    path = configured(
        tmp_path,
        f"  gone: {{topic: t/1, model: {tmp_path / 'gone'}}}\n"
        f"  hash: {{topic: t/2, model: {bad}}}\n"
        f"  rate: {{topic: t/3, model: {bundle_path}, fs_hz: 2000}}\n"
        f"  channels: {{topic: t/4, model: {bundle_path}, channels: [0, 1]}}\n"
        f"  window: {{topic: t/5, model: {bundle_path}, window: {{n_samples: 512}}}}\n"
        f"  duration: {{topic: t/6, model: {bundle_path}, window: {{duration_s: 10}}}}\n"
        f"  unit: {{topic: t/7, model: {bundle_path}, unit: m/s^2}}\n"
        f"  well: {{topic: t/8, model: {bundle_path}, unit: g}}\n",
    )
    problems = {p.where: p for p in check(path)}
    assert set(problems) == {
        "sensors.gone.model",
        "sensors.hash.model",
        "sensors.rate.fs_hz",
        "sensors.channels.channels",
        "sensors.window.window.n_samples",
        "sensors.duration.window.duration_s",
        "sensors.unit.unit",
    }
    assert "sha256" in problems["sensors.hash.model"].expected
    assert problems["sensors.rate.fs_hz"].expected.startswith("1000, the rate ")
    assert "256" in problems["sensors.window.window.n_samples"].expected


def test_a_limit_the_calibration_cannot_carry_is_a_mistake(tmp_path: Path, bundle_path: Path) -> None:
    """A re-fit that the calibration scores refuse is reported at the sensor's threshold."""
    from edge_agent import assemble as assembly
    from edge_agent import bundle as bundles

    few = bundles.load(bundle_path)
    few = replace(few, calibration=few.calibration[:20])
    problems: list[Problem] = []
    kept, source = assembly._threshold("sensors.a", ThresholdOverride("pot", 1e-3), few, problems)
    assert [p.where for p in problems] == ["sensors.a.threshold"]
    assert (kept, source) == (few.threshold, "bundle")
    with pytest.raises(ValueError, match="above the 90th percentile"):
        fit(few.calibration, "pot", 1e-3)


def test_check_reports_configuration_mistakes_and_nothing_where_all_is_well(
    tmp_path: Path, bundle_path: Path
) -> None:
    """`check` is empty for a sound file and holds the parser's mistakes for another."""
    assert check(configured(tmp_path, f"  a: {{topic: t/a, model: {bundle_path}}}\n")) == ()
    assert [p.where for p in check(configured(tmp_path, "  a: {topic: t/a, model: 5}\n"))] == [
        "sensors.a.model"
    ]


# -- the sample and the reference ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.yaml", "deploy/edge-agent.example.yaml"])
def test_the_sample_configurations_load(name: str) -> None:
    """config.yaml at the top of the repository, and the one that install.sh puts down, are sound as they stand."""
    assert load(ROOT / name, secrets=False).sensors


def test_the_sample_configuration_names_every_key() -> None:
    """Every key of the code appears in the sample, live or in a comment."""
    text = (ROOT / "config.yaml").read_text("utf-8")
    missing = [
        name
        for name in KEYS
        if not re.search(rf"\b{re.escape(name.rsplit('.', 1)[1] if '.' in name else name)}:", text)
    ]
    assert missing == []


def test_the_sample_configuration_assembles() -> None:
    """The sample's bundles exist and fit its sensors."""
    c = load(ROOT / "config.yaml", secrets=False)
    absent = [str(s.model) for s in c.sensors.values() if not s.model.is_dir()]
    if absent:
        pytest.skip(f"bundles not there: {', '.join(absent)}")
    assert set(assemble(c)) == set(c.sensors)


def test_the_reference_lists_exactly_the_keys_of_the_code() -> None:
    """docs/configuration.md has one table row for every key, and none for a key that is not there."""
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    documented = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert sorted(documented) == sorted(KEYS)


def test_the_example_in_the_reference_is_sound() -> None:
    """The YAML block of docs/configuration.md parses as it is printed."""
    text = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    block = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0]
    assert read(block, env={"MQTT_PASSWORD": "x"}).sensors["pump-1-de"].policy.latching


def test_mistakes_of_the_file_and_of_its_bundles_come_together(tmp_path: Path) -> None:
    """A misspelt key and a missing bundle, in one sensor or two, are one report."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "database: a.db\nsensors:\n"
        "  a: {topic: x/a, payload: f32le, fs_hz: 1000, model: nowhere, alarm: {vot: [2, 3]}}\n"
        "  b: {topic: x/b, payload: f32le, fs_hz: 1000, model: nowhere-else}\n"
    )
    assert [p.where for p in check(path)] == ["sensors.a.alarm.vot", "sensors.a.model", "sensors.b.model"]


def test_a_regime_is_a_topic_with_edges_or_clusters() -> None:
    """Either way arrives typed; without a word of it there is none."""
    assert read(sensor("")).sensors["s1"].regime is None
    found = read(sensor("regime: {topic: plant/rpm, edges: [600, 1.2e3]}")).sensors["s1"]
    assert found.regime == regimes.Spec("plant/rpm", (600.0, 1200.0), 60.0)
    assert found.regime_topic == "plant/rpm"
    assert read(sensor("regime: {clusters: 3}")).sensors["s1"].regime == regimes.Spec(clusters=3)


@pytest.mark.parametrize(
    ("regime", "where"),
    [
        ("{topic: plant/rpm}", "regime.edges"),
        ("{edges: [600]}", "regime.topic"),
        ("{topic: plant/rpm, edges: [900, 600]}", "regime.edges"),
        ("{topic: plant/rpm, edges: []}", "regime.edges"),
        ("{topic: plant/rpm, edges: [.nan]}", "regime.edges"),
        ("{topic: plant/a, edges: [600]}", "regime.topic"),
        ("{topic: edge/a/rpm, edges: [600]}", "regime.topic"),
        ("{topic: plant/rpm, edges: [600], clusters: 2}", "regime"),
        ("{clusters: 1}", "regime.clusters"),
    ],
)
def test_half_a_regime_is_a_mistake(regime: str, where: str) -> None:
    """A topic without edges, edges that fall, the agent's own topic: each is named."""
    assert f"sensors.s1.{where}" in mistakes(sensor(f"regime: {regime}"))
