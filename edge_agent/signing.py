"""Signatures of bundles: Ed25519 over the bytes of bundle.json, which holds the sha256 of every other file.

    edge-trainer keygen -o plant      plant.key (private, signs), plant.pub (public, verifies)
    edge-trainer sign --bundle DIR --key plant.key  ─► DIR/bundle.sig, 64 bytes
    bundles: {public_key: plant.pub}  ─► the agent refuses a bundle whose bundle.sig does not verify

The files are what openssl reads: `openssl pkeyutl -verify -pubin -inkey plant.pub -rawin -in bundle.json -sigfile
bundle.sig`. `cryptography` does the arithmetic; it is imported only where a key is in use.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edge_agent.errors import BundleError

#: The signature beside bundle.json, and its length in bytes.
SIGNATURE, SIGNATURE_BYTES = "bundle.sig", 64
_KEY_BYTES = 1 << 16


class Verifier:
    """A public key; `verify` is all it does."""

    def __init__(self, path: Path) -> None:
        """Reads the PEM file; raises BundleError where it is no Ed25519 public key."""
        serialization, ed25519 = _cryptography()
        self.path = path
        try:
            key = serialization.load_pem_public_key(_key_file(path))
        except (ValueError, TypeError) as error:
            raise BundleError(f"{path}: is no public key in PEM form ({error}); `edge-trainer keygen` makes one") from None
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise BundleError(f"{path}: is a {type(key).__name__}; expected an Ed25519 public key (`edge-trainer keygen`)")
        self._key = key

    def verify(self, folder: Path, manifest: bytes) -> None:
        """Raise BundleError unless `bundle.sig` in the folder is this key's signature of the bytes of bundle.json."""
        from cryptography.exceptions import InvalidSignature

        file = folder / SIGNATURE
        mend = f"sign it with the private key that belongs to {self.path} (edge-trainer sign --bundle {folder} --key FILE)"
        try:
            with file.open("rb") as opened:
                signature = opened.read(SIGNATURE_BYTES + 1)
        except FileNotFoundError:
            raise BundleError(f"{folder}: is not signed, and bundles.public_key asks for it: {mend}") from None
        except OSError as error:
            raise BundleError(f"{file}: {error.strerror or error}; expected a signature: {mend}") from None
        try:
            self._key.verify(signature, manifest)
        except InvalidSignature:
            raise BundleError(
                f"{file}: does not verify: bundle.json was changed after it was signed, or another key signed it; get the "
                f"bundle again, or {mend}"
            ) from None


def sign(folder: Path, key: Path) -> Path:
    """Write `bundle.sig` into the folder; raises BundleError. The key: PEM (PKCS 8), Ed25519, without a passphrase."""
    serialization, ed25519 = _cryptography()
    try:
        private = serialization.load_pem_private_key(_key_file(key), password=None)
    except (ValueError, TypeError) as error:
        raise BundleError(
            f"{key}: is no private key in PEM form without a passphrase ({error}); `edge-trainer keygen` makes one"
        ) from None
    if not isinstance(private, ed25519.Ed25519PrivateKey):
        raise BundleError(f"{key}: is a {type(private).__name__}; expected an Ed25519 private key (`edge-trainer keygen`)")
    try:
        manifest = (folder / "bundle.json").read_bytes()
    except OSError as error:
        raise BundleError(f"{folder / 'bundle.json'}: {error.strerror or error}; expected a bundle folder") from None
    file = folder / SIGNATURE
    fresh = file.with_name(SIGNATURE + ".new")
    fresh.write_bytes(private.sign(manifest))
    fresh.replace(file)
    return file


def make_keys(prefix: Path) -> tuple[Path, Path]:
    """PREFIX.key (private, mode 0600) and PREFIX.pub, new; raises FileExistsError rather than overwrite one."""
    serialization, ed25519 = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    files = prefix.with_name(prefix.name + ".key"), prefix.with_name(prefix.name + ".pub")
    texts = (
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
        private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        ),
    )
    for file in files:
        if file.exists():
            raise FileExistsError(17, "is there already, and is not overwritten: what it has signed would be lost", str(file))
    for file, text, mode in zip(files, texts, (0o600, 0o644), strict=True):
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(text)
    return files


def _key_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_BYTES)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror or error}; expected a key in PEM form") from None


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise BundleError(
            f"signatures need the package cryptography ({error}): pip install 'edge-condition-monitor[signing]', or "
            "apt install python3-cryptography where the program uses the system's packages"
        ) from None
    return serialization, ed25519
