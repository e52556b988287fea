"""The command line: exit codes, what goes to stdout and what to stderr, and offline scoring."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import healthy, make_indicator_bundle

from edge_agent import bundle as bundles
from edge_agent import cli, offline, payloads, pipeline
from edge_agent.alarms import Alarm, AlarmPolicy, Transition, beside
from edge_agent.features import Context
from edge_agent.recordings import Ask, Recording, open_recordings
from edge_agent.signals import Chunk, rfc3339
from edge_agent.store import EventRow, Record, Store

ROOT = Path(__file__).parent.parent
T0 = 1_700_000_000.0
FS, N = 1000.0, 256


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a configuration of two sensors and a recording that gets loud half-way."""
    folder = tmp_path_factory.mktemp("site")
    make_indicator_bundle(folder / "rms", fs_hz=FS, n_samples=N)
    (folder / "config.yaml").write_text(
        "agent: {id: a}\nmqtt: {host: 127.0.0.1, port: 1, username: u, password: '${env:PW_OF_TEST}'}\n"
        "database: d/edge.db\ndefaults: {payload: f32le, fs_hz: 1000, model: rms}\n"
        "sensors:\n  s1: {topic: t/1}\n  s2: {topic: t/2}\n"
    )
    x = healthy(20 * N)[0]
    x[10 * N :] *= 3
    np.savez(folder / "rec.npz", x=x, fs=np.float64(FS))
    np.savez(folder / "stereo.npz", x=np.stack([x, 0.5 * x], axis=1), fs=np.float64(FS))
    return folder


@pytest.fixture
def filled(site: Path) -> Iterator[Path]:
    """The same with a database that holds an active alarm of s1."""
    path = site / "d" / "edge.db"
    store = Store.open(path)
    transition = Transition("new", "E1", "A1", T0 + 1, "UNACK", "warning", T0 + 1)
    measured = pipeline.Measured(0, T0, T0 + 1, 0.5, 0.4, 1.25)
    event = EventRow(transition, "edge/a/s/s1/event", '{"event_id":"E1"}')
    store.write([Record("s1", (measured,), (event,), Alarm("UNACK", "warning", "A1", T0 + 1), None, T0)])
    store.close()
    yield site
    for file in path.parent.iterdir():
        file.unlink()


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = cli.main([str(a) for a in args])
    out, err = capsys.readouterr()
    return code, out, err


def test_score_prints_one_line_a_window_on_stdout(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """20 windows give 20 JSON objects with the contract's fields, crossing where the recording is loud."""
    code, out, err = run(capsys, "score", site / "rec.npz", "--bundle", site / "rms", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, len(rows), err) == (0, 20, "")
    assert [list(r)[:8] for r in rows] == [
        ["ts", "start", "seq", "score", "threshold", "ratio", "quality", "reasons"]
    ] * 20
    assert [r["ratio"] >= 1 for r in rows] == [False] * 10 + [True] * 10
    assert rows[1]["start"] == rows[0]["ts"] == "1970-01-01T00:00:00.256Z"


def test_score_for_people_is_a_table(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json there is a heading and a line a window, columns aligned."""
    code, out, _ = run(capsys, "score", site / "rec.npz", "--bundle", site / "rms")
    lines = out.splitlines()
    assert (code, len(lines)) == (0, 21)
    assert {line.index("good") for line in lines[1:]} == {lines[0].index("quality")}


def test_score_takes_one_channel_of_several(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--channel picks the channel; without it two channels are refused with that advice."""
    scores = []
    for channel in (0, 1):
        _, out, _ = run(
            capsys, "score", site / "stereo.npz", "--bundle", site / "rms", "--json", "--channel", channel
        )
        scores.append([json.loads(line)["score"] for line in out.splitlines()])
    assert np.allclose(np.array(scores[1]), 0.5 * np.array(scores[0]))
    code, out, err = run(capsys, "score", site / "stereo.npz", "--bundle", site / "rms")
    assert (code, out) == (1, "")
    assert "--channel" in err


def test_score_equals_the_agents_own_steps_over_messages(site: Path) -> None:
    """Messages in the wire format through `pipeline.step` give bit for bit the scores of the recording."""
    bundle = bundles.load(site / "rms")
    (recording,) = open_recordings(site / "rec.npz", Ask())
    expected = [m.score for m in offline.score_recording(bundle, recording)]
    ready = offline.pipeline_for(bundle)
    state, got = pipeline.initial(ready), []
    samples = np.concatenate([c.samples for c in recording.chunks()], axis=1)
    for begin in range(0, samples.shape[1], 100):
        message = payloads.encode(Chunk(samples[:, begin : begin + 100]), ready.layout)
        state, outcome = pipeline.step(ready, state, message, T0 + begin / FS)
        got += [m.score for m in outcome.measured]
    assert got == expected


def test_scores_are_null_until_the_history_is_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle over 4 windows scores from the fourth on; the three before are printed without a score."""
    make_indicator_bundle(tmp_path / "b", context=Context("windows", 4))
    np.savez(tmp_path / "r.npz", x=healthy(6 * N)[0], fs=np.float64(FS))
    _, out, _ = run(capsys, "score", tmp_path / "r.npz", "--bundle", tmp_path / "b", "--json")
    assert [json.loads(line)["score"] is None for line in out.splitlines()] == [True] * 3 + [False] * 3


def test_each_recording_starts_afresh(tmp_path: Path) -> None:
    """Neither samples, history nor votes go from one file of a folder into the next."""
    bundle = make_indicator_bundle(tmp_path / "b", context=Context("windows", 2))
    folder = tmp_path / "r"
    folder.mkdir()
    for name in "ab":
        np.savez(folder / f"{name}.npz", x=healthy(3 * N + 100)[0], fs=np.float64(FS))
    per_file = [list(offline.score_recording(bundle, r)) for r in open_recordings(folder, Ask())]
    assert [[m.score is None for m in rows] for rows in per_file] == [[True, False, False]] * 2


def test_offline_run_gives_the_alarms_transitions(site: Path) -> None:
    """`offline.run` tells which window raised the alarm under a given policy."""
    bundle = bundles.load(site / "rms")
    (recording,) = open_recordings(site / "rec.npz", Ask())
    ready = offline.pipeline_for(bundle, policy=AlarmPolicy(vote=(2, 3)))
    found = [(m.seq, t.type) for m, t in offline.run(ready, recording) if t is not None]
    assert found[0] == (11, "new")


def test_a_recording_without_any_window_is_told(
    tmp_path: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recording shorter than a window scores nothing: stdout stays empty, stderr says why, exit 1."""
    np.savez(tmp_path / "short.npz", x=healthy(N - 1)[0], fs=np.float64(FS))
    code, out, err = run(capsys, "score", tmp_path / "short.npz", "--bundle", site / "rms", "--json")
    assert (code, out) == (1, "")
    assert "256 samples" in err


def test_a_recording_of_another_rate_is_refused(site: Path, tmp_path: Path) -> None:
    """A bundle for 1000 Hz does not score 2000 Hz, and the error names both rates."""
    recording = Recording("r", tmp_path / "r", 2000.0, None, lambda: iter(()))
    with pytest.raises(bundles.BundleError, match=r"1000 Hz.*2000"):
        list(offline.score_recording(bundles.load(site / "rms"), recording))


def test_status_exits_3_while_an_alarm_is_active(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An active alarm makes `status` exit 3 with a row a sensor; it needs no password to look."""
    code, out, err = run(capsys, "status", "-c", filled / "config.yaml", "--json")
    assert code == 3
    assert err.startswith("no agent is running with this database")
    assert [json.loads(line)["state"] for line in out.splitlines()] == ["UNACK", "NORM"]
    store = Store.open(filled / "d" / "edge.db")
    store.write([Record("s1", (), (), Alarm("SHLVD", "warning", "A1", T0, shelved_until=T0 + 9), None, T0)])
    store.close()
    assert run(capsys, "status", "-c", filled / "config.yaml")[0] == 0, "a shelved alarm is silenced"


def test_a_shelved_healthy_sensor_is_shown_but_is_no_alarm(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` says SHLVD and until when, `alarms` lists only what was one."""
    store = Store.open(filled / "d" / "edge.db")
    transition = Transition("update", "E2", "A2", T0 + 2, "SHLVD", None, T0 + 2)
    shelved = Alarm("SHLVD", None, "A2", T0 + 2, shelved_until=T0 + 9)
    store.write([Record("s2", (), (EventRow(transition, "t", "{}"),), shelved, None, T0)])
    store.close()
    config = ("-c", filled / "config.yaml")
    _, out, _ = run(capsys, "status", *config)
    assert out.splitlines()[2].split()[:5] == [
        "s2", "SHLVD", "-", "2023-11-14T22:13:22.000Z", "2023-11-14T22:13:29.000Z",
    ]  # fmt: skip
    assert out.splitlines()[0].split()[4] == "shelved_until"
    _, out, _ = run(capsys, "alarms", *config, "--json")
    assert [json.loads(line)["alarm_id"] for line in out.splitlines()] == ["A1"]


def test_notices_lists_what_was_told_beside(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Sensor trouble with its reasons and notices with their words, newest first; the machine alarm is not among them."""
    store = Store.open(filled / "d" / "edge.db")
    for n, (kind, extra) in enumerate(
        [
            ("quality", {"quality_alarm": {"reasons": ["gap", "stuck"], "active": True}}),
            ("notice", {"notice": {"kind": "drift", "text": "higher; since then"}}),
            ("quality", {"quality_alarm": {"reasons": ["gap", "stuck"], "active": False}}),
        ]
    ):
        told = beside(kind, Alarm(), "a/s1", n, T0 + n, extra)
        store.write([Record("s1", (), (EventRow(told, "t", json.dumps(extra)),), Alarm(), None, T0)])
    store.close()
    config = ("-c", filled / "config.yaml")
    _, out, _ = run(capsys, "alarms", "--notices", *config, "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [(f["type"], f["kind"], f["text"]) for f in found] == [
        ("quality", "ends", "gap, stuck"), ("notice", "drift", "higher; since then"), ("quality", "begins", "gap, stuck"),
    ]  # fmt: skip
    _, out, _ = run(capsys, "alarms", "--notices", *config, "--since", rfc3339(T0 + 2))
    assert out.splitlines()[1].split() == [rfc3339(T0 + 2), "s1", "quality", "ends", "gap,", "stuck"]
    assert run(capsys, "alarms", "--notices", *config, "--sensor", "s2")[1:] == ("", "no sensor trouble and no notices\n")


def test_alarms_history_and_export_read_the_database(
    filled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same row comes as a table, as JSON Lines, as CSV and inside the alarm's export."""
    config = ("-c", filled / "config.yaml")
    _, out, _ = run(capsys, "alarms", *config)
    assert out.splitlines()[1].split()[:2] == ["A1", "s1"]
    _, out, _ = run(capsys, "history", *config, "--json", "--sensor", "s1")
    assert json.loads(out)["score"] == 0.5
    _, out, _ = run(capsys, "history", *config, "--since", "1h")
    assert out == ""
    _, out, _ = run(capsys, "export", *config)
    assert out.splitlines() == [
        "sensor,ts,start,seq,score,threshold,ratio,quality,reasons,regime",
        "s1,2023-11-14T22:13:21.000Z,2023-11-14T22:13:20.000Z,0,0.5,0.4,1.25,good,,",
    ]
    _, out, _ = run(capsys, "export", *config, "--alarm", "A1")
    whole = json.loads(out)
    assert (whole["alarm_id"], whole["events"], len(whole["scores"])) == ("A1", [{"event_id": "E1"}], 1)
    target = filled / "out.json"
    assert run(capsys, "export", *config, "--format", "json", "-o", target)[:2] == (0, "")
    assert json.loads(target.read_text())["seq"] == 0


def test_a_bad_configuration_exits_78_with_every_mistake_on_stderr(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` and `run` print all mistakes, nothing on stdout, no traceback."""
    bad = tmp_path / "bad.yaml"
    bad.write_text("agent: {id: A}\nsensors: {s1: {topic: a/#, payload: x, fs_hz: -1, modl: y}}\n")
    for command in ("check", "run"):
        code, out, err = run(capsys, command, "-c", bad)
        assert (code, out) == (78, ""), command
        for where in (
            "agent.id",
            "database",
            "s1.topic",
            "s1.payload.format",
            "s1.fs_hz",
            "s1.modl",
            "s1.model",
        ):
            assert where in err, (command, where)
        assert "Traceback" not in err


def test_check_says_well_and_connects_only_when_asked(
    site: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A sound file is well without a broker; where nobody listens, --connect says that after the verdict on the
    file, and `ack` says it too: once, with exit code 1 and a hint."""
    monkeypatch.setenv("PW_OF_TEST", "hunter2")
    config = ("-c", site / "config.yaml")
    code, out, _ = run(capsys, "check", *config)
    assert (code, out) == (0, f"{site / 'config.yaml'}: well: 2 sensors, 1 bundle\n")
    code, out, err = run(capsys, "check", *config, "--connect")
    assert (code, out) == (1, f"{site / 'config.yaml'}: well: 2 sensors, 1 bundle\n")
    assert err.splitlines() == [
        "broker 127.0.0.1:1: nothing listens there: start the broker, or correct mqtt.host and mqtt.port"
    ]
    assert "hunter2" not in err
    code, out, _ = run(capsys, "check", *config, "--connect", "--json")
    verdict = json.loads(out)
    assert (code, verdict["ok"], verdict["sensors"]) == (1, False, ["s1", "s2"])
    assert "nothing listens there" in verdict["error"]
    code, out, err = run(capsys, "ack", "s1", *config)
    assert (code, out, err.count("nothing listens there"), len(err.splitlines())) == (1, "", 1, 1)
    assert not caplog.records, "logged besides, it would stand there twice"
    monkeypatch.delenv("PW_OF_TEST")
    code, _, err = run(capsys, "check", *config)
    assert code == 78
    assert "mqtt.password" in err


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["fly"],
        ["score"],
        ["score", "x"],
        ["shelve", "s1"],
        ["shelve", "s1", "--for", "8x"],
        ["history", "--since", "yesterday"],
        ["replay", "x", "--sensor", "s1", "--speed", "0"],
        ["simulate", "nothing"],
    ],
)
def test_wrong_usage_exits_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, unknown and unreadable arguments exit 2 with a usage line on stderr."""
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert "usage:" in err


@pytest.mark.parametrize(
    "args",
    [
        ("score", "nowhere", "--bundle", "rms"),
        ("score", "rec.npz", "--bundle", "nowhere"),
        ("status", "-c", "config.yaml"),
        ("history", "-c", "config.yaml", "--sensor", "s3"),
        ("export", "-c", "config.yaml", "--alarm", "A9"),
        ("export", "-c", "config.yaml", "-o", "no/such/folder.csv"),
    ],
)
def test_what_fails_exits_1_with_one_sentence(
    args: tuple[str, ...], site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, sensors and databases that are not there exit 1 with a message and no traceback."""
    monkeypatch.chdir(site)
    code, out, err = run(capsys, *args)
    assert (code, out) == (1, "")
    assert err
    assert "Traceback" not in err


def test_what_has_nothing_to_show_says_so(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`history`, `alarms` and `status` on an empty database speak on stderr; stdout stays for results."""
    Store.open(site / "d" / "edge.db").close()
    config = ("-c", site / "config.yaml")
    yet = "no scores yet; the agent commits every 5 s\n"
    try:
        assert run(capsys, "history", *config, "--json") == (0, "", yet)
        assert run(capsys, "alarms", *config) == (0, "", "no alarms\n")
        assert run(capsys, "alarms", *config, "--sensor", "s1") == (0, "", "no alarms of s1\n")
        code, out, err = run(capsys, "status", *config)
        assert (code, len(out.splitlines()), err) == (0, 3, yet)
        assert run(capsys, "history", *config, "--since", "1h")[2] == "no scores of this sensor and time\n"
    finally:
        (site / "d" / "edge.db").unlink()


def test_every_option_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    """No command has an argument without help; `simulate` goes by the name it was called by."""
    (subcommands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    silent = [
        (name, action.dest)
        for name, parser in subcommands.choices.items()
        for action in parser._actions
        if not action.help
    ]
    assert silent == []
    assert len(subcommands.choices) > 10
    assert run(capsys, "simulate", "sound", "--help")[1].startswith("usage: edge-agent simulate sound")
    assert "a plain number is seconds" in run(capsys, "shelve", "--help")[1]


def test_a_misspelt_sensor_is_corrected(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error about an unknown sensor names the nearest known one."""
    _, _, err = run(capsys, "history", "-c", filled / "config.yaml", "--sensor", "s11")
    assert "did you mean s1?" in err


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("60s", 60), ("30m", 1800), ("8h", 28800), ("2d", 172800), ("1.5 h", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations are seconds, or a number with its unit."""
    assert cli.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "h", "-1", "1w", "1h30m", "inf"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Anything else is refused with what was expected."""
    with pytest.raises(ValueError, match="such as 8h"):
        cli.duration(text)


def test_a_closed_pipe_ends_quietly(site: Path) -> None:
    """`edge-agent score ... | head -1` prints one line and no complaint."""
    np.savez(site / "long.npz", x=healthy(3000 * N)[0], fs=np.float64(FS))
    command = (
        f"{sys.executable} -m edge_agent score {site / 'long.npz'} --bundle {site / 'rms'} --json | head -1"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, check=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_scoring_needs_no_workstation_library(site: Path) -> None:
    """One offline run imports no TensorFlow, no plotting, no scipy.signal or scipy.stats."""
    code = (
        "import sys; from edge_agent.cli import main; code = main(sys.argv[1:]);"
        "bad = [m for m in ('tensorflow','keras','matplotlib','librosa','pandas','scipy.signal','scipy.stats',"
        "'sqlite_utils','paho') if m in sys.modules]; print(bad, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "score", str(site / "rec.npz"), "--bundle", str(site / "rms")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert done.stderr.strip() == "[]"
