"""Fresh Debian systems in folders, made by debootstrap and kept as archives so that the next one takes seconds.

Every command runs in a mount and process namespace of its own: when it ends its mounts are gone and its children
dead, so that a root can be deleted as plain files. Nothing of the host is changed but for one thing: the kernel is told
once how to run aarch64 programs (binfmt_misc), where it does not know.

DEB_CACHE names the folder of what was downloaded (default ~/.cache/edge-agent-debs).
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

#: Debian's number -> its name and its Python.
RELEASES = {"12": ("bookworm", "3.11"), "13": ("trixie", "3.13")}
MIRROR = os.environ.get("DEB_MIRROR", "http://deb.debian.org/debian")
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
QEMU = Path("/usr/bin/qemu-aarch64-static")
_ELF_AARCH64 = (
    r":edge-aarch64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
    r":\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:" + str(QEMU) + ":OCF"
)
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class UnreachableError(Exception):
    """This machine cannot do it; the text says what is missing."""


@dataclass(frozen=True)
class Target:
    """One release on one architecture."""

    release: str
    arch: str

    @property
    def codename(self) -> str:
        """bookworm, trixie."""
        return RELEASES[self.release][0]

    @property
    def python(self) -> str:
        """The version of the release's own Python, 3.11."""
        return RELEASES[self.release][1]

    @property
    def foreign(self) -> bool:
        """Whether its programs run in emulation here."""
        return MACHINES[self.arch] != platform.machine()

    def __str__(self) -> str:
        return f"debian{self.release}-{self.arch}"


def cache() -> Path:
    """The folder of what was downloaded."""
    found = os.environ.get("DEB_CACHE") or Path.home() / ".cache" / "edge-agent-debs"
    path = Path(found).absolute()
    path.mkdir(parents=True, exist_ok=True)
    return path


def possible(target: Target) -> None:
    """Raise UnreachableError, with what to do, where such a root cannot be made or entered here."""
    if os.geteuid() != 0:
        raise UnreachableError("chroot and mount need root: run it with sudo")
    for program, package in (("debootstrap", "debootstrap"), ("unshare", "util-linux"), ("dpkg-deb", "dpkg")):
        if shutil.which(program) is None:
            raise UnreachableError(f"{program} is missing: apt-get install {package}")
    if target.foreign:
        _emulate(target)


def _emulate(target: Target) -> None:
    if target.arch != "arm64" or platform.machine() != "x86_64":
        raise UnreachableError(f"{target.arch} on {platform.machine()} is not provided for")
    if not QEMU.exists():
        raise UnreachableError(f"{QEMU} is missing: apt-get install qemu-user-static")
    binfmt = Path("/proc/sys/fs/binfmt_misc")
    if not (binfmt / "register").exists():
        done = subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", binfmt], capture_output=True, text=True)
        if done.returncode:
            raise UnreachableError(f"the kernel cannot be told how to run {target.arch}: {done.stderr.strip()}")
    known = [f for f in binfmt.iterdir() if f.name not in ("register", "status") and "aarch64" in f.read_text()]
    if not known:
        # F: the emulator is opened now, so that it is found inside a root that has none.
        (binfmt / "register").write_text(_ELF_AARCH64)


def end_tidily() -> None:
    """Have a SIGTERM end the program like an exception does, so that no root stays behind."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class Root:
    """A Debian system below `path`."""

    def __init__(self, path: Path, target: Target) -> None:
        self.path = path
        self.target = target

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """What to start on the host so that argv runs inside, with /proc, the caches and an end of its own."""
        kept = cache()
        apt, pip = kept / f"apt-{self.target}", kept / "pip"
        # Rebuilt by every build, so that apt's cache may hold its own kind only.
        for folder in (apt / "partial", pip):
            folder.mkdir(parents=True, exist_ok=True)
        inside = ["var/cache/apt/archives", "var/cache/pip"]
        for folder in inside:
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        script = (
            'mount -t proc proc "$1/proc" && mount --bind "$2" "$1/var/cache/apt/archives" && '
            'mount --bind "$3" "$1/var/cache/pip" && root=$1 && shift 3 && exec chroot "$root" "$@"'
        )
        outer = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh"]
        return [*outer, str(self.path), str(apt), str(pip), *map(str, argv)]

    def run(
        self, *argv: str | Path, env: Mapping[str, str] | None = None, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside to its end; with `check` a failure raises and shows what was printed."""
        done = subprocess.run(
            self.command(argv), env=environment(env), input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True, text=True,
        )  # fmt: skip
        if check and done.returncode:
            print(done.stdout[-4000:] + done.stderr[-4000:], file=sys.stderr)
            raise RuntimeError(f"{self.target}: {' '.join(map(str, argv))}: exit code {done.returncode}")
        return done

    def install(self, *packages: str | Path) -> str:
        """apt-get install; what it printed."""
        done = self.run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages)
        return done.stdout + done.stderr

    def inside(self, path: str) -> Path:
        """Where a path of the system lies on the host."""
        return self.path / path.lstrip("/")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Of a command inside: nothing of the host's but where packages come from."""
    passed = {k: v for k, v in os.environ.items() if k.lower() in ("http_proxy", "https_proxy", "no_proxy", "pip_index_url")}
    plain = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
        "HOME": "/root",
        "DEBIAN_FRONTEND": "noninteractive",
        "PIP_CACHE_DIR": "/var/cache/pip",
        "PIP_CERT": "/tmp/host-ca.crt",
        "PIP_ROOT_USER_ACTION": "ignore",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    return {**plain, **passed, **(more or {})}


@contextmanager
def fresh(
    target: Target, packages: Sequence[str] = (), prepare: tuple[str, Callable[[Root], None]] | None = None
) -> Iterator[Root]:
    """A system with `packages`, as debootstrap leaves it otherwise; deleted at the end (KEEP_ROOT=1 leaves it).

    prepare : (name, what else is done to it); the result is kept in the cache under that name.
    """
    possible(target)
    archive = _archive(target, packages)
    if prepare is not None:
        name, work = prepare
        plain, archive = archive, archive.with_name(f"{archive.stem}-{name}.tar")
        if not archive.exists():
            with _unpacked(plain, target) as root:
                work(root)
                _pack(root.path, archive)
    with _unpacked(archive, target) as root:
        yield root


@contextmanager
def _unpacked(archive: Path, target: Target) -> Iterator[Root]:
    path = Path(tempfile.mkdtemp(prefix=f"edge-root-{target}-"))
    try:
        subprocess.run(["tar", "-xpf", archive, "-C", path, "--numeric-owner"], check=True)
        path.chmod(0o755)
        yield _prepared(path, target)
    finally:
        if os.environ.get("KEEP_ROOT"):
            print(f"kept {path}", file=sys.stderr)
        else:
            shutil.rmtree(path)


def _prepared(path: Path, target: Target) -> Root:
    """With the host's name servers and certificates; no service is started inside by a package."""
    shutil.copy("/etc/resolv.conf", path / "etc" / "resolv.conf")
    if _CERTIFICATES.exists():
        shutil.copy(_CERTIFICATES, path / "tmp" / "host-ca.crt")
    return Root(path, target)


def _archive(target: Target, packages: Sequence[str]) -> Path:
    """The cached archive of such a system, made on first need."""
    name = "-".join([str(target), *packages])
    archive = cache() / f"{name}.tar"
    if archive.exists():
        return archive
    path = Path(tempfile.mkdtemp(prefix="edge-bootstrap-"))
    try:
        if packages:
            with fresh(target) as root:
                root.run("apt-get", "update", "-qq")
                root.install(*packages)
                _pack(root.path, archive)
        else:
            print(f"debootstrap {target} ...", file=sys.stderr, flush=True)
            command = ["debootstrap", "--variant=minbase", f"--arch={target.arch}", target.codename, str(path), MIRROR]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
            _pack(path, archive)
    finally:
        shutil.rmtree(path)
    return archive


def _pack(path: Path, archive: Path) -> None:
    partial = archive.with_suffix(".partial")
    subprocess.run(["tar", "-cpf", partial, "-C", path, "--numeric-owner", "--exclude=./tmp/*", "."], check=True)
    partial.rename(archive)
