"""A bundle that must not be used is refused with its place and the mend, and costs no other sensor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agents import Process, message, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, until

from edge_agent import bundle as bundles
from edge_agent.assemble import check
from edge_agent.errors import BundleError

DEMO = Path(__file__).parents[1] / "models" / "demo-lstm-ae"


def _rewrite(path: Path, name: str, data: bytes) -> None:
    """Change a file and make its hash right again, as somebody who meddles would."""
    (path / name).write_bytes(data)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"][name] = bundles.sha256(data)
    (path / "bundle.json").write_text(json.dumps(manifest))


def _manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / "bundle.json").read_text())
    change(manifest)
    (path / "bundle.json").write_text(json.dumps(manifest))


def _flip(path: Path) -> None:
    data = bytearray((path / "model.tflite").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "model.tflite").write_bytes(bytes(data))


def _golden(path: Path) -> None:
    with np.load(path / "golden.npz") as z:
        arrays = dict(z)
    arrays["scores"] = arrays["scores"] * 1.3
    np.savez(path / "golden.npz", **arrays)
    _rewrite(path, "golden.npz", (path / "golden.npz").read_bytes())


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "one bit of the model": (_flip, r"model.tflite: sha256 is .* copy the bundle again"),
    "model cut off": (
        lambda p: (p / "model.tflite").write_bytes((p / "model.tflite").read_bytes()[:5000]),
        "changed or cut off",
    ),
    "model missing": (lambda p: (p / "model.tflite").unlink(), "model.tflite: No such file"),
    "manifest missing": (lambda p: (p / "bundle.json").unlink(), "bundle.json: No such file"),
    "manifest cut off": (
        lambda p: (p / "bundle.json").write_bytes((p / "bundle.json").read_bytes()[:300]),
        "bundle.json: .* train the bundle again",
    ),
    "calibration missing": (lambda p: (p / "calibration.npz").unlink(), "calibration.npz: No such file"),
    "not a model": (lambda p: _rewrite(p, "model.tflite", b"GIF89a..."), "not a TFLite flatbuffer"),
    "garbage in the shape of a model": (
        lambda p: _rewrite(p, "model.tflite", b"\x1c\0\0\0TFL3" + bytes(range(256)) * 4),
        "model.tflite",
    ),
    "Flex operators": (
        lambda p: _rewrite(p, "model.tflite", (p / "model.tflite").read_bytes() + b"FlexErf"),
        "builtin operators only",
    ),
    "another number of features": (
        lambda p: _manifest(p, lambda m: m["features"]["families"].pop()),
        "standardisation has",
    ),
    "another history": (
        lambda p: _manifest(p, lambda m: m["features"]["context"].update(width=7)),
        "do not belong together",
    ),
    "an unknown feature": (
        lambda p: _manifest(p, lambda m: m["features"]["families"][0].update(kind="time_domian")),
        "'time_domian' is unknown",
    ),
    "an unknown score": (
        lambda p: _manifest(p, lambda m: m["score"].update(kind="recon")),
        "'recon' is unknown",
    ),
    "a limit of zero": (lambda p: _manifest(p, lambda m: m["threshold"].update(value=0.0)), "above 0"),
    "a newer schema": (
        lambda p: _manifest(p, lambda m: m.update(schema=2)),
        "schema 2, this version reads 1",
    ),
    "other golden scores": (_golden, "golden windows score differently on this machine"),
    "a path that leaves the folder": (
        lambda p: _manifest(p, lambda m: m["files"].update({"../x": "0"})),
        "expected plain file names",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_bundle_is_refused_by_name(tmp_path: Path, what: str) -> None:
    """Each way of breaking a bundle raises BundleError that names the folder, the fault and the mend."""
    break_it, says = BROKEN[what]
    path = tmp_path / "demo"
    shutil.copytree(DEMO, path)
    bundles.load(path)
    break_it(path)
    with pytest.raises(BundleError, match=says) as caught:
        bundles.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("shell", "says"),
    [("", "refused: True\nother\n"), ("2>&-", ""), ("NOWHERE=1", None)],
    ids=["open", "closed", "no temporary folder"],
)
def test_loading_a_model_says_nothing_of_its_own(shell: str, says: str | None) -> None:
    """The runtime's line about its delegate is swallowed and what others write meanwhile is not; a closed
    stderr, or no folder for temporary files, changes nothing but that."""
    code = (
        "import os, tempfile\nfrom pathlib import Path\nfrom edge_agent import bundle, inference\n"
        "if os.environ.get('NOWHERE'):\n    tempfile.tempdir = '/dev/null/none'\n"
        f"bundle.load(Path({str(DEMO)!r}))\n"
        "try:\n    inference.operators(b'    TFL3 cut off')\nexcept bundle.BundleError:\n"
        "    print('loaded')\n"
        "with inference._without_chatter():\n"
        "    if os.environ.get('SAY'):\n"
        "        os.write(2, b'refused: True\\n' + inference._CHATTER + b'\\nother\\n')\n"
    )
    environment, redirect = (shell, "") if "=" in shell else ("", shell)
    say = "SAY=1" if says else ""
    command = f"{say} {environment} exec {sys.executable} -c \"$CODE\" {redirect}"
    done = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "CODE": code},
        cwd=DEMO.parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "loaded\n"
    if says is not None:
        assert done.stderr.removeprefix("ERROR: The model is not a valid Flatbuffer buffer\n") == says


def test_a_bundle_for_another_rate_or_channel_count_is_refused() -> None:
    """fs and channels of sensor and bundle must agree; the message names both."""
    bundle = bundles.load(DEMO)
    bundles.check_sensor(bundle, 10240.0, 1)
    with pytest.raises(BundleError, match="trained for 10240 Hz, the sensor has fs_hz 12000"):
        bundles.check_sensor(bundle, 12000.0, 1)
    with pytest.raises(BundleError, match="trained for 1 channel"):
        bundles.check_sensor(bundle, 10240.0, 3)


def test_a_sensor_that_does_not_fit_its_bundle_is_told_in_one_sentence(tmp_path: Path) -> None:
    """Rate and channels are each named with what came and what the bundle was trained for."""
    path = write_plant(tmp_path, 1, {"a": {"fs_hz": 44100, "channels": [0, 1], "payload": {"format": "f32le", "n_channels": 2}}})
    assert [str(problem) for problem in check(path)] == [
        f"sensors.a.fs_hz: got 44100; expected 1000, the rate {tmp_path / 'rms'} was trained for",
        f"sensors.a.channels: got [0, 1]; expected 1 channel, the number {tmp_path / 'rms'} was trained for",
    ]


@pytest.mark.parametrize("what", ["one bit of the model", "Flex operators", "for another fs"])
def test_a_broken_bundle_leaves_every_other_sensor_running(
    tmp_path: Path, broker: Broker, listen: Callable[..., Listener], what: str
) -> None:
    """An agent with one unusable bundle runs its other sensor, says `fault` for the first and logs why;
    after the bundle is mended and a SIGHUP both run."""
    shutil.copytree(DEMO, tmp_path / "broken")
    fs_hz = 9000 if what == "for another fs" else 10240
    if what in BROKEN:
        BROKEN[what][0](tmp_path / "broken")
    path = write_plant(tmp_path, broker.port, {"a": {}, "bad": {"model": "broken", "fs_hz": fs_hz}})
    listener = listen("edge/t/#")

    def refused() -> list[str] | None:
        health = listener.json("edge/t/health")
        return health[-1]["refused_sensors"] if health else None

    agent = Process(path)
    try:
        listener.wait("edge/t/s/bad/status")
        assert listener.on("edge/t/s/bad/status")[-1] == b"fault"
        for seq in range(4):
            listener.publish("plant/a", message(seq))
        listener.wait("edge/t/s/a/score", 4)
        until(lambda: refused() == ["bad"], what="the refusal in health")
        assert "bad is not run, the other sensors are" in agent.said()
        if what != "for another fs":
            shutil.rmtree(tmp_path / "broken")
            shutil.copytree(DEMO, tmp_path / "broken")
            agent.send(signal.SIGHUP)
            until(lambda: refused() == [], what="the bad sensor's return")
    finally:
        assert agent.end() == 0


def test_no_usable_bundle_at_all_is_a_bad_configuration(tmp_path: Path, broker: Broker) -> None:
    """With nothing left to run the agent exits with 78 and names every problem."""
    path = write_plant(tmp_path, broker.port, {"a": {"model": "nowhere"}, "b": {"model": "nowhere-else"}})
    agent = Process(path)
    assert agent.process.wait(20) == 78
    assert "sensors.a.model" in agent.said()
    assert "sensors.b.model" in agent.said()


def test_writing_loads_what_it_wrote(tmp_path: Path) -> None:
    """A bundle is verified before it takes its place; an older one there is replaced whole."""
    first = make_indicator_bundle(tmp_path / "rms", seed=0)
    second = make_indicator_bundle(tmp_path / "rms", seed=1)
    assert first.sha256 != second.sha256 == bundles.load(tmp_path / "rms").sha256
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rms"]
