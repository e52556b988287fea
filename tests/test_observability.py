"""Metrics, the doctor and the support archive: what they tell is so, and no secret leaves."""

from __future__ import annotations

import base64
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from agents import Agent, message, write_plant
from bundles import make_indicator_bundle
from certificates import issue
from conftest import Broker, Listener, free_port, needs_mosquitto, until

from edge_agent import cli, config, doctor, metrics, support
from edge_agent.store import Store

Listen = Callable[..., Listener]
VITALS: dict[str, Any] = {"agent": "t", "version": "1", "uptime_s": 3.5, "windows": {"a": 7}, "drops": {"a": {"late": 2}}}


def scrape(port: int) -> dict[str, float]:
    """Line of the exposition without its value -> value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}


# ---------------------------------------------------------------- metrics


def test_the_metrics_tell_what_health_tells(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """After ten windows of which the last are loud and one message that is none, an HTTP GET gives the counts of `health`,
    the alarm's state and the last ratio; after the stop nothing listens there."""
    port = free_port()
    path = write_plant(tmp_path, broker.port, metrics={"port": port})
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for seq in range(10):
            ear.publish("plant/a", message(seq, 1.0 if seq < 4 else 1.5))
        ear.publish("plant/a", "?")
        ear.wait("edge/t/s/a/event")
        until(lambda: agent.daemon.vitals()["drops"], what="the drop")
        seen = scrape(port)
        last = json.loads(ear.wait("edge/t/s/a/score", 10)[-1])
        health = until(lambda: [h for h in ear.json("edge/t/health") if h["windows"] == {"a": 10} and h["drops"]])[0]
    assert seen['edge_agent_info{agent="t",version="0.1.0"}'] == 1.0
    assert seen['edge_agent_windows_total{sensor="a"}'] == health["windows"]["a"] == 10
    assert seen['edge_agent_messages_dropped_total{reason="undecodable",sensor="a"}'] == health["drops"]["a"]["undecodable"] == 1
    assert seen['edge_agent_alarm_state{sensor="a",state="UNACK"}'] == 1.0
    assert seen['edge_agent_sensor_status{sensor="a",status="online"}'] == 1.0
    assert seen['edge_agent_score_ratio{sensor="a"}'] == pytest.approx(last["ratio"], rel=1e-4)
    assert seen["edge_agent_broker_connected"] == 1.0
    assert seen["edge_agent_signal_seconds_total"] == pytest.approx(2.56)
    assert 0.0 < seen["edge_agent_busy_seconds_total"] < 10.0
    with pytest.raises(OSError, match="refused"):
        scrape(port)


def test_work_is_counted_up_and_not_taken_away_by_health(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Health asks every second what was done since; the counters of the metrics go on counting from the start."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for seq in range(4):
            ear.publish("plant/a", message(seq))
        ear.wait("edge/t/s/a/score", 4)
        n = len(ear.json("edge/t/health"))
        until(lambda: len(ear.json("edge/t/health")) >= n + 2, what="two more health messages")
        assert agent.daemon.vitals()["signal_s"] == pytest.approx(4 * 0.256)
    assert ear.json("edge/t/health")[-1]["load"] < 0.5


def test_what_is_not_known_has_no_line() -> None:
    """A vital that is absent or None gives no family; a counter's name and a gauge's type are as Prometheus wants them."""
    told = {name: (kind, labels, rows) for name, _, kind, labels, rows in metrics.families({**VITALS, "clock_synced": None})}
    assert told == {
        "edge_agent_info": ("gauge", ("agent", "version"), [(("t", "1"), 1.0)]),
        "edge_agent_uptime_seconds": ("gauge", (), [((), 3.5)]),
        "edge_agent_windows_total": ("counter", ("sensor",), [(("a",), 7.0)]),
        "edge_agent_messages_dropped_total": ("counter", ("sensor", "reason"), [(("a", "late"), 2.0)]),
    }


def test_a_taken_port_costs_the_metrics_only(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another program has the port, one line says so and what to do, and the agent scores as ever."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        path = write_plant(tmp_path, broker.port, metrics={"port": other.getsockname()[1]})
        ear = listen("edge/#")
        with Agent(path):
            ear.wait("edge/t/status")
            ear.publish("plant/a", message(0))
            ear.wait("edge/t/s/a/score")
    assert [r for r in caplog.records if "choose another metrics.port" in r.getMessage()]


def test_without_a_port_the_library_is_not_even_loaded() -> None:
    """An agent whose configuration has no `metrics.port` imports neither prometheus_client nor an HTTP server."""
    code = (
        "import sys\nfrom edge_agent import cli, daemon, metrics, config\n"
        "assert not metrics.Exporter(config.MetricsConfig(), dict).start()\n"
        "print([m for m in ('prometheus_client', 'http.server', 'wsgiref') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("bind", ["localhost", "", "300.0.0.1", 7])
def test_only_an_address_can_be_bound(tmp_path: Path, bind: object) -> None:
    """A name could turn out to be another machine's; it is refused with an example."""
    path = write_plant(tmp_path, 1, metrics={"port": 9464, "bind": bind})
    with pytest.raises(config.ConfigError, match=r"such as 127\.0\.0\.1"):
        config.load(path)


# ---------------------------------------------------------------- doctor


def verdicts(path: Path, listen_s: float = 0.3) -> dict[str, doctor.Check]:
    """All checks by name."""
    return {check.name: check for check in doctor.examine(path, listen_s)}


def test_the_doctor_finds_nothing_wrong_with_a_well_plant(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """With the agent running and its sensor speaking in the present, every check but the machine's own clock is well."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    t0 = time.time() - 2.0
    with Agent(path):
        ear.wait("edge/t/status")
        ear.publish("plant/a", message(0, t0=t0))
        until(lambda: rows_of(tmp_path), what="the first commit")
        found = {}
        checks = doctor.examine(path, 1.0)
        for check in checks:
            found[check.name] = check
            if check.name == "broker":
                for seq in range(1, 6):
                    ear.publish("plant/a", message(seq, t0=t0))
    found.pop("clock")
    assert {name: c.verdict for name, c in found.items()} == dict.fromkeys(
        ("configuration", "bundle of a", "disk", "database", "outbox", "agent", "broker", "agent at the broker", "sensor a"), "well"
    )
    assert "1000 samples/s by their times" in found["sensor a"].found
    assert not any(c.do for c in found.values())


def rows_of(folder: Path) -> bool:
    """Whether the agent has stored a state."""
    with sqlite3.connect(f"file:{folder / 'agent.db'}?mode=ro", uri=True) as db:
        return bool(db.execute("SELECT count(*) FROM pipeline_state").fetchone()[0])


def publishing(broker: Broker, listen: Listen, path: Path, payloads: list[bytes]) -> doctor.Check:
    """What the doctor says of sensor a while these messages come."""
    ear = listen("none")
    for check in doctor.examine(path, 0.5):
        if check.name == "broker":
            for payload in payloads:
                ear.publish("plant/a", payload)
        if check.name == "sensor a":
            return check
    raise AssertionError("the sensor was not looked at")


def test_the_doctor_names_a_sensor_of_another_rate(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Messages whose times say 500 samples/s where fs_hz is 1000 are wrong, with both numbers; every other one lost looks so."""
    path = write_plant(tmp_path, broker.port)
    t0 = time.time() - 5.0
    check = publishing(broker, listen, path, [message(seq, t0=t0) for seq in range(0, 12, 2)])
    assert (check.verdict, "500 samples/s" in check.found, "fs_hz is 1000" in check.found) == ("wrong", True, True)


def test_the_doctor_names_messages_that_cannot_be_decoded(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A payload of another format is wrong with the decoder's own words, and points at `payload`."""
    check = publishing(broker, listen, write_plant(tmp_path, broker.port), [message(0), b"{}"])
    assert check.verdict == "wrong"
    assert "1 of 2 messages cannot be used: undecodable" in check.found
    assert "`payload`" in check.do


def test_the_doctor_tells_of_a_clock_that_differs(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """A sensor whose times lie an hour back is noted with the difference."""
    t0 = time.time() - 3600.0
    check = publishing(broker, listen, write_plant(tmp_path, broker.port), [message(s, t0=t0) for s in range(3)])
    assert check.verdict == "note"
    assert "its clock is 3" in check.found


def test_without_a_broker_the_rest_is_looked_at_all_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing listens at the broker's port: that check is wrong and says what to do, the sensors are skipped, exit code 1."""
    path = write_plant(tmp_path, free_port())
    assert cli.main(["doctor", "-c", str(path), "--for", "0.1", "--json"]) == 1
    found = {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["broker"]["verdict"] == "wrong"
    assert "start the broker" in found["broker"]["found"]
    assert found["sensor a"]["verdict"] == "skipped"
    assert found["bundle of a"]["verdict"] == "well"
    assert found["agent"]["verdict"] == "wrong"


def test_the_doctor_foresees_an_alarm_that_will_not_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A steady level whose healthy windows all lie above the return is noted with the deadband to set; set, it is not."""
    make_indicator_bundle(tmp_path / "steady", n_samples=8192)
    path = write_plant(tmp_path, free_port(), {"a": {"model": str(tmp_path / "steady")}})
    cli.main(["doctor", "-c", str(path), "--for", "0.1", "--json"])
    found = {row["check"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert found["alarm of a"]["verdict"] == "note"
    mend = re.fullmatch(r"set sensors\.a\.alarm\.deadband to (0\.\d+)", found["alarm of a"]["do"])
    assert mend is not None
    alarm = {"alarm": {"deadband": float(mend[1])}}
    path = write_plant(tmp_path, free_port(), {"a": {"model": str(tmp_path / "steady"), **alarm}})
    cli.main(["doctor", "-c", str(path), "--for", "0.1", "--json"])
    assert "alarm of a" not in capsys.readouterr().out


def test_every_mistake_of_the_configuration_is_a_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two mistakes are two wrong checks, each with what stands there and what to write; exit code 1."""
    path = write_plant(tmp_path, 1883, {"a": {"fs_hz": -1, "topic": "x/#"}})
    assert cli.main(["doctor", "-c", str(path)]) == 1
    said = capsys.readouterr().out
    assert said.count("wrong ") == 2
    assert "-> write a literal topic" in said


def test_a_secret_that_only_the_service_can_read_costs_the_broker_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a shell without CREDENTIALS_DIRECTORY the password is a mistake, and bundles, disk and database are looked at."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    found = verdicts(write_plant(tmp_path, free_port(), mqtt={"username": "u", "password": "${cred:mqtt}"}))
    assert (found["configuration"].verdict, found["broker"].verdict, found["bundle of a"].verdict) == ("wrong", "skipped", "well")
    assert "LoadCredential" in found["configuration"].do


def test_a_full_disk_is_wrong_and_a_nearly_full_one_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10 MiB free is wrong, 100 MiB a note, 1 GiB well."""
    usage = namedtuple("usage", "total used free")
    said = []
    for free in (10 << 20, 100 << 20, 1 << 30):
        monkeypatch.setattr(shutil, "disk_usage", lambda _p, free=free: usage(1 << 31, 0, free))
        said.append(doctor._disk(tmp_path / "agent.db").verdict)
    assert said == ["wrong", "note", "well"]


@pytest.mark.parametrize("damage", ["random", "version"])
def test_a_database_that_cannot_be_used_is_wrong(tmp_path: Path, damage: str) -> None:
    """Overwritten pages, and a schema of another version, are each told with what to do."""
    path = write_plant(tmp_path, free_port())
    Store.open(tmp_path / "agent.db").close()
    if damage == "version":
        with sqlite3.connect(tmp_path / "agent.db") as db:
            db.execute("UPDATE schema_version SET version = 99")
    else:
        with (tmp_path / "agent.db").open("r+b") as file:
            file.seek(2048)
            file.write(b"\xa5" * 8192)
    check = verdicts(path)["database"]
    assert check.verdict == "wrong"
    assert check.do


def test_a_readable_password_is_noted(tmp_path: Path) -> None:
    """A password in a configuration that everybody may read is a note; with mode 640 it is well."""
    path = write_plant(tmp_path, free_port(), mqtt={"username": "u", "password": "hunter22"})
    path.chmod(0o644)
    assert verdicts(path)["configuration"].verdict == "note"
    path.chmod(0o640)
    assert verdicts(path)["configuration"].verdict == "well"


@pytest.mark.parametrize(
    ("chunks", "rate"),
    [
        ([(0.0, 10.0, 100), (1.0, 11.0, 100), (2.0, 12.0, 999)], 100.0),
        ([(float(i), None, 50) for i in range(5)], 50.0),
        ([(0.0, None, 50), (1.0, None, 50)], None),
        ([(0.0, 1.0, 50)], None),
        ([(0.0, 5.0, 50), (0.1, 5.0, 50)], None),
    ],
)
def test_a_rate_is_told_only_where_it_can_be(chunks: list[tuple[float, float | None, int]], rate: float | None) -> None:
    """100 samples a second by the messages' times; by arrival only from five messages on; never from one, or two at once."""
    assert doctor._rate(chunks)[0] == rate


# ---------------------------------------------------------------- support

SECRETS = {
    "literal": "literal-Pa55 wörd/+=", "env": "env-s3cr3t-9Q", "file": "file-s3cr3t-7W\nsecond-line-5T", "cred": "cred-s3cr3t-1Z",
    "unknown": "unknown-key-2X", "comment": "comment-s3cr3t-4V", "log": "log-only-8U", "bearer": "bearer-only-6Y",
    "url": "url-only-3K", "pem": "MIIEvQIBADANBgkqhkiG9w0",
}  # fmt: skip


def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A configuration, a database and a log with every secret of SECRETS in each place where one may come to stand."""
    monkeypatch.setenv("MY_SECRET", SECRETS["env"])
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "secret.txt").write_text(SECRETS["file"] + "\n")
    (tmp_path / "mqtt-cred").write_text(SECRETS["cred"])
    (tmp_path / "agent.key").write_text(f"-----BEGIN PRIVATE KEY-----\n{SECRETS['pem']}\n-----END PRIVATE KEY-----\n")
    path = write_plant(
        tmp_path, free_port(), {"a": {"unit": "${file:secret.txt}", "machine": "m"}, "bypass-1": {"topic": "plant/b"}},
        mqtt={"username": "${env:MY_SECRET}", "password": SECRETS["literal"], "client_id": "${cred:mqtt-cred}"},
    )  # fmt: skip
    path.write_text(path.read_text() + f"# the old password was {SECRETS['comment']}\n")
    everywhere = " ".join(SECRETS[name].replace("\n", " ") for name in ("literal", "env", "file", "cred"))
    Store.open(tmp_path / "agent.db").close()
    with sqlite3.connect(tmp_path / "agent.db") as db:
        payload = json.dumps({"event_id": "E1", "by": "me", "comment": f"I set {everywhere}, token: {SECRETS['log']}"})
        db.execute("INSERT INTO events(event_id, payload) VALUES ('E1', ?)", (payload,))
        db.execute("INSERT INTO alarm_state(sensor, state, ack_why) VALUES ('a', 'ACKED', ?)", (f"password is {SECRETS['log']}",))
    log = tmp_path / "agent.log"
    encoded = [base64.b64encode((" " * lead + SECRETS["literal"] + " ").encode()).decode() for lead in range(3)]
    log.write_text(
        f"plain {everywhere}\nrepr {SECRETS['literal']!r} json {json.dumps(SECRETS['literal'])} base64 {encoded}\n"
        f'password="{SECRETS["log"]}" MQTT_PASSWORD={SECRETS["log"]} {{"api_key": "{SECRETS["log"]}", "n": 1}}\n'
        f"Authorization: Bearer {SECRETS['bearer']}\nsent Bearer {SECRETS['bearer']}\n"
        f"mqtt://agent:{SECRETS['url']}@broker:1883\n{(tmp_path / 'agent.key').read_text()}\nthe last line\n"
    )
    return path, log


def contents(archive: Path) -> dict[str, str]:
    """Name -> text."""
    with tarfile.open(archive) as tar:
        return {m.name.rpartition("/")[2]: tar.extractfile(m).read().decode() for m in tar.getmembers()}  # type: ignore[union-attr]


def test_no_planted_secret_is_in_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets from the configuration, its references, comments, the database, commands of persons and the log, as they are and
    encoded: none of them, and no piece of a key, is in any file of the archive; what helps is."""
    path, log = planted(tmp_path, monkeypatch)
    out, sizes = support.write(path, tmp_path / "s.tar.gz", listen_s=0.0, log=log)
    texts = contents(out)
    assert set(texts) == set(sizes)
    everything = "\n".join(texts.values())
    for name, secret in SECRETS.items():
        for line in secret.splitlines():
            for form in (line, json.dumps(line)[1:-1], base64.b64encode(line.encode()).decode()[:-4]):
                assert form not in everything, name
    for lead in range(3):
        encoded = base64.b64encode((" " * lead + SECRETS["literal"] + " ").encode()).decode()
        assert encoded[4:-4] not in everything
    assert out.stat().st_mode & 0o777 == 0o600
    assert "problems.txt" not in texts, texts["problems.txt"]
    assert "the last line" in texts["log.txt"]
    assert json.loads(texts["events.jsonl"])["by"] == "me"
    assert "CREATE TABLE scores" in texts["schema.sql"]
    assert {row["check"] for row in json.loads(texts["doctor.json"])} >= {"broker", "disk"}
    assert json.loads(texts["versions.json"])["packages"]["numpy"]


def test_the_planted_secrets_would_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the scrubbing every secret but the comment's, which is never copied, is found: the test above can fail."""
    path, log = planted(tmp_path, monkeypatch)
    monkeypatch.setattr(support.Scrub, "__call__", lambda _self, text: text)
    monkeypatch.setattr(support, "_hides", lambda _where: False)
    everything = "\n".join(support.members(path, listen_s=0.0, log=log).values())
    missing = [n for n, s in SECRETS.items() if s.splitlines()[0] not in everything]
    assert missing == ["unknown", "comment"]


def test_the_configuration_is_copied_without_what_nobody_knows(tmp_path: Path) -> None:
    """Known keys stay, references stay as they are written, a value under a key named like a secret or under an unknown key
    goes, and a sensor called bypass-1 is no secret."""
    text = (
        "agent: {id: pi, x: 1}\nmqtt: {host: h, password: p1, username: '${env:U}'}\ndefaults: {alarm: {vote: [2, 3]}, fs: 2}\n"
        "sensors: {bypass-1: {topic: t, payload: f32le, api_key: {a: b}}}\nmy_token: [1]\n"
    )
    copied = yaml.safe_load(support.without_secrets(text))
    assert copied == {
        "agent": {"id": "pi", "x": support.HIDDEN},
        "mqtt": {"host": "h", "password": support.HIDDEN, "username": "${env:U}"},
        "defaults": {"alarm": {"vote": ["2", "3"]}, "fs": support.HIDDEN},
        "sensors": {"bypass-1": {"topic": "t", "payload": "f32le", "api_key": support.HIDDEN}},
        "my_token": support.HIDDEN,
    }


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: &a [*a]\n", "\0", "l0: &l0 [x]\n" + "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 9)}]\n" for i in range(8))])
def test_a_file_that_cannot_be_read_safely_is_not_copied(text: str) -> None:
    """Broken YAML, no mapping, aliases that loop or multiply: not a word of it is copied, and the archive is made."""
    assert support.without_secrets(text).startswith("# The file is no YAML mapping")


def test_scrubbing_leaves_json_json() -> None:
    """A secret in a JSON text is replaced within its quotes."""
    text = json.dumps({"password": 'a"b', "token": None, "n": 1, "text": 'the password is "x y" and token: abc, ok'})
    clean = json.loads(support.Scrub([])(text))
    assert (clean["password"], clean["n"]) == (support.HIDDEN, 1)
    assert "abc" not in clean["text"]
    assert "x y" not in clean["text"]
    assert clean["text"].endswith(", ok")


def test_the_archive_is_made_of_a_configuration_with_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`edge-agent support` is for when things are broken: the mistakes are in it, and it exits 0."""
    path = write_plant(tmp_path, 1, {"a": {"fs_hz": "many", "secret": "s3cr3t-in-vain"}})
    log = tmp_path / "log"
    log.write_text("hello\n")
    out = tmp_path / "s.tar.gz"
    assert cli.main(["support", "-c", str(path), "-o", str(out), "--log", str(log), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    texts = contents(out)
    assert told["path"] == str(out)
    assert told["files"]["log.txt"] == 6
    assert "sensors.a.fs_hz" in texts["problems.txt"]
    assert "s3cr3t-in-vain" not in "".join(texts.values())


def test_the_rules_name_only_figures_that_there_are() -> None:
    """Every edge_agent_ name in deploy/prometheus-rules.yml is one that the agent gives, with the labels it has."""
    text = (Path(__file__).parents[1] / "deploy" / "prometheus-rules.yml").read_text()
    rules = yaml.safe_load(text)["groups"][0]["rules"]
    known = {metrics.PREFIX + name for table in (metrics.SINGLE, metrics.BY_SENSOR, metrics.BY_LABEL) for name in table}
    used = {name for rule in rules for name in re.findall(r"edge_agent_\w+", rule["expr"])}
    assert used
    assert used <= known
    for rule in rules:
        for metric, label in re.findall(r"edge_agent_(\w+)\{(\w+)", rule["expr"]):
            assert metrics.BY_LABEL[metric][2] == label


@needs_mosquitto
@pytest.mark.parametrize(("days", "verdict"), [(40.0, "well"), (10.0, "note")])
def test_the_doctor_tells_when_the_brokers_certificate_ends(tmp_path: Path, days: float, verdict: str) -> None:
    """Over TLS a certificate of 40 days is well; one of 10 days is noted with its last day, while it still lets us in."""
    authority = issue(tmp_path, "ca")
    server = issue(tmp_path, "server", authority, hosts=("127.0.0.1",), days=(-1, days))
    broker = Broker(tmp_path, extra=f"allow_anonymous true\ncertfile {server.pem}\nkeyfile {server.key_file}\n")
    broker.start()
    try:
        found = verdicts(write_plant(tmp_path, broker.port, mqtt={"tls": {"ca": str(authority.pem)}}), 0.0)
    finally:
        broker.stop()
    assert found["broker"].verdict == "well"
    assert found["certificate"].verdict == verdict
    assert f"in {days - 1:.0f} days" in found["certificate"].found or f"in {days:.0f} days" in found["certificate"].found


@needs_mosquitto
def test_the_doctor_names_a_login_that_is_refused(tmp_path: Path) -> None:
    """A broker that takes nobody without a login: the check says that the user name and password are to be corrected."""
    (tmp_path / "passwd").write_text("")
    broker = Broker(tmp_path, extra=f"allow_anonymous false\npassword_file {tmp_path / 'passwd'}\n")
    broker.start()
    try:
        check = verdicts(write_plant(tmp_path, broker.port, mqtt={"username": "x", "password": "y-wrong-pass"}), 0.0)["broker"]
    finally:
        broker.stop()
    assert check.verdict == "wrong"
    assert "mqtt.username and mqtt.password" in check.found
    assert "y-wrong-pass" not in check.found
