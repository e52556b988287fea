"""The bundles installed on a device, and which of them a sensor uses.

    data/edge-agent.db           the database
    data/bundles/NAME/VERSION/   bundles, each verified before it came here and never changed
    data/bundles/active.json     sensor -> the bundle in place of its `model`, those before it, the one that runs beside

`active.json` is replaced whole, so that a reader finds the old one or the new one. A choice holds as long as the
configuration names the `model` that it was made against: who changes `model` in the file has the last word.
"""

from __future__ import annotations

import fcntl
import gzip
import logging
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO

import msgspec

from edge_agent import bundle as bundles
from edge_agent import host
from edge_agent.bundle import Bundle
from edge_agent.config import SensorConfig
from edge_agent.errors import BundleError
from edge_agent.signing import SIGNATURE, Verifier

log = logging.getLogger(__name__)

ACTIVE = "active.json"
#: Names beside which no bundle's folder can lie: the store's own files, and what they are written as before they take their place.
_OWN = frozenset({ACTIVE, f"{ACTIVE}.new"})
#: Bounds of what `install` unpacks: a bundle has a handful of files of a few MB at most.
MAX_FILES, MAX_BYTES = 64, 64 << 20
#: Choices that rollback remembers.
MAX_BEFORE = 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LABEL = re.compile(rf"{_NAME.pattern}/{_NAME.pattern}")
#: What the archive readers of the standard library raise on damaged files.
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError,
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """What a sensor uses. Bundles are NAME/VERSION; None stands for the configuration's `model`.

    configured : the path that `model` named when the choice was made
    before     : earlier choices, newest last
    shadow     : the bundle that is scored beside
    """

    configured: str
    active: str | None = None
    before: tuple[str | None, ...] = ()
    shadow: str | None = None


@dataclass(frozen=True)
class _File:
    schema: int = 1
    sensors: dict[str, Choice] = field(default_factory=dict)


# ---------------------------------------------------------------- which bundle


def choice(sensor: SensorConfig) -> Choice:
    """The sensor's choice; its `model` where nothing else was chosen, or the choice cannot be read (which is logged)."""
    plain = Choice(str(sensor.model))
    if sensor.store is None:
        return plain
    try:
        found = choices(sensor.store).get(sensor.id, plain)
    except BundleError as error:
        log.error("%s; the bundles that the configuration names are used", error)
        return plain
    if found.configured != plain.configured:
        log.warning(
            "%s: `model` is %s now, so that %s, chosen in place of %s, no longer holds",
            sensor.id, plain.configured, found.active or found.shadow, found.configured,
        )  # fmt: skip
        return plain
    return found


def model_of(sensor: SensorConfig) -> Path:
    """The folder of the bundle that the sensor uses."""
    active = choice(sensor).active
    return sensor.model if active is None or sensor.store is None else sensor.store / active


def shadow_of(sensor: SensorConfig) -> Path | None:
    """The folder of the bundle that is scored beside."""
    shadow = choice(sensor).shadow
    return None if shadow is None or sensor.store is None else sensor.store / shadow


def choices(store: Path) -> dict[str, Choice]:
    """All that was chosen; raises BundleError where the file cannot be read."""
    path = store / ACTIVE
    try:
        file = msgspec.json.decode(path.read_bytes(), type=_File)
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError, msgspec.ValidationError) as error:
        raise BundleError(f"{path}: cannot be read ({error}): activate the bundles anew, or delete it") from None
    for one in file.sensors.values():
        for label in (one.active, one.shadow, *one.before):
            if label is not None and not _LABEL.fullmatch(label):
                raise BundleError(f"{path}: names {label!r}; expected NAME/VERSION: activate the bundles anew, or delete it")
    return file.sensors


def choose(sensor: SensorConfig, change: Callable[[Choice], Choice]) -> Choice:
    """Put down another choice of the sensor, on disk when this returns; the choice before."""
    store = _store(sensor)
    with _alone(store):
        known = choices(store)
        was = known.get(sensor.id)
        if was is None or was.configured != str(sensor.model):
            was = Choice(str(sensor.model))
        known[sensor.id] = change(was)
        _replace(store / ACTIVE, msgspec.json.format(msgspec.json.encode(_File(1, known)), indent=1) + b"\n")
    return was


def activated(was: Choice, label: str | None) -> Choice:
    """The choice of `label` after `was`; a shadow run of the same bundle ends."""
    if label == was.active:
        return was
    before = (*was.before, was.active)[-MAX_BEFORE:]
    return replace(was, active=label, before=before, shadow=None if was.shadow == label else was.shadow)


def rolled_back(was: Choice) -> Choice:
    """The choice before `was`; raises BundleError where there is none."""
    if not was.before:
        raise BundleError("there is no earlier bundle to go back to: nothing was activated since `model` was set")
    return replace(was, active=was.before[-1], before=was.before[:-1])


# ---------------------------------------------------------------- what is installed


def installed(store: Path) -> Iterator[tuple[str, Path]]:
    """(NAME/VERSION, folder) of every installed bundle, by name and then by when it came."""
    if not store.is_dir():
        return
    for name in sorted(p for p in store.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)):
        versions = [p for p in name.iterdir() if p.is_dir() and _NAME.fullmatch(p.name)]
        for version in sorted(versions, key=lambda p: (p.stat().st_mtime, p.name)):
            yield f"{name.name}/{version.name}", version


def find(store: Path, label: str) -> str:
    """NAME/VERSION of `label`, which may leave out the version where there is one; raises BundleError."""
    known = [one for one, _ in installed(store)]
    if label in known:
        return label
    versions = [one for one in known if one.split("/")[0] == label]
    if len(versions) == 1:
        return versions[0]
    if versions:
        raise BundleError(f"{label}: there are {', '.join(versions)}; say which")
    there = f"there are {', '.join(known)}" if known else "none is there: edge-agent bundle install PATH"
    raise BundleError(f"{label}: is not installed in {store}; {there}")


def install(source: Path, store: Path, verifier: Verifier | None) -> tuple[str, Bundle, bool]:
    """Copy a bundle (a folder, .tar, .tar.gz, .zip) into the store; (NAME/VERSION, the bundle, whether it is new).

    It is unpacked beside, verified there whole (signature, hashes, operators, golden windows), and only then takes its
    place. One that is installed already and damaged is put right, and counts as new. Raises BundleError, and leaves
    nothing, where anything is refused.
    """
    _folder(store)
    with _alone(store):
        for stale in store.glob(".incoming-*"):
            shutil.rmtree(stale, ignore_errors=True)
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", dir=store))
        try:
            unpack(source, incoming)
            bundle = bundles.load(incoming, verifier=verifier)
            manifest = bundle.manifest
            for what in (manifest.name, manifest.version):
                if not _NAME.fullmatch(what):
                    raise BundleError(f"{source}: bundle.json says {what!r}; expected a name of letters, digits, . _ and -")
            if manifest.name.lower() in _OWN:  # some file systems know no case
                raise BundleError(
                    f"{source}: bundle.json says name {manifest.name!r}, which is a file of the store itself; give the bundle another "
                    "name and train it again"
                )
            for file in incoming.iterdir():
                if file.name not in {*manifest.files, "bundle.json", SIGNATURE}:
                    file.unlink()  # neither hash nor signature speaks for it
            label = f"{manifest.name}/{manifest.version}"
            target = store / label
            if target.exists():
                _same(target, label, bundle)
                mended = _put_right(target, incoming, manifest.files)
                if mended:
                    log.warning("%s: %s had been changed, cut off or lost, and copied again", target, ", ".join(mended))
                if (incoming / SIGNATURE).exists() and verifier is not None:
                    _replace(target / SIGNATURE, (incoming / SIGNATURE).read_bytes())
                return label, replace(bundle, path=target), bool(mended)
            incoming.chmod(0o755)
            host.sync_folder(incoming)
            target.parent.mkdir(exist_ok=True)
            incoming.rename(target)
            host.sync_folder(target.parent)
            return label, replace(bundle, path=target), True
        except BundleError as error:
            raise BundleError(str(error).replace(str(incoming), str(source))) from error
        finally:
            shutil.rmtree(incoming, ignore_errors=True)


def _same(target: Path, label: str, bundle: Bundle) -> None:
    """Raise BundleError where another bundle lies at `target`; one whose bundle.json is lost or no longer one can be none."""
    try:
        text = (target / "bundle.json").read_bytes()
        bundles.parse_manifest(target, text)
    except (OSError, BundleError):
        return
    if bundles.sha256(text) != bundle.sha256:
        raise BundleError(
            f"{target}: another bundle {label} is installed already: give the new one a version of its own (edge-trainer "
            "fit does), or delete the folder if no sensor uses it"
        )


def _put_right(target: Path, incoming: Path, files: Mapping[str, str]) -> list[str]:
    """Replace, one by one and each whole, what at `target` is not as the hashes say; the names. bundle.json comes last, so that a
    copy that was cut short is put right the next time."""
    wrong = [name for name in (*files, "bundle.json") if not _alike(target / name, incoming / name)]
    for name in wrong:
        _replace(target / name, (incoming / name).read_bytes())
    return wrong


def _alike(there: Path, fresh: Path) -> bool:
    try:
        return there.read_bytes() == fresh.read_bytes()
    except OSError:
        return False


# ---------------------------------------------------------------- unpacking what nobody vouches for yet


def unpack(source: Path, into: Path) -> None:
    """The plain files of a folder or archive, flat; raises BundleError for anything that is not a bundle's."""
    try:
        if source.is_dir():
            _few(sum(1 for _ in source.iterdir()), source)
            _copy({p.name: _from_folder(p) for p in sorted(source.iterdir())}, source, into)
            return
        if not source.is_file():
            raise BundleError(f"{source}: is not there; expected a bundle: a folder, .tar, .tar.gz or .zip")
        if source.stat().st_size > MAX_BYTES:
            raise BundleError(f"{source}: has {source.stat().st_size} bytes; expected at most {MAX_BYTES}")
        with source.open("rb") as file:
            is_zip = file.read(2) == b"PK"  # zipfile.is_zipfile also finds the .npz inside a .tar
        if is_zip:
            with zipfile.ZipFile(source) as archive:
                _copy(_of_zip(archive, source), source, into)
            return
        with _plain(source) as data, tarfile.open(fileobj=data, mode="r:") as tar:
            _copy(_of_tar(tar, source), source, into)
    except _DAMAGE as error:
        raise BundleError(
            f"{source}: cannot be unpacked ({error}); expected a bundle: a folder, .tar, .tar.gz or .zip"
        ) from None


@contextmanager
def _plain(source: Path) -> Iterator[IO[bytes]]:
    """The file, unpacked where it is gzip: at most `MAX_BYTES`, and a little for the headers of the files."""
    with source.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            file.seek(0)
            yield file
            return
        file.seek(0)
        with tempfile.TemporaryFile() as out, gzip.open(file) as data:
            room = MAX_BYTES + (1 << 20)
            while block := data.read(1 << 16):
                room -= len(block)
                if room < 0:
                    raise BundleError(f"{source}: has more than {MAX_BYTES} bytes unpacked; expected one bundle")
                out.write(block)
            out.seek(0)
            yield out


def _from_folder(path: Path) -> Callable[[], IO[bytes]]:
    mode = path.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise BundleError(f"{path}: is a {_kind(mode)}; expected plain files only")
    return lambda: os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")


def _of_zip(archive: zipfile.ZipFile, source: Path) -> Mapping[str, Callable[[], IO[bytes]]]:
    members = archive.infolist()
    _few(len(members), source)
    found: dict[str, tuple[str, Callable[[], IO[bytes]]]] = {}
    for member in members:
        kind = stat.S_IFMT(member.external_attr >> 16)
        if member.is_dir() and kind in (0, stat.S_IFDIR):
            _checked(member.filename, source)
            continue
        if kind not in (0, stat.S_IFREG):
            raise BundleError(f"{source}: {member.filename} is a {_kind(kind)}; expected plain files only")
        _add(found, member.filename, source, lambda m=member: archive.open(m))  # type: ignore[misc]
    return _flat(found, source)


def _of_tar(archive: tarfile.TarFile, source: Path) -> Mapping[str, Callable[[], IO[bytes]]]:
    found: dict[str, tuple[str, Callable[[], IO[bytes]]]] = {}
    n = 0
    while (member := archive.next()) is not None:  # one by one: a list of millions would fill the memory
        _few(n := n + 1, source)
        if member.isdir():
            _checked(member.name, source)
            continue
        if not member.isreg() or member.sparse is not None:
            raise BundleError(f"{source}: {member.name} is a link or device; expected plain files only")
        _add(found, member.name, source, lambda m=member: _tar_file(archive, m))  # type: ignore[misc]
    return _flat(found, source)


def _tar_file(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    if file is None:
        raise BundleError(f"{archive.name!s}: {member.name} is no plain file")
    return file


def _few(n: int, source: Path) -> None:
    if n > MAX_FILES:
        raise BundleError(f"{source}: holds more than {MAX_FILES} files; expected those of one bundle")


def _checked(name: str, source: Path) -> tuple[str, ...]:
    """The parts of a member's name: at most a folder and a file, nothing that leads elsewhere."""
    path = PurePosixPath(name)
    parts = tuple(part for part in path.parts if part != ".")
    if path.is_absolute() or ".." in parts or "\\" in name or "\0" in name or ":" in name or len(parts) > 2:
        raise BundleError(f"{source}: holds {name!r}; expected the plain files of one bundle, in one folder at most")
    return parts


def _add(
    found: dict[str, tuple[str, Callable[[], IO[bytes]]]], name: str, source: Path, opened: Callable[[], IO[bytes]]
) -> None:
    parts = _checked(name, source)
    if not parts:
        raise BundleError(f"{source}: holds a file without a name")
    if parts[-1] in found:
        raise BundleError(f"{source}: holds {parts[-1]} twice; expected the files of one bundle")
    found[parts[-1]] = "/".join(parts[:-1]), opened


def _flat(
    found: dict[str, tuple[str, Callable[[], IO[bytes]]]], source: Path
) -> Mapping[str, Callable[[], IO[bytes]]]:
    folders = {folder for folder, _ in found.values()}
    if len(folders) > 1:
        raise BundleError(f"{source}: holds files in {len(folders)} folders; expected those of one bundle")
    return {name: opened for name, (_, opened) in found.items()}


def _copy(files: Mapping[str, Callable[[], IO[bytes]]], source: Path, into: Path) -> None:
    _few(len(files), source)
    room = MAX_BYTES
    for name, opened in files.items():
        with opened() as data, (into / name).open("xb") as out:
            while block := data.read(1 << 16):
                room -= len(block)  # what really comes out, whatever the archive says
                if room < 0:
                    raise BundleError(f"{source}: has more than {MAX_BYTES} bytes unpacked; expected one bundle")
                out.write(block)
            out.flush()
            os.fchmod(out.fileno(), 0o644)
            os.fsync(out.fileno())


def _kind(mode: int) -> str:
    kinds = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "folder"}
    return kinds.get(stat.S_IFMT(mode), "device or pipe")


# ---------------------------------------------------------------- files


def _store(sensor: SensorConfig) -> Path:
    if sensor.store is None:
        raise BundleError(f"{sensor.id}: the configuration has no database, beside which bundles are installed")
    _folder(sensor.store)
    return sensor.store


def _folder(store: Path) -> None:
    try:
        store.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise BundleError(f"{store}: cannot be made ({error.strerror}): run as the agent's user or root") from None


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """One command at a time changes the store."""
    try:
        file = (store / ".lock").open("ab")
    except OSError as error:
        raise BundleError(f"{store}: cannot be written ({error.strerror}): run as the agent's user or root") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _replace(path: Path, data: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    try:
        with fresh.open("wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        fresh.replace(path)
        host.sync_folder(path.parent)
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}): run as the agent's user or root") from None
