"""What people say of alarms: over MQTT and from the command line, on record, and as labels that the trainer learns from."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from agents import FS_HZ, LAYOUT, T0, Agent, N, rows, write_plant
from conftest import Broker, Listener, needs_mosquitto
from test_what_if import HOP, levels, plant, run

from edge_agent import cli, queries, salvage
from edge_agent.errors import RecordingError
from edge_agent.recordings import Ask, open_recordings
from edge_agent.recordings.capture import header_line, message_line
from edge_agent.signals import rfc3339
from edge_agent.store import Store
from trainer import cli as trainer_cli
from trainer import data, recipe, spans, staged
from trainer.spans import Span

#: Two alarms: windows 40 to 59 (a fault) and 100 to 109 (a fork lift went by).
STORY = ((40, 1.0), (20, 2.0), (40, 1.0), (10, 2.0), (90, 1.0))
TRUE, FALSE = (40, 60), (100, 110)


def say(*args: str) -> subprocess.CompletedProcess[str]:
    """`edge-agent verdict` as a person calls it."""
    return subprocess.run(
        [sys.executable, "-m", "edge_agent", "verdict", *args], capture_output=True, text=True, check=False
    )


@needs_mosquitto
def test_a_verdict_is_on_record_and_can_be_revised(
    tmp_path: Path, broker: Broker, listen: Callable[..., Listener], capsys: pytest.CaptureFixture[str]
) -> None:
    """Said on the command line, then otherwise over MQTT: both stay on record with who and why, the last counts and
    `edge-agent alarms` shows it; of no alarm, or neither true nor false, it is refused with what was expected."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path):
        ear.wait("edge/t/status")
        for payload in levels((5, 2.0), (10, 1.0)):
            ear.publish("plant/a", payload)
        alarm = json.loads(ear.wait("edge/t/s/a/event", 2)[0])["alarm_id"]
        done = say(alarm, "true", "--by", "anna", "--why", "outer ring", "-c", str(path))
        assert (done.returncode, done.stdout) == (0, f"a: {alarm} was a true alarm\n"), done.stderr
        done = say("01NOSUCHALARM", "false", "-c", str(path))
        assert done.returncode == 1
        assert "no machine alarm '01NOSUCHALARM'; `edge-agent alarms` lists those there are" in done.stderr
        asked = [
            {"alarm_id": alarm, "verdict": False, "by": "bob", "why": "it was the crane"},
            {"alarm_id": alarm, "verdict": "perhaps"},
            {"verdict": "true"},
        ]
        for n, fields in enumerate(asked):
            ear.publish("edge/t/cmd/verdict", {"request_id": n, **fields})
        answers = {a["request_id"]: a for a in map(json.loads, ear.wait("edge/t/cmd/verdict/result", 5)[2:])}
        assert answers[0]["ok"]
        assert "verdict 'perhaps'; expected an alarm_id, and true or false" in answers[1]["message"]
        assert not answers[2]["ok"]
    stored = rows(tmp_path / "agent.db", 'SELECT alarm_id, sensor, verdict, "by", why FROM verdicts ORDER BY id')
    assert stored == [(alarm, "a", "true", "anna", "outer ring"), (alarm, "a", "false", "bob", "it was the crane")]
    assert cli.main(["alarms", "-c", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split()[-1] == "false"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the agent's database, both alarms judged, their labels and the capture of all that was sent."""
    folder = tmp_path_factory.mktemp("judged")
    story = levels(*STORY)
    run(plant(folder), story, folder / "agent.db")
    store = Store.open(folder / "agent.db")
    ids = [row["alarm_id"] for row in queries.alarms(folder / "agent.db")]
    assert store.judge(ids[0], False, "bob", "fork lift", T0) == "a"
    assert store.judge(ids[1], False, "bob", None, T0) == "a"
    assert store.judge(ids[1], True, "anna", "outer ring", T0) == "a"
    assert store.judge("none", True, None, None, T0) is None
    store.close()
    assert cli.main(["export", "--labels", "-c", str(folder / "config.yaml"), "-o", str(folder / "labels.csv")]) == 0
    with (folder / "a.capture").open("wb") as file:
        file.write(header_line(sensor="a", topic="plant/a", layout=LAYOUT, fs_hz=FS_HZ))
        file.writelines(message_line(T0 + i * HOP, payload) for i, payload in enumerate(story))
    return folder


def test_labels_span_the_windows_that_made_the_alarm(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the window that raised it to the last one at its limit, as CSV and as JSON Lines: what people said last."""
    found = list(csv.DictReader(io.StringIO((judged / "labels.csv").read_text())))
    assert [list(row) for row in found] == [list(spans.COLUMNS)] * 2
    assert [(row["sensor"], row["label"]) for row in found] == [("a", "anomaly"), ("a", "normal")]
    for row, (first, last) in zip(found, (TRUE, FALSE), strict=True):
        # Two of five votes come before the window that raises.
        assert row["t_start"] == rfc3339(T0 + (first + 2) * HOP)
        assert row["t_end"] == rfc3339(T0 + last * HOP)
    assert cli.main(["export", "--labels", "--json", "-c", str(judged / "config.yaml")]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found


def test_a_latched_alarm_that_came_again_has_a_label_for_each_time(tmp_path: Path) -> None:
    """Between two times that one alarm was raised the machine was well: that time has no label."""
    pipe = plant(tmp_path, {"latching": True})
    run(pipe, levels((20, 1.0), (10, 2.0), (50, 1.0), (10, 2.0), (20, 1.0)), tmp_path / "agent.db")
    store = Store.open(tmp_path / "agent.db")
    (row,) = queries.alarms(tmp_path / "agent.db")
    assert store.judge(row["alarm_id"], True, None, None, T0) == "a"
    store.close()
    found = queries.labels(tmp_path / "agent.db")
    spans = [(rfc3339(T0 + first * HOP), rfc3339(T0 + last * HOP)) for first, last in ((22, 30), (82, 90))]
    assert [(r["t_start"], r["t_end"], r["label"]) for r in found] == [(*span, "anomaly") for span in spans]


def test_a_recording_is_cut_at_its_labels(judged: Path) -> None:
    """The capture in five pieces: every sample once, in its order, and those of the alarms under their labels."""
    (whole,) = open_recordings(judged / "a.capture", Ask())
    pieces = list(spans.cut(whole, spans.read_spans(judged / "labels.csv")))
    assert [piece.label for piece in pieces] == [None, "anomaly", None, "normal", None]
    samples = [np.concatenate([c.samples for c in piece.chunks()], axis=1) for piece in pieces]
    assert np.array_equal(
        np.concatenate(samples, axis=1), np.concatenate([c.samples for c in whole.chunks()], axis=1)
    )
    assert [x.shape[1] / N for x in samples] == [42, 18, 42, 8, 90]
    assert len({piece.name for piece in pieces}) == 5


def test_labels_of_other_sensors_are_not_laid_over_a_capture(judged: Path) -> None:
    """A capture says whose it is; a span of another sensor leaves it whole, and none at all is an error with the mend."""
    (whole,) = open_recordings(judged / "a.capture", Ask())
    other = (Span("b", T0, T0 + 10.0, "anomaly"),)
    assert spans.of_sensor(other, whole) == ()
    labels = judged / "other.csv"
    labels.write_text(f"sensor,t_start,t_end,label\nb,{rfc3339(T0)},{rfc3339(T0 + 10)},anomaly\n")
    source = recipe.Source(judged / "a.capture", verdicts=labels)
    with pytest.raises(RecordingError, match=r"none of its 1 spans .of b. lies in the recordings"):
        list(data.recordings(source))
    labels.write_text(f"sensor,t_start,t_end,label\nb,{rfc3339(T0 + 10)},{rfc3339(T0)},anomaly\n")
    with pytest.raises(RecordingError, match=r"other\.csv:2: .* expected an end after the start"):
        spans.read_spans(labels)


def weak(folder: Path) -> Path:
    """A recipe of the weakly supervised autoencoder on the capture, with the verdicts."""
    mel = {"kind": "log_mel", "n_fft": 64, "hop": 32, "n_mels": 16}
    content = {
        "name": "weak",
        "model": "weak_ae",
        "data": {"path": "a.capture", "verdicts": "labels.csv"},
        "window": {"n_samples": N},
        "features": [mel],
        "context": {"over": "frames", "width": 4, "hop": 2},
        "split": {"by": "time", "train": [0.0, 0.6], "calibrate": [0.6, 1.0], "anomalies": 1},
        "train": {"epochs": 1, "stage2": 1},
        "threshold": {"method": "gamma", "false_alarm_rate": 0.01},
        "quantize": "float32",
    }
    path = folder / "weak.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_weakly_supervised_stage_learns_from_verdicts(judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`edge-trainer fit` with the exported labels: the windows of the true alarm are the anomalies of stage 2, those of the
    false one are healthy ones, and a bundle comes out that says so."""
    path = weak(judged)
    table = data.table(recipe.load(path))
    windows = np.round((table.start - T0) / HOP).astype(int)
    assert sorted(windows[~table.healthy()]) == list(range(42, 60))
    assert set(range(102, 110)) <= set(windows[table.healthy()])
    code = trainer_cli.main(["fit", str(path), "--out", str(judged / "weak"), "--plots", str(judged / "plots")])
    assert code == 0, capsys.readouterr().err
    written = json.loads((judged / "weak" / "bundle.json").read_text())["training"]
    assert written["split"]["anomalies"] == 18
    assert written["data"][0]["verdicts"] == "labels.csv"


def test_staged_takes_verdicts_for_labels(judged: Path) -> None:
    """Windows wholly within a judged alarm are known; of several sensors, or at other times, the labels are refused."""
    table = data.table(recipe.load(weak(judged)))
    windows = np.round((table.start - T0) / HOP).astype(int)
    assert spans.is_spans(judged / "labels.csv")
    known = staged.known(table, spans.read_spans(judged / "labels.csv"))
    assert sorted(windows[known == staged.ANOMALOUS]) == list(range(42, 60))
    assert sorted(windows[known == staged.NORMAL]) == list(range(102, 110))
    with pytest.raises(ValueError, match="none of the 1 labelled times holds a window"):
        staged.known(table, [Span("a", 0.0, 10.0, "normal")])
    with pytest.raises(ValueError, match="labels of a, b; expected those of one sensor"):
        staged.known(table, [Span(s, T0, T0 + 10.0, "normal") for s in "ab"])


def test_verdicts_outlive_a_damaged_database(judged: Path, tmp_path: Path) -> None:
    """What people said cannot be computed again: of a database that is set aside as damaged it is carried into the new one."""
    path = tmp_path / "agent.db"
    with sqlite3.connect(judged / "agent.db") as db:
        db.execute("VACUUM INTO ?", (str(path),))
    said = rows(path, 'SELECT id, alarm_id, sensor, verdict, "by", why, ts FROM verdicts ORDER BY id')
    (root,), (size,) = (rows(path, sql)[0] for sql in (
        "SELECT rootpage FROM sqlite_master WHERE name = 'scores'", "PRAGMA page_size",
    ))  # fmt: skip
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xa5" * size)
    begun = salvage.begin(path, "edge/t", T0)
    assert begun.set_aside is not None
    assert begun.store is not None
    begun.store.close()
    assert len(said) == 3
    assert rows(path, 'SELECT id, alarm_id, sensor, verdict, "by", why, ts FROM verdicts ORDER BY id') == said
    assert [row["verdict"] for row in queries.alarms(path)] == ["false", "true"]
