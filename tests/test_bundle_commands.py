"""Bundles on a running device: installed, tried beside, activated, rolled back; and refused, while the old one goes on."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from agents import LAYOUT, Agent, message, write_plant
from bundles import healthy, make_indicator_bundle
from conftest import Broker, Listener, until

from edge_agent import assemble, cli, installed, payloads
from edge_agent import bundle as bundles
from edge_agent.config import load
from edge_agent.errors import BundleError
from edge_agent.signals import Chunk
from edge_agent.signing import Verifier, make_keys, sign
from edge_agent.worker import SHADOW_BACKLOG

Listen = Callable[..., Listener]


def _version(path: Path, version: str, *, seed: int = 0, limit: float | None = None) -> Path:
    """An indicator bundle of this version; `limit` in place of the fitted one."""
    bundle = make_indicator_bundle(path, seed=seed)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest |= {"version": version, "name": "rms"}
    if limit is not None:
        manifest["threshold"]["value"] = limit
    (path / "bundle.json").write_text(json.dumps(manifest))
    assert bundle.manifest.version == "1"
    return path


def _edge(config: Path, *arguments: str) -> int:
    return cli.main(["bundle", *arguments, "-c", str(config)])


# ---------------------------------------------------------------- archives


def _zip(folder: Path, target: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, prefix + file.name)
    return target


def _tar(folder: Path, target: Path, prefix: str = "", mode: str = "w") -> Path:
    with tarfile.open(target, mode) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, prefix + file.name)
    return target


GOOD: dict[str, Callable[[Path, Path], Path]] = {
    "folder": lambda b, _t: b,
    "tar": lambda b, t: _tar(b, t / "b.tar"),
    "tar.gz in a folder": lambda b, t: _tar(b, t / "b.tar.gz", "rms/", "w:gz"),
    "tar with ./": lambda b, t: _tar(b, t / "b.tar", "./"),
    "zip": lambda b, t: _zip(b, t / "b.zip"),
    "zip in a folder": lambda b, t: _zip(b, t / "b.zip", "rms/"),
}


@pytest.mark.parametrize("how", GOOD)
def test_a_bundle_is_installed_from_a_folder_and_archives(tmp_path: Path, how: str) -> None:
    """Each form gives the same files under NAME/VERSION, without those that no hash speaks for; twice is well."""
    source = _version(tmp_path / "rms", "2")
    (source / ".DS_Store").write_bytes(b"x")
    store = tmp_path / "bundles"
    packed = GOOD[how](source, tmp_path)
    label, bundle, new = installed.install(packed, store, None)
    assert (label, bundle.path, new) == ("rms/2", store / "rms" / "2", True)
    names = {p.name for p in source.iterdir()} - {".DS_Store"}
    assert {p.name: p.read_bytes() for p in bundle.path.iterdir()} == {n: (source / n).read_bytes() for n in names}
    assert installed.install(packed, store, None)[2] is False
    assert list(installed.installed(store)) == [("rms/2", store / "rms" / "2")]
    assert [p.name for p in store.iterdir() if p.name.startswith(".incoming")] == []


def _with_member(target: Path, name: str, **fields: Any) -> Path:
    with tarfile.open(target, "a") as archive:
        member = tarfile.TarInfo(name)
        for key, value in fields.items():
            setattr(member, key, value)
        archive.addfile(member, io.BytesIO(b"x" * member.size))
    return target


def _zip_link(bundle: Path, target: Path) -> Path:
    _zip(bundle, target)
    with zipfile.ZipFile(target, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    return target


def _zip_more(bundle: Path, target: Path, *names: str) -> Path:
    _zip(bundle, target)
    with zipfile.ZipFile(target, "a", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, "x")
    return target


def _zip_bomb(target: Path) -> Path:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(5):
            archive.writestr(f"{n}", bytes(installed.MAX_BYTES // 4))
    return target


def _gzip_bomb(target: Path) -> Path:
    with tarfile.open(target, "w:gz") as archive:
        member = tarfile.TarInfo("zeros")
        member.size = installed.MAX_BYTES + (2 << 20)
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    assert target.stat().st_size < 1 << 20
    return target


def _link_beside(bundle: Path) -> Path:
    (bundle / "secret").symlink_to("/etc/passwd")
    return bundle


def _folder_inside(bundle: Path) -> Path:
    (bundle / "more").mkdir()
    return bundle


def _pipe_inside(bundle: Path) -> Path:
    os.mkfifo(bundle / "pipe")
    return bundle


def _random(target: Path) -> Path:
    target.write_bytes(np.random.default_rng(0).bytes(5000))
    return target


def _cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


REFUSED: dict[str, tuple[Callable[[Path, Path], Path], str]] = {
    "a path that leaves": (lambda b, t: _with_member(_tar(b, t / "b.tar"), "../evil", size=1), "expected the plain files"),
    "an absolute path": (lambda b, t: _with_member(_tar(b, t / "b.tar"), "/tmp/evil", size=1), "expected the plain files"),
    "a deep path": (lambda b, t: _with_member(_tar(b, t / "b.tar"), "a/b/c", size=1), "expected the plain files"),
    "a symbolic link": (
        lambda b, t: _with_member(_tar(b, t / "b.tar"), "x", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "link or device",
    ),
    "a hard link": (
        lambda b, t: _with_member(_tar(b, t / "b.tar"), "x", type=tarfile.LNKTYPE, linkname="bundle.json"), "link or device",
    ),
    "a device": (lambda b, t: _with_member(_tar(b, t / "b.tar"), "x", type=tarfile.CHRTYPE), "link or device"),
    "a folder that leaves": (
        lambda b, t: _with_member(_tar(b, t / "b.tar"), "../x", type=tarfile.DIRTYPE), "expected the plain files",
    ),
    "a file twice": (lambda b, t: _with_member(_tar(b, t / "b.tar"), "CARD.md", size=1), "CARD.md twice"),
    "files in two folders": (lambda b, t: _with_member(_tar(b, t / "b.tar", "rms/"), "other/x", size=1), "in 2 folders"),
    "zip: a path that leaves": (lambda b, t: _zip_more(b, t / "b.zip", "../evil"), "expected the plain files"),
    "zip: a Windows path": (lambda b, t: _zip_more(b, t / "b.zip", "..\\evil"), "expected the plain files"),
    "zip: a drive": (lambda b, t: _zip_more(b, t / "b.zip", "C:evil"), "expected the plain files"),
    "zip: a link": (lambda b, t: _zip_link(b, t / "b.zip"), "symbolic link; expected plain files"),
    "zip: very many files": (lambda b, t: _zip_more(b, t / "b.zip", *(f"f{n}" for n in range(99))), "more than 64 files"),
    "zip: a bomb": (lambda _b, t: _zip_bomb(t / "b.zip"), "bytes unpacked; expected one bundle"),
    "gzip: a bomb": (lambda _b, t: _gzip_bomb(t / "b.tar.gz"), "bytes unpacked; expected one bundle"),
    "folder: a link": (lambda b, _t: _link_beside(b), "secret: is a symbolic link; expected plain files"),
    "folder: a folder": (lambda b, _t: _folder_inside(b), "more: is a folder; expected plain files"),
    "folder: a pipe": (lambda b, _t: _pipe_inside(b), "pipe: is a device or pipe; expected plain files"),
    "nothing": (lambda _b, t: t / "none.tar", "is not there; expected a bundle"),
    "garbage": (lambda _b, t: _random(t / "b.tar"), "cannot be unpacked"),
    "half a zip": (lambda b, t: _cut(_zip(b, t / "b.zip")), "cannot be unpacked"),
    "half a tar.gz": (lambda b, t: _cut(_tar(b, t / "b.tar.gz", "", "w:gz")), "cannot be unpacked"),
    "half a tar": (lambda b, t: _cut(_tar(b, t / "b.tar")), "bundle.json|cannot be unpacked"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_bundle_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    """Each archive is a BundleError that names it, no file appears outside the store, and the store stays empty."""
    spoil, expected = REFUSED[case]
    source = spoil(_version(tmp_path / "rms", "2"), tmp_path)
    before = {p for p in tmp_path.rglob("*") if "bundles" not in p.parts}
    with pytest.raises(BundleError, match=expected) as caught:
        installed.install(source, tmp_path / "bundles", None)
    assert str(source) in str(caught.value)
    assert [p.name for p in (tmp_path / "bundles").iterdir()] == [".lock"]
    assert {p for p in tmp_path.rglob("*") if "bundles" not in p.parts} == before
    assert not (tmp_path.parent / "evil").exists()
    assert not Path("/tmp/evil").exists()


@pytest.mark.parametrize("name", ["../up", ".hidden", "a/b", "", "x" * 101])
def test_a_name_that_is_no_folders_is_refused(tmp_path: Path, name: str) -> None:
    """Name and version in bundle.json become folders: only plain ones do."""
    for field in ("name", "version"):
        path = _version(tmp_path / "rms", "2")
        manifest = {**json.loads((path / "bundle.json").read_text()), field: name}
        (path / "bundle.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match="expected a name of letters"):
            installed.install(path, tmp_path / "bundles", None)
        shutil.rmtree(path)
    assert [p.name for p in (tmp_path / "bundles").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", ["active.json", "active.json.new", "Active.JSON"])
def test_a_name_that_the_store_uses_itself_is_refused(tmp_path: Path, name: str) -> None:
    """A folder of that name would stand where the choices are kept: refused in words, and the choices can be read."""
    path, store = _version(tmp_path / "rms", "2"), tmp_path / "bundles"
    (path / "bundle.json").write_text(json.dumps({**json.loads((path / "bundle.json").read_text()), "name": name}))
    with pytest.raises(BundleError, match=f"says name '{name}', which is a file of the store itself; give the bundle another name"):
        installed.install(path, store, None)
    assert [p.name for p in store.iterdir()] == [".lock"]
    assert installed.choices(store) == {}


def _gone(path: Path) -> Path:
    path.unlink()
    return path


def _changed(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: _cut(folder / "calibration.npz"),
        lambda folder: _gone(folder / "golden.npz"),
        lambda folder: [_changed(folder / name) for name in ("calibration.npz", "CARD.md")],
        lambda folder: _cut(folder / "bundle.json"),
        lambda folder: [_gone(path) for path in folder.iterdir()],
    ],
    ids=["cut off", "lost", "changed", "cut bundle.json", "empty"],
)
def test_installing_over_a_damaged_copy_puts_it_right(
    tmp_path: Path, spoil: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """What the error about a damaged bundle says to do helps: the copy is as it was, which files were wrong is logged, it counts
    as new; once more there is nothing to do, and another bundle of that version is refused still."""
    source, store = _version(tmp_path / "rms", "2"), tmp_path / "bundles"
    label, wanted, _ = installed.install(source, store, None)
    before = {p.name: p.read_bytes() for p in (store / label).iterdir()}
    spoil(store / label)
    wrong = {name for name, data in before.items() if not (store / label / name).exists() or (store / label / name).read_bytes() != data}
    with pytest.raises(BundleError):
        bundles.load(store / label)
    assert installed.install(source, store, None)[2] is True
    assert {p.name: p.read_bytes() for p in (store / label).iterdir()} == before
    assert bundles.load(store / label).sha256 == wanted.sha256
    assert all(name in caplog.text for name in wrong)
    assert installed.install(source, store, None)[2] is False
    with pytest.raises(BundleError, match="another bundle rms/2 is installed already"):
        installed.install(_version(tmp_path / "rms", "2", seed=5), store, None)


def test_another_bundle_of_the_same_version_is_refused(tmp_path: Path) -> None:
    """What is installed is never changed: a sensor may be using it."""
    label, first, _ = installed.install(_version(tmp_path / "rms", "2"), tmp_path / "bundles", None)
    with pytest.raises(BundleError, match="another bundle rms/2 is installed already"):
        installed.install(_version(tmp_path / "rms", "2", seed=5), tmp_path / "bundles", None)
    assert bundles.load(tmp_path / "bundles" / label).sha256 == first.sha256


# ---------------------------------------------------------------- choices


def test_a_choice_stands_in_for_model_until_model_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The installed bundle is used in place of `model`; after another `model` in the file, that one is."""
    path = write_plant(tmp_path, 1883)
    label, bundle, _ = installed.install(_version(tmp_path / "new", "2", seed=4), tmp_path / "bundles", None)
    sensor = load(path).sensors["a"]
    installed.choose(sensor, lambda was: installed.activated(was, label))
    assert assemble.assemble(load(path))["a"].identity.sha256 == bundle.sha256
    make_indicator_bundle(tmp_path / "other", seed=9)
    other = write_plant(tmp_path, 1883, {"a": {"model": "other"}})
    assert assemble.assemble(load(other))["a"].identity.bundle == "other"
    assert "no longer holds" in caplog.text
    assert assemble.assemble(load(write_plant(tmp_path, 1883)))["a"].identity.sha256 == bundle.sha256


@pytest.mark.parametrize("text", ["{", "[]", '{"sensors": {"a": {"configured": "x", "active": "../../etc"}}}', "\xff"])
def test_a_damaged_choice_falls_back_to_model(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    """An active.json that cannot be read is logged and the configuration's bundle used: the agent runs."""
    path = write_plant(tmp_path, 1883)
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "active.json").write_bytes(text.encode("latin-1"))
    assert assemble.assemble(load(path))["a"].identity.version == "1"
    assert "active.json" in caplog.text


def test_rollback_goes_back_step_by_step(tmp_path: Path) -> None:
    """Three choices are taken back one by one to the configuration's own bundle; then there is nothing to go back to."""
    path = write_plant(tmp_path, 1883)
    sensor = load(path).sensors["a"]
    for label in ("rms/2", "rms/3", "rms/3", "rms/4"):
        installed.choose(sensor, lambda was, label=label: installed.activated(was, label))
    seen = []
    for _ in range(3):
        installed.choose(sensor, installed.rolled_back)
        seen.append(installed.choice(sensor).active)
    assert seen == ["rms/3", "rms/2", None]
    with pytest.raises(BundleError, match="no earlier bundle"):
        installed.choose(sensor, installed.rolled_back)


# ---------------------------------------------------------------- the running agent


def _scoring(ear: Listener, seq: int, level: float = 1.0) -> dict[str, Any]:
    """Send one window and return its score message."""
    n = len(ear.on("edge/t/s/a/score"))
    ear.publish("plant/a", message(seq, level))
    return json.loads(ear.wait("edge/t/s/a/score", n + 1)[n])


def test_install_activate_and_rollback_on_a_running_agent(
    tmp_path: Path, broker: Broker, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands switch a running agent to a bundle with another limit and back, without a lost window."""
    path = write_plant(tmp_path, broker.port)
    new = _version(tmp_path / "new", "2", limit=7.5)
    ear = listen("edge/#")
    assert _edge(path, "install", str(_zip(new, tmp_path / "new.zip"))) == 0
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        old = _scoring(ear, 0)["threshold"]
        assert _edge(path, "activate", "a", "rms") == 0
        assert "rms/2 is active; the agent has reloaded: 1 sensor; changed: a" in capsys.readouterr().out
        assert _scoring(ear, 1)["threshold"] == 7.5
        assert _edge(path, "list", "--json") == 0
        listed = {row["bundle"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
        assert listed["rms/2"]["sensors"] == ["a"]
        assert listed[str(tmp_path / "rms")]["sensors"] == []
        assert _edge(path, "rollback", "a") == 0
        assert _scoring(ear, 2)["threshold"] == old
        assert _edge(path, "rollback", "a") == 1
        assert "no earlier bundle" in capsys.readouterr().err
    assert agent.rows("SELECT seq FROM scores ORDER BY id") == [(0,), (1,), (2,)]
    assert _edge(path, "activate", "a", "rms/2") == 0
    assert "no agent is running, it takes effect when one starts" in capsys.readouterr().out
    with Agent(path):
        ear.wait("edge/t/status", 3)
        assert _scoring(ear, 3)["threshold"] == 7.5


def _tampered(bundle: Path) -> None:
    data = bytearray((bundle / "calibration.npz").read_bytes())
    data[-1] ^= 1
    (bundle / "calibration.npz").write_bytes(bytes(data))


def _unsigned(bundle: Path) -> None:
    (bundle / "bundle.sig").unlink()


def _other_scores(bundle: Path) -> None:
    """Golden scores that this machine does not find again, hashed and signed as if all were well."""
    with np.load(bundle / "golden.npz", allow_pickle=False) as data:
        arrays = dict(data)
    np.savez(bundle / "golden.npz", **{**arrays, "scores": arrays["scores"] * 1.3})
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["golden.npz"] = bundles.sha256((bundle / "golden.npz").read_bytes())
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    sign(bundle, bundle.parent.parent.parent / "plant.key" if bundle.parent.name == "rms" else bundle.parent / "plant.key")


@pytest.fixture
def keyed(tmp_path: Path, broker: Broker) -> Path:
    """The configuration of a plant whose agent asks for signatures; its own bundle and `new` have good ones."""
    private, _ = make_keys(tmp_path / "plant")
    path = write_plant(tmp_path, broker.port, bundles={"public_key": "plant.pub"})
    for bundle in (tmp_path / "rms", _version(tmp_path / "new", "2", limit=7.5)):
        sign(bundle, private)
    return path


SPOILT = {
    "tampered": (_tampered, "calibration.npz: sha256 is"),
    "unsigned": (_unsigned, "is not signed, and bundles.public_key asks for it"),
    "other golden scores": (_other_scores, "golden windows score differently on this machine"),
}


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("way", ["install", "activate", "configuration", "behind its back"])
def test_a_bad_bundle_is_refused_while_the_old_one_runs(
    keyed: Path, listen: Listen, capsys: pytest.CaptureFixture[str], case: str, way: str
) -> None:
    """Tampered, unsigned where a key is set, other golden scores: by whatever way it comes, the agent refuses it with the
    reason and scores the next window with the bundle it has, under the same limit."""
    spoil, expected = SPOILT[case]
    folder = keyed.parent
    ear = listen("edge/#")
    with Agent(keyed) as agent:
        ear.wait("edge/t/status")
        before = _scoring(ear, 0)
        old = agent.daemon.worker.sensors["a"].pipeline.identity.sha256
        if way == "install":
            spoil(folder / "new")
            assert _edge(keyed, "install", str(folder / "new")) == 1
            reason = capsys.readouterr().err
            assert list(installed.installed(folder / "bundles")) == []
        elif way == "activate":
            assert _edge(keyed, "install", str(folder / "new")) == 0
            spoil(folder / "bundles" / "rms" / "2")
            assert _edge(keyed, "activate", "a", "rms/2") == 1
            reason = capsys.readouterr().err
            assert installed.choices(folder / "bundles") == {}
        else:
            if way == "configuration":
                spoil(folder / "new")
                content = yaml.safe_load(keyed.read_text())
                content["sensors"]["a"]["model"] = "new"
                keyed.write_text(yaml.safe_dump(content))
            else:
                assert _edge(keyed, "install", str(folder / "new")) == 0
                spoil(folder / "bundles" / "rms" / "2")
                installed.choose(load(keyed).sensors["a"], lambda was: installed.activated(was, "rms/2"))
            ear.publish("edge/t/cmd/reload", {"request_id": 1})
            answer = json.loads(ear.wait("edge/t/cmd/reload/result")[0])
            assert answer["ok"] is False
            assert "the old configuration goes on" in answer["message"]
            reason = answer["message"]
        assert expected in reason
        after = _scoring(ear, 1)
        assert after["threshold"] == before["threshold"] != 7.5
        assert agent.daemon.worker.sensors["a"].pipeline.identity.sha256 == old
    assert agent.rows("SELECT seq FROM scores ORDER BY id") == [(0,), (1,)]
    assert ear.on("edge/t/s/a/status") == [b"online"]


def test_a_good_signed_bundle_goes_the_same_ways(keyed: Path, listen: Listen, capsys: pytest.CaptureFixture[str]) -> None:
    """What is refused above is refused for its fault: the sound, signed bundle is installed, verified and activated."""
    ear = listen("edge/#")
    with Agent(keyed):
        ear.wait("edge/t/status")
        assert _edge(keyed, "install", str(keyed.parent / "new")) == 0
        assert _edge(keyed, "verify", "rms/2") == 0
        assert "signature good, files as hashed, golden windows score as they should" in capsys.readouterr().out
        assert _edge(keyed, "activate", "a", "rms/2") == 0
        assert _scoring(ear, 0)["threshold"] == 7.5
    assert _edge(keyed, "list", "--json") == 0
    listed = {row["bundle"]: row for row in map(json.loads, capsys.readouterr().out.splitlines()[1:])}
    assert {row["signature"] for row in listed.values()} == {"good"}


def test_a_refusal_by_the_agent_puts_the_choice_back(
    tmp_path: Path, broker: Broker, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the reload fails for another reason, the command says so, exits 1, and the choice is as it was."""
    path = write_plant(tmp_path, broker.port)
    assert _edge(path, "install", str(_version(tmp_path / "new", "2", limit=7.5))) == 0
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        agent.daemon._reloader = lambda: (_ for _ in ()).throw(RuntimeError("something unforeseen"))
        assert _edge(path, "activate", "a", "rms/2") == 1
        assert "refused, and nothing has changed: refused, the old configuration goes on: something unforeseen" in capsys.readouterr().err
        assert installed.choice(load(path).sensors["a"]).active is None
        assert _scoring(ear, 0)["threshold"] != 7.5


def test_a_bundle_for_another_sensor_is_not_activated(
    tmp_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle of another rate is refused before anything is put down."""
    path = write_plant(tmp_path, broker.port)
    make_indicator_bundle(tmp_path / "fast", fs_hz=5000.0)
    assert _edge(path, "install", str(tmp_path / "fast")) == 0
    assert _edge(path, "activate", "a", "fast") == 1
    assert "5000, the rate" in capsys.readouterr().err
    assert installed.choices(tmp_path / "bundles") == {}
    assert _edge(path, "activate", "a", "slow") == 1
    told = capsys.readouterr().err
    assert "slow: is not installed" in told
    assert "there are fast/1" in told


# ---------------------------------------------------------------- beside


def test_a_shadow_run_scores_beside_and_tells_nothing(
    tmp_path: Path, broker: Broker, listen: Listen, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bundle with a tenth of the limit crosses always: rows and a would-be alarm in the comparison, none on the broker."""
    path = write_plant(tmp_path, broker.port)
    assert _edge(path, "install", str(_version(tmp_path / "new", "2", limit=0.1))) == 0
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        assert _edge(path, "activate", "a", "rms/2", "--shadow") == 0
        assert "rms/2 is scored beside" in capsys.readouterr().out
        for seq in range(6):
            assert _scoring(ear, seq)["threshold"] != 0.1
        assert agent.daemon.worker.shadows["a"].label == "rms/2"
    assert ear.on("edge/t/s/a/event") == []
    live = agent.rows("SELECT ts, score, ratio FROM scores ORDER BY id")
    shadow = agent.rows("SELECT ts, score, ratio, event FROM shadow_scores WHERE sensor = 'a' AND bundle = 'rms/2' ORDER BY id")
    assert [row[:2] for row in shadow] == [row[:2] for row in live]
    assert all(row[2] > 5 for row in shadow)
    assert [row[3] for row in shadow] == [None, None, "new", None, None, None]
    assert _edge(path, "list", "--json") == 0
    listed = {row["bundle"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    (comparison,) = listed["rms/2"]["comparisons"]
    counted = {k: v for k, v in comparison.items() if isinstance(v, int)}
    assert comparison["sensor"] == "a"
    assert counted == {
        "windows": 6, "live_windows": 6, "compared": 6, "agree": 0, "live_over": 0, "shadow_over": 6, "live_alarms": 0,
        "shadow_alarms": 1,
    }  # fmt: skip
    assert listed["rms/2"]["shadow"] == ["a"]
    assert _edge(path, "list") == 0
    assert "shadow_alarms" in capsys.readouterr().out
    assert _edge(path, "rollback", "a", "--shadow") == 0
    assert installed.choice(load(path).sensors["a"]).shadow is None
    with Agent(path) as agent:
        assert agent.daemon.worker.shadows == {}


def test_a_run_begun_within_a_window_is_cut_as_the_live_ones_are(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Messages of 100 samples, windows of 256: begun, and passed over for a while, in the middle of a window, the run scores the
    live bundle's own windows, and with the same limit the same scores to the last bit."""
    path = write_plant(tmp_path, broker.port)
    assert _edge(path, "install", str(_version(tmp_path / "new", "2"))) == 0
    stream = healthy(3000, seed=3)
    pieces = [
        payloads.encode(Chunk(stream[:, i : i + 100], t=1.79e9 + i / 1000.0, seq=i // 100), LAYOUT) for i in range(0, 3000, 100)
    ]
    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")

        def send(begin: int, end: int) -> None:
            for piece in pieces[begin:end]:
                ear.publish("plant/a", piece)
            ear.wait("edge/t/s/a/score", end * 100 // 256)
            until(agent.daemon.inbox.empty)

        send(0, 7)
        assert _edge(path, "activate", "a", "rms/2", "--shadow") == 0
        send(7, 14)
        depths = agent.daemon.inbox.depths
        agent.daemon.inbox.depths = lambda: {"a": SHADOW_BACKLOG + 1}
        send(14, 22)
        agent.daemon.inbox.depths = depths
        send(22, 30)
    live = agent.rows("SELECT ts, score FROM scores ORDER BY id")
    beside = agent.rows("SELECT ts, score FROM shadow_scores ORDER BY id")
    assert len(live) == 11
    assert beside == [*live[2:5], *live[8:]]


def test_a_bug_beside_never_harms_what_is_live(
    tmp_path: Path, broker: Broker, listen: Listen, caplog: pytest.LogCaptureFixture
) -> None:
    """A bundle beside whose model raises is stopped with one line; the live one scores every window, and is no fault."""
    path = write_plant(tmp_path, broker.port)
    label, _, _ = installed.install(_version(tmp_path / "new", "2"), tmp_path / "bundles", None)
    installed.choose(load(path).sensors["a"], lambda was: replace(was, shadow=label))

    def broken(_x: Any) -> Any:
        raise MemoryError("a bug beside")

    ear = listen("edge/#")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        shadow = agent.daemon.worker.shadows["a"]
        shadow.pipeline = replace(shadow.pipeline, judge=replace(shadow.pipeline.judge, model=broken))
        for seq in range(4):
            _scoring(ear, seq)
        until(lambda: agent.daemon.worker.shadows == {}, what="the end of the shadow run")
    assert ear.on("edge/t/s/a/status") == [b"online"]
    assert agent.rows("SELECT count(*) FROM scores") == [(4,)]
    assert caplog.text.count("rms/2, scored beside, failed (MemoryError: a bug beside) and is stopped") == 1


@pytest.mark.parametrize("case", SPOILT)
def test_a_bad_bundle_beside_costs_that_run_only(
    keyed: Path, listen: Listen, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One that is refused when the agent starts is told in the log; the sensor's own bundle runs."""
    spoil, expected = SPOILT[case]
    folder = keyed.parent
    assert _edge(keyed, "install", str(folder / "new")) == 0
    spoil(folder / "bundles" / "rms" / "2")
    installed.choose(load(keyed).sensors["a"], lambda was: replace(was, shadow="rms/2"))
    ear = listen("edge/#")
    with Agent(keyed) as agent:
        ear.wait("edge/t/status")
        assert _scoring(ear, 0)["threshold"] != 7.5
        assert agent.daemon.worker.shadows == {}
    assert "no bundle is scored beside" in caplog.text
    assert expected in caplog.text


def test_nothing_is_scored_beside_while_messages_wait(tmp_path: Path, broker: Broker) -> None:
    """With more than a few messages waiting the bundle beside is passed over, and joins in again afterwards."""
    path = write_plant(tmp_path, broker.port)
    label, _, _ = installed.install(_version(tmp_path / "new", "2"), tmp_path / "bundles", None)
    installed.choose(load(path).sensors["a"], lambda was: replace(was, shadow=label))
    with Agent(path) as agent:
        inbox = agent.daemon.inbox
        hold = [True]

        def wait() -> None:
            until(lambda: not hold[0])

        assert inbox.call(wait)
        for seq in range(100):
            inbox.put("a", message(seq), 1.79e9 + seq)
        hold[0] = False
        until(lambda: agent.daemon.worker.sensors["a"].windows == 100)
    assert agent.rows("SELECT count(*) FROM scores") == [(100,)]
    (n,) = agent.rows("SELECT count(*) FROM shadow_scores")[0]
    assert 0 < n <= SHADOW_BACKLOG + 1


def test_installed_bundles_are_verified_by_key_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify of a path needs no configuration: with --key the signature is good or the reason is told, without it unchecked."""
    private, public = make_keys(tmp_path / "plant")
    bundle = _version(tmp_path / "rms", "2")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bundle", "verify", str(bundle), "--key", str(public)]) == 1
    assert "is not signed" in capsys.readouterr().err
    sign(bundle, private)
    assert cli.main(["bundle", "verify", str(_zip(bundle, tmp_path / "b.zip")), "--key", str(public), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "good"
    assert cli.main(["bundle", "verify", str(bundle)]) == 0
    assert "signature not checked" in capsys.readouterr().out
    assert installed.install(bundle, tmp_path / "bundles", Verifier(public))[0] == "rms/2"
