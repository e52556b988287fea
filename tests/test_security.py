"""What the agent refuses to trust: pickles, floods; where secrets may stand; what its service may do."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agents import Agent, message, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, until
from scipy import io

from edge_agent import bundle as bundles
from edge_agent.config import load
from edge_agent.errors import BundleError, ConfigError, RecordingError
from edge_agent.inbox import Bucket
from edge_agent.recordings import Ask, open_recordings

Listen = Callable[..., Listener]
ROOT = Path(__file__).parents[1]

# ---------------------------------------------------------------- pickles


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (str(self.mark), "w"))


def _bombs(mark: Path) -> np.ndarray:
    return np.array([Bomb(mark)] * 64, dtype=object)


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    """The arrays of these tests do run code where pickles are allowed: what is refused below is a real danger."""
    np.save(tmp_path / "x.npy", _bombs(tmp_path / "mark"))
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["calibration.npz", "golden.npz", "score.npz"])
def test_a_bundle_with_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    """An object array in any file of a bundle, its hash made right, is a BundleError, and its code does not run."""
    path = tmp_path / "rms"
    make_indicator_bundle(path)
    arrays: dict[str, np.ndarray] = {}
    if (path / name).exists():
        with np.load(path / name, allow_pickle=False) as data:
            arrays = dict(data)
    for array in arrays or {"x": None}:
        np.savez(path / name, **{**arrays, array: _bombs(tmp_path / "mark")})
        manifest = json.loads((path / "bundle.json").read_text())
        manifest["files"][name] = bundles.sha256((path / name).read_bytes())
        (path / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=f"{path}"):
            bundles.load(path)
    assert not (tmp_path / "mark").exists()


def _read_all(path: Path) -> None:
    for recording in open_recordings(path, Ask(1000.0, None)):
        list(recording.chunks())


@pytest.mark.parametrize("name", ["x.npy", "x.npz", "raw.npy", "raw.npz", "x.mat", "raw.mat"])
def test_a_recording_with_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    """Object arrays and bare pickles under every NumPy and MATLAB name are a RecordingError, and their code does not run."""
    path = tmp_path / name
    mark = tmp_path / "mark"
    if name.startswith("raw"):
        path.write_bytes(pickle.dumps(Bomb(mark)))
    elif name.endswith("npy"):
        np.save(path, _bombs(mark))
    elif name.endswith("npz"):
        np.savez(path, x=_bombs(mark), fs=_bombs(mark))
    else:
        io.savemat(path, {"X105_DE_time": np.array([[{"a": 1.0}]], dtype=object)})
    with pytest.raises(RecordingError, match=name):
        _read_all(path)
    assert not mark.exists()


#: Modules whose reading of a file can run code, and calls that do.
CODE_LOADERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch"}
CODE_CALLS = {"eval", "exec", "compile", "__import__"}


def _dangers(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [f"line {node.lineno}: import {n}" for n in names if n.split(".")[0] in CODE_LOADERS]
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in CODE_CALLS:
            found.append(f"line {node.lineno}: {called}")
        reads_arrays = re.fullmatch(r"(np|numpy)(\.lib\.format)?\.(load|read_array|open_memmap)", called)
        if reads_arrays and keywords.get("allow_pickle") != "False":
            found.append(f"line {node.lineno}: {called} without allow_pickle=False")
        if re.fullmatch(r"yaml\.(load|load_all|unsafe_load|full_load|compose)", called) and not re.search(
            r"(Safe|Base)Loader", keywords.get("Loader", "")
        ):
            found.append(f"line {node.lineno}: {called} without SafeLoader or BaseLoader")
        if called.endswith("load_model") and keywords.get("safe_mode", "True") != "True":
            found.append(f"line {node.lineno}: {called} with safe_mode off")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "np.load(p)", "numpy.load(p, allow_pickle=True)", "eval(text)",
        "yaml.load(t, Loader=yaml.UnsafeLoader)", "np.lib.format.read_array(f)", "keras.models.load_model(p, safe_mode=False)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    """Each way to run code while reading a file is found in a line that does so."""
    assert _dangers(source)


def test_no_code_is_run_by_reading_a_file() -> None:
    """Nowhere in agent, trainer and benchmarks is anything unpickled, evaluated, or YAML read with tags."""
    files = [f for folder in ("edge_agent", "trainer", "benchmarks") for f in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 80
    assert {str(f.relative_to(ROOT)): d for f in files if (d := _dangers(f.read_text("utf-8")))} == {}


# ---------------------------------------------------------------- secrets

SECRET = "xyzzy-7310-never-shown"


def test_a_credential_is_read_and_shown_nowhere(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The password of a systemd credential reaches the broker's client and is in no log, message, table or output."""
    caplog.set_level("DEBUG")
    (folder := tmp_path / "credentials").mkdir()
    (folder / "mqtt-password").write_text(SECRET + "\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    monkeypatch.setenv("OTHER_SECRET", SECRET)
    path = write_plant(
        tmp_path, broker.port, {"a": {"unit": None}}, mqtt={"username": "u", "password": "${cred:mqtt-password}"}
    )
    ear = listen("edge/#")
    with Agent(path) as agent:
        assert agent.config.mqtt.password == SECRET
        ear.wait("edge/t/status")
        for seq in range(5):
            ear.publish("plant/a", message(seq, 1.5))
        ear.wait("edge/t/s/a/event")
        ear.publish("edge/t/cmd/reload", {"request_id": 1})
        ear.wait("edge/t/cmd/reload/result")
    alarm = agent.rows("SELECT alarm_id FROM events")[0][0]
    told = [caplog.text, repr(agent.config), *(f"{topic} {payload!r}" for topic, payload, _ in ear.all())]
    for arguments in (["check"], ["check", "--json"], ["status"], ["export"], ["export", "--alarm", alarm], ["history"]):
        done = subprocess.run(
            [sys.executable, "-m", "edge_agent", *arguments, "-c", str(path)], capture_output=True, text=True, check=False
        )
        assert done.returncode in (0, 3), done.stderr
        told.append(done.stdout + done.stderr)
    assert all(told)
    assert [t for t in told if SECRET in t] == []
    databases = sorted(tmp_path.glob("agent.db*"))
    assert databases
    assert [f.name for f in databases if SECRET.encode() in f.read_bytes()] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${cred:absent}", "a readable file .*absent"),
        ("${cred:../password}", "the plain name of a credential"),
        ("${cred:}", "the plain name of a credential"),
        ("${crd:x}", r"\$\{env:NAME\}, \$\{file:PATH\} or \$\{cred:NAME\}"),
    ],
)
def test_a_credential_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str
) -> None:
    """The error names what was looked for, never what lies elsewhere."""
    (tmp_path / "password").write_text(SECRET)
    (folder := tmp_path / "credentials").mkdir()
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    path = write_plant(tmp_path, 1883, mqtt={"username": "u", "password": text})
    with pytest.raises(ConfigError, match=expected) as caught:
        load(path)
    assert SECRET not in str(caught.value)


def test_without_systemd_a_credential_says_who_sets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a service the error names LoadCredential=."""
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    path = write_plant(tmp_path, 1883, mqtt={"username": "u", "password": "${cred:pw}"})
    with pytest.raises(ConfigError, match=r"CREDENTIALS_DIRECTORY is not set.*LoadCredential=pw:PATH"):
        load(path)


# ---------------------------------------------------------------- floods


def test_a_bucket_lets_the_rate_pass_and_bursts_of_ten_seconds() -> None:
    """At 2 a second: 20 at once, then one each half second; nothing is gained by a clock that goes back."""
    bucket = Bucket(2.0)
    assert sum(bucket.take(100.0) for _ in range(30)) == 20
    assert [bucket.take(t) for t in (100.4, 100.5, 100.6, 101.1)] == [False, True, False, True]
    assert not bucket.take(50.0)
    assert [bucket.take(t) for t in (50.4, 50.6)] == [False, True]
    slow = Bucket(0.1)
    assert sum(slow.take(0.0) for _ in range(30)) == 10
    assert sum(slow.take(1e6) for _ in range(30)) == 10
    steady = Bucket(4.0)
    assert all(steady.take(k / 4.0) for k in range(1000))


def test_messages_over_the_limit_are_dropped_and_counted(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """Of 30 messages at once at most a burst of the limited sensor is scored and the rest counted; the other keeps all."""
    path = write_plant(tmp_path, broker.port, {"a": {"max_messages_per_s": 1e-3}, "b": {}})
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        for seq in range(30):
            ear.publish("plant/a", message(seq))
            ear.publish("plant/b", message(seq))
        ear.wait("edge/t/s/b/score", 30)
        until(lambda: agent.daemon._tally.counts() == {"a": {"rate_limited": 20}}, what="the count")
        ear.wait("edge/t/s/a/score", 10)
        until(lambda: ear.json("edge/t/health")[-1]["drops"] == {"a": {"rate_limited": 20}}, what="health")
    assert agent.rows("SELECT sensor, count(*) FROM scores GROUP BY sensor") == [("a", 10), ("b", 30)]
    assert caplog.text.count("max_messages_per_s (0.001)") == 1


# ---------------------------------------------------------------- the service


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_units_exposure_is_at_most_two() -> None:
    """`systemd-analyze security` prints an exposure of at most 2.0 for the unit as shipped."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(ROOT / "deploy" / "edge-agent.service")],
        capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    found = re.search(r"Overall exposure level for edge-agent\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= 2.0


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_the_units_credential_example_verifies(tmp_path: Path) -> None:
    """systemd accepts the unit with its LoadCredential= line taken live."""
    text = (ROOT / "deploy" / "edge-agent.service").read_text()
    assert text.count("\n#LoadCredential=") == 1
    unit = tmp_path / "edge-agent.service"
    unit.write_text(text.replace("\n#LoadCredential=", "\nLoadCredential=").replace("/opt/edge-agent/venv/bin/edge-agent", "/bin/true"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
