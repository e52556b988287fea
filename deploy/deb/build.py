"""`make deb`: one package per Debian release and architecture, each with a virtual environment of its own inside.

    setup.cfg, edge_agent ─ pip, in a fresh root of the release ─► /usr/lib/edge-agent/venv ┐
    models, unit, sample configuration, completion, documentation ──────────────────────────┴─ dpkg-deb ─► out/deb/*.deb

The system's own Python is used and its packages are left alone (PEP 668). What is inside is byte-compiled, so that
nothing is written below /usr when it runs.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from deploy.deb import roots
from deploy.deb.roots import MACHINES, RELEASES, Root, Target, UnreachableError, fresh

ROOT = Path(__file__).parents[2]
OUT = ROOT / "out" / "deb"
PREFIX = "usr/lib/edge-agent"
MODELS = "usr/share/edge-agent/models"
DOC = "usr/share/doc/edge-agent"
#: Of what the agent's own wheels link to outside themselves; `make deb-test` looks for anything missing.
LIBRARIES = ("libc6", "libgcc-s1", "libstdc++6", "zlib1g")
#: ExecReload= of the unit calls /bin/kill.
TOOLS = ("adduser", "init-system-helpers (>= 1.54)", "procps")
#: Of the TFLite runtime: drivers for accelerators that need their makers' libraries, and compilers for them.
UNUSED = ("ai_edge_litert/vendors", "ai_edge_litert/tools", "ai_edge_litert/libLiteRtWebGpuAccelerator.so")
#: (where it lies in the repository, where it goes, its mode)
FILES = (
    ("README.md", f"{DOC}/README.md", 0o644),
    ("CHANGELOG.md", f"{DOC}/changelog.md", 0o644),
    ("config.yaml", f"{DOC}/examples/config.yaml", 0o644),
    ("deploy/mosquitto.conf", f"{DOC}/examples/mosquitto.conf", 0o644),
    ("deploy/mosquitto.acl", f"{DOC}/examples/mosquitto.acl", 0o644),
    ("deploy/mosquitto-certificates.conf", f"{DOC}/examples/mosquitto-certificates.conf", 0o644),
    ("deploy/certificates.sh", f"{DOC}/examples/certificates.sh", 0o755),
)
CONFFILES = ("/etc/edge-agent/config.yaml", "/etc/edge-agent/secrets.env")
SECRETS = "# One NAME=value a line, for ${env:NAME} in config.yaml\n#MQTT_PASSWORD=\n"


def version_of(root: Path = ROOT) -> str:
    """The version in setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read(root / "setup.cfg")
    return parser["metadata"]["version"]


def installed_text(name: str) -> str:
    """A file of deploy/ with the paths of the package instead of those of install.sh."""
    text = (ROOT / "deploy" / name).read_text()
    for here, there in (
        ("/opt/edge-agent/models", f"/{MODELS}"),
        ("/opt/edge-agent/README.md", f"/{DOC}/README.md"),
        ("/opt/edge-agent/venv", f"/{PREFIX}/venv"),
    ):
        text = text.replace(here, there)
    if "/opt/" in text:
        raise ValueError(f"deploy/{name} names a path below /opt that the package has no place for")
    return text


def build(target: Target, version: str, out: Path = OUT) -> Path:
    """The package of this version, `edge-agent_VERSION+debNN_ARCH.deb`, in `out`."""
    packages = [f"python{target.python}", f"python{target.python}-venv"]
    with fresh(target, packages) as root:
        root.run("mkdir", "-p", "/build/src", f"/{PREFIX}")
        _copy_source(root.inside("/build/src"))
        names = _environment(root)
        tree = root.inside("/build/tree")
        for folder in ("DEBIAN", "usr/lib", "usr/bin", "etc/edge-agent", DOC):
            (tree / folder).mkdir(parents=True)
        root.inside(f"/{PREFIX}").rename(tree / PREFIX)
        (tree / "usr/bin/edge-agent").symlink_to("../lib/edge-agent/venv/bin/edge-agent")
        shutil.copytree(ROOT / "models", tree / MODELS)
        for source, there, mode in FILES:
            _write(tree / there, (ROOT / source).read_bytes(), mode)
        _write(tree / DOC / "copyright", (ROOT / "deploy/deb/copyright").read_bytes(), 0o644)
        _write(tree / DOC / "python-packages.txt", "\n".join(names).encode() + b"\n", 0o644)
        _write(tree / "usr/lib/systemd/system/edge-agent.service", installed_text("edge-agent.service").encode(), 0o644)
        completion = _read_inside(root, tree)
        _write(tree / "usr/share/bash-completion/completions/edge-agent", completion.encode(), 0o644)
        _write(tree / "etc/edge-agent/config.yaml", installed_text("edge-agent.example.yaml").encode(), 0o640)
        _write(tree / "etc/edge-agent/secrets.env", SECRETS.encode(), 0o600)
        _control(tree, target, version)
        return _pack(tree, target, version, out)


def _copy_source(there: Path) -> None:
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, there / name)
    for package in ("edge_agent", "trainer"):
        shutil.copytree(ROOT / package, there / package, ignore=shutil.ignore_patterns("__pycache__"))


def _environment(root: Root) -> list[str]:
    """Make /usr/lib/edge-agent/venv; the packages in it as name==version."""
    python = f"/usr/bin/python{root.target.python}"
    venv = f"/{PREFIX}/venv"
    root.run(python, "-m", "venv", venv)
    pip = [f"{venv}/bin/python", "-m", "pip", "--quiet", "--no-input"]
    root.run(*pip, "install", "--only-binary=:all:", "--no-binary=edge-condition-monitor", "--no-compile", "/build/src[signing]")
    names = root.run(*pip, "freeze", "--exclude", "edge-condition-monitor").stdout.split()
    # A device neither trains nor installs into this environment.
    root.run(*pip, "uninstall", "--yes", "pip", "setuptools")
    site = root.inside(f"{venv}/lib/python{root.target.python}/site-packages")
    shutil.rmtree(site / "trainer")
    for path in [*(site / name for name in UNUSED), *sorted(site.rglob("tests"))]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in site.rglob("__pycache__"):
        shutil.rmtree(path)
    bin_folder = root.inside(f"{venv}/bin")
    for path in bin_folder.iterdir():
        if not path.name.startswith("python") and path.name != "edge-agent":
            path.unlink()
    # By content, not by time: dpkg need not keep times, and nobody has to write these files again.
    root.run(
        python, "-m", "compileall", "-q", "-j0", "--invalidation-mode", "unchecked-hash", f"{venv}/lib/python{root.target.python}"
    )
    return names


def _read_inside(root: Root, tree: Path) -> str:
    """The completion script as the packaged program prints it; a package that does not start is not built."""
    (root.inside(f"/{PREFIX}")).symlink_to(f"/build/tree/{PREFIX}")
    return root.run(f"/{PREFIX}/venv/bin/edge-agent", "completion").stdout


def _control(tree: Path, target: Target, version: str) -> None:
    for name in ("postinst", "prerm", "postrm"):
        _write(tree / "DEBIAN" / name, (ROOT / "deploy/deb" / name).read_bytes(), 0o755)
    _write(tree / "DEBIAN/conffiles", "".join(f"{name}\n" for name in CONFFILES).encode(), 0o644)
    files = sorted(p for p in tree.rglob("*") if p.is_file() and not p.is_symlink() and p.parent.name != "DEBIAN")
    size = sum(p.stat().st_size for p in files)
    sums = "".join(
        f"{hashlib.md5(p.read_bytes(), usedforsecurity=False).hexdigest()}  {p.relative_to(tree)}\n"
        for p in files
        if f"/{p.relative_to(tree)}" not in CONFFILES
    )
    _write(tree / "DEBIAN/md5sums", sums.encode(), 0o644)
    depends = ", ".join([f"python{target.python}", *TOOLS, *LIBRARIES])
    control = f"""\
Package: edge-agent
Version: {version}+deb{target.release}
Architecture: {target.arch}
Maintainer: edge condition monitor <edge-agent@localhost>
Section: misc
Priority: optional
Installed-Size: {size // 1024}
Depends: {depends}
Suggests: mosquitto
Description: streaming condition monitoring of machines on edge devices
 Vibration and sound come in over MQTT, a small neural network compares every
 window with the machine's own healthy past, and one explained alarm goes out
 when the machine degrades. Runs as a hardened systemd service.
"""
    _write(tree / "DEBIAN/control", control.encode(), 0o644)


def _pack(tree: Path, target: Target, version: str, out: Path) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"edge-agent_{version}+deb{target.release}_{target.arch}.deb"
    # One mode for all, whatever the umask of who builds.
    for p in tree.rglob("*"):
        if p.is_dir():
            p.chmod(0o755)
        elif not p.is_symlink() and p.relative_to(tree).parts[0] == "usr":
            p.chmod(0o755 if p.stat().st_mode & 0o100 else 0o644)
    tree.chmod(0o755)
    partial = path.with_suffix(".partial")
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, partial],
        check=True, stdout=subprocess.DEVNULL, env={**os.environ, "SOURCE_DATE_EPOCH": _epoch()},
    )  # fmt: skip
    return partial.rename(path)


def _epoch() -> str:
    """The time of the last commit, so that the same tree gives the same dates; now, outside a repository."""
    if "SOURCE_DATE_EPOCH" in os.environ:
        return os.environ["SOURCE_DATE_EPOCH"]
    done = subprocess.run(["git", "-C", ROOT, "log", "-1", "--format=%ct"], capture_output=True, text=True)
    return done.stdout.strip() or str(int(time.time()))


def _write(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def targets(releases: str, arches: str) -> list[Target]:
    """Of two lists with spaces or commas between."""
    return [Target(r, a) for a in arches.replace(",", " ").split() for r in releases.replace(",", " ").split()]


def main() -> int:
    """Build what is asked for; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m deploy.deb.build", description=__doc__)
    parser.add_argument("--releases", default="12,13", help=f"of {', '.join(RELEASES)} (both)")
    parser.add_argument("--arches", default="amd64,arm64", help=f"of {', '.join(MACHINES)} (both)")
    parser.add_argument("--version-suffix", default="", help="such as ~rc1, which dpkg takes as older")
    args = parser.parse_args()
    roots.end_tidily()
    built, left_out = [], {}
    for target in targets(args.releases, args.arches):
        begin = time.monotonic()
        try:
            path = build(target, version_of() + args.version_suffix)
        except UnreachableError as why:
            left_out[str(target)] = str(why)
            print(f"{target}: not built: {why}", file=sys.stderr)
            continue
        mib = path.stat().st_size / 2**20
        print(f"{path}  {mib:.1f} MiB, {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        built.append({"package": path.name, "mib": round(mib, 1), "seconds": round(time.monotonic() - begin)})
    print(json.dumps({"name": "deb", "ok": bool(built) and not left_out, "built": built, "left_out": left_out}))
    return 0 if built and not left_out else 1 if built else 77


if __name__ == "__main__":
    sys.exit(main())
