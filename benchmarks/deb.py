"""`make deb-test`: the packages of `make deb`, tried in fresh Debian systems that debootstrap makes.

    older package ─► install ─► an administrator's configuration, scores ─► newer package ─► remove ─► purge ─► install
                       └ the unit's ExecStart line as its user, under a NOTIFY_SOCKET ┘

The older package is the newer one under a lower version, with one file more and another sample configuration. What
is left behind is found by comparing every file of the system with those before.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import re
import shlex
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import _agent
from benchmarks._report import say, write_section
from benchmarks.bounds import DEB
from deploy.deb import build, roots
from deploy.deb.roots import Root, Target, UnreachableError

NAME = "deb-test"
PAGE = build.ROOT / "docs" / "install.md"
UNIT = "/usr/lib/systemd/system/edge-agent.service"
CONFIG, STATE = "/etc/edge-agent/config.yaml", "/var/lib/edge-agent"
DATABASE = f"{STATE}/edge-agent.db"
#: What a package manager keeps for itself, and what lives as long as a boot.
NOT_OURS = ("proc", "sys", "dev", "run", "tmp", "var/cache", "var/log", "var/lib/dpkg", "var/lib/apt", "var/lib/systemd/catalog")
#: Copies that the user tools make before each change, and counters of ids.
BACKUPS = {"etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-", "etc/.pwd.lock"}


def listing(root: Root) -> dict[str, str]:
    """Every path of the system that is not a package manager's own -> what it is; the text itself in /etc."""
    found = {}
    for folder, folders, files in os.walk(root.path):
        here = Path(folder).relative_to(root.path)
        folders[:] = [d for d in folders if str(here / d) not in NOT_OURS]
        for name in [*folders, *files]:
            path, short = Path(folder) / name, str(here / name)
            if short in BACKUPS or short.endswith("/.pytest_cache"):
                continue
            if path.is_symlink():
                found[short] = f"-> {path.readlink()}"
            elif path.is_file():
                found[short] = path.read_bytes().hex() if short.startswith("etc/") else "file"
            else:
                found[short] = "folder"
    return found


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Paths that came, went or changed."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def older(package: Path, folder: Path) -> Path:
    """The same package as of before: a lower version, another sample, a file that the newer one has no more."""
    tree = folder / "older"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = (tree / "DEBIAN/control").read_text()
    version = re.search(r"^Version: (\S+)\+deb", control, re.MULTILINE)
    assert version is not None
    (tree / "DEBIAN/control").write_text(control.replace(f"Version: {version[1]}", f"Version: {version[1]}~before"))
    with (tree / CONFIG.lstrip("/")).open("a") as config:
        config.write("# a line that the newer sample has no more\n")
    (tree / "usr/share/doc/edge-agent/only-before.txt").write_text("gone after the upgrade\n")
    path = folder / "older.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", tree, path], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(tree)
    return path


def unit_values(text: str, key: str) -> list[str]:
    """What a unit says of a key, in order."""
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@dataclass
class Heard:
    """What a service told its manager, and who it was."""

    messages: list[str] = field(default_factory=list)
    uids: set[int] = field(default_factory=set)
    pid: int = 0

    def count(self, word: str) -> int:
        """How often a line was told."""
        return sum(word in message.split("\n") for message in self.messages)


@contextmanager
def service(root: Root, unit_path: str) -> Iterator[tuple[Heard, subprocess.Popen[str], socket.socket]]:
    """The unit's ExecStart line inside, as its User= with its Environment= and watchdog; ended by SIGTERM."""
    unit = root.inside(unit_path).read_text()
    user, group = unit_values(unit, "User")[0], unit_values(unit, "Group")[0]
    folder, umask = unit_values(unit, "WorkingDirectory")[0], unit_values(unit, "UMask")[0]
    path = root.inside("/run/notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        path.chmod(0o777)
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.settimeout(0.2)
        own = dict(word.split("=", 1) for line in unit_values(unit, "Environment") for word in shlex.split(line))
        own |= {"NOTIFY_SOCKET": "/run/notify", "WATCHDOG_USEC": str(int(unit_values(unit, "WatchdogSec")[0]) * 10**6)}
        line = f"umask {umask} && cd {folder} && exec {unit_values(unit, 'ExecStart')[0]}"
        drop = ["setpriv", f"--reuid={user}", f"--regid={group}", "--init-groups", "--no-new-privs", "--bounding-set=-all"]
        environment = ["env", "-i", "PATH=/usr/bin:/bin", "LANG=C.UTF-8", *(f"{k}={v}" for k, v in own.items())]
        process = subprocess.Popen(
            root.command([*drop, *environment, "sh", "-c", line]), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, env=roots.environment(),
        )  # fmt: skip
        heard = Heard()
        try:
            yield heard, process, manager
            os.kill(heard.pid, signal.SIGTERM)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                listen(manager, heard)
        finally:
            if process.poll() is None:
                process.kill()
            path.unlink()


def listen(manager: socket.socket, heard: Heard) -> None:
    """Take one message, if one comes soon."""
    try:
        text, ancillary, _, _ = manager.recvmsg(4096, 256)
    except TimeoutError:
        return
    heard.messages.append(text.decode())
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            heard.pid, uid, _ = array.array("i", data[:12])
            heard.uids.add(uid)


def rows(root: Root) -> int:
    """Scored windows in the agent's database inside."""
    path = root.inside(DATABASE)
    if not path.exists():
        return 0
    with sqlite3.connect(path) as db:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'scores'").fetchall():
            return 0
        return int(db.execute("SELECT count(*) FROM scores WHERE score IS NOT NULL").fetchone()[0])


def run_service(root: Root, patience_s: float, watchdogs: int = 3, unit: str = UNIT) -> dict[str, Any]:
    """Start it, send 20 s of a machine through the broker with the installed program, stop it; what was seen."""
    before, begin = rows(root), time.monotonic()
    agent = ["edge-agent", "replay", "/tmp/machine.npz", "-c", CONFIG, "--sensor", "demo", "--speed", "max"]
    result: dict[str, Any] = {"ready_s": None}
    with service(root, unit) as (heard, process, manager):
        replay: subprocess.Popen[str] | None = None
        deadline = begin + patience_s
        while time.monotonic() < deadline and process.poll() is None:
            listen(manager, heard)
            if heard.count("READY=1") and result["ready_s"] is None:
                result["ready_s"] = round(time.monotonic() - begin, 1)
                replay = subprocess.Popen(
                    root.command(agent), env=roots.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
            done = replay is not None and replay.poll() is not None
            if done and heard.count("WATCHDOG=1") >= watchdogs and (rows(root) > before or replay.returncode):  # type: ignore[union-attr]
                break
        result["replay"] = replay.communicate(timeout=5)[0].strip() if replay is not None and replay.poll() is not None else None
        if not heard.pid:
            process.kill()
            raise RuntimeError(f"{root.target}: nothing was told to the manager; stderr: {process.communicate()[0]}")
    log = process.stderr.read() if process.stderr else ""
    result |= {
        "ready": heard.count("READY=1"), "watchdog": heard.count("WATCHDOG=1"), "stopping": heard.count("STOPPING=1"),
        "uids": sorted(heard.uids), "exit": process.returncode, "rows": rows(root) - before,
    }  # fmt: skip
    if result["exit"] or not result["rows"]:
        say(log[-3000:])
    return result


class Trial:
    """One package in one fresh system; collects what was seen and what is wrong."""

    def __init__(self, root: Root, package: Path, port: int, folder: Path) -> None:
        self.root, self.package, self.port, self.folder = root, package, port, folder
        self.seen: dict[str, Any] = {"target": str(root.target), "package": package.name}
        self.wrong: list[str] = []
        # Emulated, everything takes a good ten times as long.
        self.patience_s = 600.0 if root.target.foreign else 60.0

    def expect(self, well: bool, what: str, found: object = None) -> None:
        """Keep a complaint where something is not as it should be."""
        say(f"  {'well ' if well else 'WRONG'} {what}" + (f": {found}" if found is not None else ""))
        if not well:
            self.wrong.append(f"{self.root.target}: {what}: {found}")

    def run(self) -> None:
        """All of it, in order."""
        root = self.root
        before = listing(root)
        shutil.copy(older(self.package, self.folder), root.inside("/tmp/older.deb"))
        shutil.copy(self.package, root.inside("/tmp/newer.deb"))
        root.install("/tmp/older.deb")
        self.as_installed()
        text = self.configure()
        listed = listing(root)
        first = run_service(root, self.patience_s)
        self.serves("before", first)
        self.expect(not [p for p in differences(listed, listing(root)) if not _data(p)], "running it wrote data and nothing else")
        self.upgrade(text, first["rows"])
        self.leave(before, first["rows"])

    def as_installed(self) -> None:
        """Who owns what, whether it starts, completes and verifies."""
        root, unit = self.root, self.root.inside(UNIT)
        shown = root.run("stat", "-c", "%n %A %U:%G", CONFIG, "/etc/edge-agent/secrets.env", STATE).stdout.split("\n")
        want = [f"{CONFIG} -rw-r----- root:edge-agent", "/etc/edge-agent/secrets.env -rw------- root:root",
                f"{STATE} drwxr-x--- edge-agent:edge-agent", ""]  # fmt: skip
        self.expect(shown == want, "owners and modes", shown)
        user = root.run("getent", "passwd", "edge-agent").stdout.strip()
        self.expect(user.endswith(":/usr/sbin/nologin") and int(user.split(":")[2]) < 1000, "system user", user)
        wants = root.inside("/etc/systemd/system/multi-user.target.wants/edge-agent.service")
        self.expect(wants.is_symlink(), "enabled at boot")
        told = root.run("sh", "-c", "find /usr/lib/edge-agent -name '*.so*' | xargs ldd").stdout
        # A library that another of the same wheel loads first is found by its name.
        packed = {path.name for path in root.inside("/usr/lib/edge-agent").rglob("*.so*")}
        missing = sorted(set(re.findall(r"(\S+) => not found", told)) - packed)
        linked = len(re.findall(" => /", told))
        self.expect(linked > 100 and not missing, "every library it links to is there", missing or f"{linked} links")
        version = root.run("edge-agent", "--version").stdout.strip()
        self.expect(version == f"edge-agent {build.version_of()}", "starts", version)
        checked = root.run("edge-agent", "check", "-c", CONFIG, check=False)
        self.expect(checked.returncode == 0, "its sample configuration is well", (checked.stdout + checked.stderr).strip())
        words = root.run(
            "bash", "-c", "source /usr/share/bash-completion/completions/edge-agent; COMP_WORDS=(edge-agent bundle ''); "
            "COMP_CWORD=2; _edge_agent; echo ${COMPREPLY[@]}",
        ).stdout.split()  # fmt: skip
        self.expect({"install", "activate", "rollback"} <= set(words), "completes `edge-agent bundle `", " ".join(words))
        verify = root.run("systemd-analyze", "verify", "--man=no", UNIT, check=False)
        told = [line for line in (verify.stdout + verify.stderr).splitlines() if "edge-agent" in line]
        self.expect(verify.returncode == 0 and not told, "systemd-analyze verify", told or "no complaint")
        judged = root.run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT, check=False).stdout
        exposure = re.search(r"exposure level for \S+: ([\d.]+)", judged)
        self.seen["systemd"] = root.run("systemd-analyze", "--version").stdout.split("\n")[0]
        self.seen["exposure"] = float(exposure[1]) if exposure else None
        self.expect(exposure is not None and float(exposure[1]) <= DEB["exposure"], "systemd-analyze security", exposure and exposure[1])
        self.expect(not list(unit.parents[2].glob("python3*/site-packages/edge_agent")), "nothing in the system's own Python")
        size = sum(f.stat().st_size for f in root.inside("/usr/lib/edge-agent").rglob("*") if f.is_file() and not f.is_symlink())
        self.seen["installed_mib"] = round(size / 2**20, 1)
        self.seen["package_mib"] = round(self.package.stat().st_size / 2**20, 1)

    def configure(self) -> bytes:
        """What an administrator writes: the id, and the broker's port; a credential beside it."""
        path = self.root.inside(CONFIG)
        text = path.read_text()
        changed = text.replace("id: edge-01", "id: tried-01").replace("port: 1883", f"port: {self.port}").replace("localhost", "127.0.0.1")
        assert changed != text
        path.write_text(changed)
        self.root.inside("/etc/edge-agent/mqtt-password").write_text("secret\n")
        seconds = "20"
        self.root.run("edge-agent", "simulate", "vibration", "/tmp/machine.npz", "--seconds", seconds)
        return path.read_bytes()

    def serves(self, when: str, seen: dict[str, Any]) -> None:
        """READY once, WATCHDOG again and again, STOPPING at the end, all by the service's user; windows scored meanwhile."""
        uid = int(self.root.run("id", "-u", "edge-agent").stdout)
        well = seen["ready"] == 1 and seen["watchdog"] >= 3 and seen["stopping"] == 1 and seen["uids"] == [uid] and seen["exit"] == 0
        self.expect(well and seen["rows"] > 0, f"the unit's ExecStart line as uid {uid}, {when} the upgrade", seen)
        self.seen[f"service_{when}"] = {k: seen[k] for k in ("ready_s", "ready", "watchdog", "stopping", "rows")}

    def upgrade(self, text: bytes, scored: int) -> None:
        """The newer package over the older one, as an unattended upgrade does it."""
        root = self.root
        root.run("apt-get", "install", "-y", "-qq", "-o", "Dpkg::Options::=--force-confold", "/tmp/newer.deb")
        version = root.run("dpkg-query", "-W", "-f", "${Version} ${Status}", "edge-agent").stdout
        self.expect("~before" not in version and version.endswith("install ok installed"), "upgraded", version)
        self.expect(root.inside(CONFIG).read_bytes() == text, "the configuration is as the administrator left it")
        self.expect(rows(root) == scored, "the scores are there", scored)
        self.expect(not root.inside("/usr/share/doc/edge-agent/only-before.txt").exists(), "what the newer one lacks is gone")
        self.expect(root.inside("/etc/edge-agent/mqtt-password").exists(), "a credential beside the configuration is there")
        second = run_service(root, self.patience_s)
        self.serves("after", second)
        self.seen["scored"] = scored + second["rows"]

    def leave(self, before: dict[str, str], scored: int) -> None:
        """Remove, purge, install again, purge without data."""
        root = self.root
        root.run("apt-get", "remove", "-y", "-qq", "edge-agent")
        left = [p for p in differences(before, listing(root)) if not _data(p)]
        users = {"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/edge-agent"}
        mine = [p for p in left if p not in users and not p.startswith("etc/edge-agent/")]
        self.expect(not mine, "remove leaves configuration, user and data only", mine or None)
        self.expect(rows(root) > scored, "the scores are there after it", rows(root))
        root.run("apt-get", "purge", "-y", "-qq", "edge-agent")
        left = [p for p in differences(before, listing(root)) if not _data(p)]
        self.expect(not left, "purge leaves data only", left or None)
        owner = root.run("stat", "-c", "%A %U:%G", STATE).stdout.strip()
        self.expect(owner == "drwx------ root:root" and rows(root) > scored, "which are root's then", owner)
        root.install("/tmp/newer.deb")
        owner = root.run("stat", "-c", "%A %U:%G", STATE, DATABASE).stdout.split("\n")
        self.expect(owner[:1] == ["drwxr-x--- edge-agent:edge-agent"] and "edge-agent:edge-agent" in owner[1], "installed again it takes them up", owner)
        shutil.rmtree(root.inside(STATE))
        root.run("apt-get", "purge", "-y", "-qq", "edge-agent")
        left = differences(before, listing(root))
        self.expect(not left, "purge without data leaves nothing at all", left or None)


class ScriptTrial(Trial):
    """deploy/install.sh from a copy of the repository, in a system that has Python and systemd."""

    def __init__(self, root: Root, port: int, folder: Path) -> None:
        super().__init__(root, build.ROOT / "deploy/install.sh", port, folder)

    def run(self) -> None:
        """Install, run, configure, install again, run, uninstall."""
        root, unit = self.root, "/etc/systemd/system/edge-agent.service"
        root.inside("/tmp/src").mkdir()
        for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "edge_agent", "trainer", "models", "deploy"):
            source = build.ROOT / name
            if source.is_dir():
                shutil.copytree(source, root.inside(f"/tmp/src/{name}"), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, root.inside(f"/tmp/src/{name}"))
        before = listing(root)
        done = root.run("sh", "/tmp/src/deploy/install.sh")
        self.expect("installed. Now describe" in done.stdout, "installed", done.stdout.splitlines()[-4])
        checked = root.run("edge-agent", "check", "-c", CONFIG, check=False)
        self.expect(checked.returncode == 0, "its sample configuration is well", (checked.stdout + checked.stderr).strip())
        verify = root.run("systemd-analyze", "verify", "--man=no", unit, check=False)
        told = [line for line in (verify.stdout + verify.stderr).splitlines() if "edge-agent" in line]
        self.expect(verify.returncode == 0 and not told, "systemd-analyze verify", told or "no complaint")
        text = self.configure()
        first = run_service(root, self.patience_s, unit=unit)
        self.serves("before", first)
        done = root.run("sh", "/tmp/src/deploy/install.sh")
        same = root.inside(CONFIG).read_bytes() == text and rows(root) == first["rows"]
        self.expect(same and "upgraded" in done.stdout, "run again it upgrades; configuration and scores are as they were", done.stdout.splitlines()[-1])
        self.serves("after", run_service(root, self.patience_s, unit=unit))
        root.run("sh", "/tmp/src/deploy/install.sh", "--uninstall")
        users = {"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid", "etc/edge-agent"}
        # What apt-get brought along for it and pip keeps are not its own.
        left = [p for p in differences(before, listing(root)) if not _data(p) and p not in users and not p.startswith("etc/edge-agent/")]
        mine = [p for p in left if "edge" in p]
        self.expect(not mine and rows(root) > first["rows"], "uninstalled it leaves configuration, user and data only", mine or None)


def _data(path: str) -> bool:
    return path == STATE[1:] or path.startswith(f"{STATE[1:]}/")


def dependencies(package: Path, target: Target) -> list[str]:
    """What has to be there before, so that only the package itself is compared."""
    said = subprocess.run(["dpkg-deb", "-f", package, "Depends"], check=True, capture_output=True, text=True).stdout
    return [*sorted(word.strip().split(" ")[0] for word in said.split(",")), "systemd"]


def newest(folder: Path, target: Target) -> Path:
    """The package that was built last for it."""
    found = sorted(folder.glob(f"edge-agent_*+deb{target.release}_{target.arch}.deb"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UnreachableError(f"no package in {folder}: make deb")
    return found[-1]


def trial(target: Target, package: Path) -> Trial:
    """Run one."""
    say(f"{target}: {package.name}")
    with (
        tempfile.TemporaryDirectory(prefix="edge-deb-") as name,
        _agent.broker(Path(name)) as port,
        roots.fresh(target, dependencies(package, target)) as root,
    ):
        tried = Trial(root, package, port, Path(name))
        tried.run()
        return tried


def trial_of_script(target: Target) -> Trial:
    """Run the install script in a system that has the packages of a plain server."""
    say(f"{target}: deploy/install.sh")
    with (
        tempfile.TemporaryDirectory(prefix="edge-deb-") as name,
        _agent.broker(Path(name)) as port,
        roots.fresh(target, [f"python{target.python}", f"python{target.python}-venv", "python3", "systemd", "libstdc++6"]) as root,
    ):
        tried = ScriptTrial(root, port, Path(name))
        tried.run()
        return tried


def table(seen: Sequence[Mapping[str, Any]]) -> str:
    """For docs/install.md."""
    lines = [
        "| package | size, installed | systemd | exposure | service before the upgrade: READY after, WATCHDOG, windows scored | after it |",
        "|---|---|---|---|---|---|",
    ]
    for row in seen:
        runs = [f"{r['ready_s']} s, {r['watchdog']}, {r['rows']}" for r in (row["service_before"], row["service_after"])]
        lines.append(
            f"| `{row['package']}` | {row['package_mib']} MiB, {row['installed_mib']} MiB | {row['systemd'].split(' ')[1]} | {row['exposure']} | "
            + " | ".join(runs) + " |"
        )  # fmt: skip
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Try every package that was built; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deb", description=__doc__)
    parser.add_argument("--releases", default="12,13")
    parser.add_argument("--arches", default="amd64,arm64")
    parser.add_argument("--packages", type=Path, default=build.OUT, help="where `make deb` put them")
    parser.add_argument("--script", action="store_true", help="deploy/install.sh instead of the packages")
    parser.add_argument("--write", action="store_true", help="put the table into docs/install.md, where nothing was left out")
    args = parser.parse_args(argv)
    roots.end_tidily()
    seen, wrong, left_out = [], [], {}
    for target in build.targets(args.releases, args.arches):
        try:
            roots.possible(target)
            if args.script:
                tried = trial_of_script(target)
                seen.append(tried.seen)
                wrong += tried.wrong
                continue
            tried = trial(target, newest(args.packages, target))
        except UnreachableError as why:
            left_out[str(target)] = str(why)
            say(f"{target}: left out: {why}")
            continue
        seen.append(tried.seen)
        wrong += tried.wrong
    if not seen:
        print(json.dumps({"name": NAME, "ok": False, "skipped": left_out}))
        return 77
    if args.write and not args.script and not wrong and not left_out:
        write_section(NAME, table(seen), PAGE)
    print(json.dumps({"name": NAME, "ok": not wrong and not left_out, "wrong": wrong, "left_out": left_out, "tried": seen}))
    return 0 if not wrong and not left_out else 1


if __name__ == "__main__":
    sys.exit(main())
