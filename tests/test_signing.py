"""Signed bundles: what is refused, before anything of it is interpreted, and by whose words."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from agents import write_plant
from bundles import make_indicator_bundle

from edge_agent import bundle as bundles
from edge_agent import signing
from edge_agent.assemble import assemble, check, load
from edge_agent.errors import BundleError, ConfigError
from edge_agent.signing import Verifier, make_keys, sign
from trainer import cli


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A fresh pair."""
    return make_keys(tmp_path / "plant")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A bundle with a good signature."""
    make_indicator_bundle(tmp_path / "rms")
    sign(tmp_path / "rms", keys[0])
    return tmp_path / "rms"


def test_a_signed_bundle_loads_with_the_key_and_without(signed: Path, keys: tuple[Path, Path]) -> None:
    """The signature is asked for where there is a key, and does not disturb where there is none."""
    assert bundles.load(signed, verifier=Verifier(keys[1])).sha256 == bundles.load(signed).sha256


def _other_key(path: Path) -> None:
    private, _ = make_keys(path.parent / "other")
    sign(path, private)


def _trained_again(path: Path) -> None:
    signature = (path / "bundle.sig").read_bytes()
    make_indicator_bundle(path, seed=7)
    assert not (path / "bundle.sig").exists()
    (path / "bundle.sig").write_bytes(signature)


def _meddled(path: Path) -> None:
    with np.load(path / "calibration.npz", allow_pickle=False) as data:
        np.savez(path / "calibration.npz", scores=data["scores"] * 9.0)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"]["calibration.npz"] = bundles.sha256((path / "calibration.npz").read_bytes())
    (path / "bundle.json").write_text(json.dumps(manifest))


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "unsigned": (lambda p: (p / "bundle.sig").unlink(), "is not signed, and bundles.public_key asks for it"),
    "signed by another": (_other_key, "does not verify.*another key signed it"),
    "another bundle's signature": (_trained_again, "does not verify"),
    "files and hashes changed": (_meddled, "does not verify: bundle.json was changed"),
    "one blank more": (lambda p: (p / "bundle.json").write_text((p / "bundle.json").read_text() + " "), "does not verify"),
    "signature cut off": (lambda p: (p / "bundle.sig").write_bytes(b"\0" * 63), "does not verify"),
    "signature too long": (
        lambda p: (p / "bundle.sig").write_bytes((p / "bundle.sig").read_bytes() + b"\0"), "does not verify",
    ),
    "empty signature": (lambda p: (p / "bundle.sig").write_bytes(b""), "does not verify"),
    "a folder for a signature": (lambda p: ((p / "bundle.sig").unlink(), (p / "bundle.sig").mkdir()), "bundle.sig: Is a dir"),
    "not JSON at all": (lambda p: (p / "bundle.json").write_bytes(b"\xff"), "does not verify"),
    "a file changed": (lambda p: (p / "CARD.md").write_text("?"), "CARD.md: sha256 is"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_signed_is_refused(
    signed: Path, keys: tuple[Path, Path], case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a BundleError with the mend, and but for a file under a good signature the manifest is never parsed."""
    spoil, expected = REFUSED[case]
    spoil(signed)
    parsed: list[Path] = []
    whole = bundles.parse_manifest
    monkeypatch.setattr(bundles, "parse_manifest", lambda path, text: (parsed.append(path), whole(path, text))[1])
    for read in (bundles.load, bundles.read_manifest):
        if case == "a file changed" and read is bundles.read_manifest:
            continue
        with pytest.raises(BundleError, match=expected):
            read(signed, verifier=Verifier(keys[1]))
    assert bool(parsed) == (case == "a file changed")


def test_every_bit_of_the_signature_counts(signed: Path, keys: tuple[Path, Path]) -> None:
    """A signature with any one bit turned does not verify."""
    verifier, text = Verifier(keys[1]), (signed / "bundle.json").read_bytes()
    whole = (signed / "bundle.sig").read_bytes()
    assert len(whole) == signing.SIGNATURE_BYTES
    for bit in range(8 * len(whole)):
        turned = bytearray(whole)
        turned[bit // 8] ^= 1 << bit % 8
        (signed / "bundle.sig").write_bytes(turned)
        with pytest.raises(BundleError, match="does not verify"):
            verifier.verify(signed, text)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_agrees(signed: Path, keys: tuple[Path, Path]) -> None:
    """openssl verifies what we sign, and we what openssl signs."""
    manifest, signature = str(signed / "bundle.json"), signed / "bundle.sig"
    verify = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", str(keys[1]), "-rawin", "-in", manifest, "-sigfile"]
    subprocess.run([*verify, str(signature)], check=True, capture_output=True)
    ours = signature.read_bytes()
    signature.unlink()
    subprocess.run(
        ["openssl", "pkeyutl", "-sign", "-inkey", str(keys[0]), "-rawin", "-in", manifest, "-out", str(signature)],
        check=True, capture_output=True,
    )  # fmt: skip
    Verifier(keys[1]).verify(signed, (signed / "bundle.json").read_bytes())
    assert signature.read_bytes() == ours  # Ed25519 draws no random numbers


def test_the_agent_asks_for_the_signature_where_a_key_is_set(tmp_path: Path, signed: Path, keys: tuple[Path, Path]) -> None:
    """`bundles.public_key` lets the signed bundle in; once unsigned it is a mistake under the sensor's model."""
    path = write_plant(tmp_path, 1883, bundles={"public_key": "plant.pub"})
    assert set(assemble(load(path))) == {"a"}
    (signed / "bundle.sig").unlink()
    (problem,) = check(path)
    assert problem.where == "sensors.a.model"
    assert "is not signed, and bundles.public_key asks for it" in problem.expected
    assert set(assemble(load(write_plant(tmp_path, 1883)))) == {"a"}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("none.pub", "none.pub: No such file"),
        ("plant.key", "plant.key: is no public key in PEM form"),
        ("text.pub", "text.pub: is no public key in PEM form"),
        ("ec.pub", "expected an Ed25519 public key"),
    ],
)
def test_a_key_that_is_none_lets_nothing_in(
    tmp_path: Path, signed: Path, keys: tuple[Path, Path], key: str, expected: str
) -> None:
    """Where the public key cannot be read no bundle is used, and the error names the key's file."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ec

    (tmp_path / "text.pub").write_text("no key")
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    (tmp_path / "ec.pub").write_bytes(other.public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(ConfigError, match=expected):
        assemble(load(write_plant(tmp_path, 1883, bundles={"public_key": key})))


@pytest.mark.parametrize("section", ["{public_kye: plant.pub}", "{public_key: 5}", "plant.pub"])
def test_a_mistaken_key_looks_into_no_bundle(
    tmp_path: Path, signed: Path, section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a mistake in `bundles` the configuration is refused without a look into unsigned bundles."""
    (signed / "bundle.sig").unlink()
    path = write_plant(tmp_path, 1883)
    path.write_text(f"{path.read_text()}\nbundles: {section}\n")
    monkeypatch.setattr(bundles, "parse_manifest", lambda *_: pytest.fail("a bundle was looked into"))
    (problem,) = check(path)
    assert problem.where.startswith("bundles")


def test_edge_trainer_makes_keys_and_signs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """keygen writes a private key that only its owner reads, never over another; sign's bundle verifies."""
    make_indicator_bundle(tmp_path / "rms")
    assert cli.main(["keygen", "-o", str(tmp_path / "keys" / "plant")]) == 0
    private, public = tmp_path / "keys" / "plant.key", tmp_path / "keys" / "plant.pub"
    assert private.stat().st_mode & 0o077 == 0
    before = private.read_bytes()
    assert cli.main(["keygen", "-o", str(tmp_path / "keys" / "plant")]) == 1
    assert "is not overwritten" in capsys.readouterr().err
    assert private.read_bytes() == before
    assert cli.main(["sign", "--bundle", str(tmp_path / "rms"), "--key", str(private)]) == 0
    out = capsys.readouterr().out
    assert bundles.load(tmp_path / "rms", verifier=Verifier(public)).sha256 in out
    assert before.decode() not in out
    for key in (public, tmp_path / "none.key"):
        assert cli.main(["sign", "--bundle", str(tmp_path / "rms"), "--key", str(key)]) == 1
        assert str(key) in capsys.readouterr().err


def test_what_does_not_load_is_not_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    """sign verifies the bundle first: a damaged one gets no signature."""
    make_indicator_bundle(tmp_path / "rms")
    (tmp_path / "rms" / "golden.npz").write_bytes(b"")
    assert cli.main(["sign", "--bundle", str(tmp_path / "rms"), "--key", str(keys[0])]) == 1
    assert not (tmp_path / "rms" / "bundle.sig").exists()


def test_without_a_key_nothing_of_cryptography_is_loaded(tmp_path: Path) -> None:
    """An agent without bundles.public_key neither needs nor imports the package."""
    path = write_plant(tmp_path, 1883)
    code = (
        "import sys; sys.modules['cryptography'] = None; from pathlib import Path; from edge_agent import assemble, daemon;"
        "print(len(assemble.assemble(assemble.load(Path(sys.argv[1])))))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    make_keys(tmp_path / "plant")
    write_plant(tmp_path, 1883, bundles={"public_key": "plant.pub"})
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert "signatures need the package cryptography" in done.stderr


def test_another_bundle_begins_with_its_own_history_and_votes(tmp_path: Path) -> None:
    """A state kept under one bundle and loaded under another of the same shape keeps the alarm, not its votes or history."""
    from dataclasses import replace

    from edge_agent import pipeline

    path = write_plant(tmp_path, 1883)
    old = assemble(load(path))["a"]
    state = pipeline.initial(old)
    alarm = replace(state.alarm, state="UNACK", alarm_id="x", severity="warning", since=1.0, ratios=(1.0, 2.0), raise_since=5.0)
    kept = pipeline.dump(replace(state, alarm=alarm, history=np.ones_like(state.history), history_end=7.0))
    same = pipeline.load(old, kept)
    assert same is not None
    assert (same.alarm, same.history_end) == (alarm, 7.0)
    make_indicator_bundle(tmp_path / "rms", seed=3)
    after = pipeline.load(new := assemble(load(path))["a"], kept)
    assert after is not None
    told, notice = pipeline.exchanged(new, after, 9.0)
    assert told.bundle == new.identity.sha256 != old.identity.sha256
    assert notice is not None
    assert notice.extra is not None
    assert notice.extra["notice"]["kind"] == "bundle"
    assert pipeline.exchanged(new, told, 9.0) == (told, None)
    assert after.alarm == replace(alarm, ratios=(), raise_since=None, return_since=None)
    assert (len(after.history), after.history_end) == (0, None)
