"""`make boot-test`: the package in a virtual machine with a kernel and a systemd of its own, which starts the service.

    Debian root + kernel + mosquitto + older package ─► disk image ─► boot 1 ─► plug pulled ─► boot 2 ─► off
                                                                       └ benchmarks/_boot_guest.py, one JSON line a step ┘

What `make deb-test` cannot show in a folder: that systemd itself starts the unit with all its confinement in force, that the
watchdog ends and restarts a process that no longer gets on, that an upgrade restarts a running service and a removal
stops it, and what is left of scores and alarms when the power goes while windows are stored. In the second boot the clock stands
years back, as on a board without one of its own.

Needs root, debootstrap, e2fsprogs and qemu-system-x86. ACCEL=kvm makes it quick where that works; emulated, a boot takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from benchmarks import deb
from benchmarks._report import say, write_section
from benchmarks.bounds import BOOT
from deploy.deb import build, roots
from deploy.deb.roots import Root, Target, UnreachableError
from edge_agent.signals import parse_time

NAME = "boot-test"
GUEST = Path(__file__).with_name("_boot_guest.py")
#: Besides what the package depends on: what makes a folder a machine.
MACHINE = ("dbus", "init", "initramfs-tools", "linux-image-cloud-amd64", "mosquitto", "procps", "util-linux")
#: The clock of the second boot; systemd sets it forward to when it was built itself.
CLOCK = "2001-01-01T00:00:00"
_TRIAL_UNIT = """[Unit]
Description=What make boot-test looks at
[Service]
ExecStart=/usr/bin/python{python} /var/lib/trial/guest.py
[Install]
WantedBy=multi-user.target
"""


def possible(target: Target) -> None:
    """Raise UnreachableError, with what to do, where such a machine cannot be made here."""
    roots.possible(target)
    if target.foreign:
        raise UnreachableError(f"{target} on this processor: a whole machine in emulation takes hours")
    for program, package in (("qemu-system-x86_64", "qemu-system-x86"), ("mke2fs", "e2fsprogs")):
        if shutil.which(program) is None:
            raise UnreachableError(f"{program} is missing: apt-get install {package}")


def furnish(root: Root, package: Path, folder: Path) -> None:
    """The older package, a configuration, the newer one to upgrade to, and the unit that tries them."""
    shutil.copy(deb.older(package, folder), root.inside("/tmp/older.deb"))
    root.install("/tmp/older.deb")
    root.inside("/tmp/older.deb").unlink()
    config = root.inside(deb.CONFIG)
    config.write_text(config.read_text().replace("id: edge-01", "id: tried-01"))
    root.inside("/etc/hostname").write_text("tried\n")
    root.inside("/etc/fstab").write_text("/dev/vda / ext4 defaults,errors=remount-ro 0 1\n")
    root.inside("/var/lib/trial").mkdir()
    shutil.copy(package, root.inside("/var/lib/trial/newer.deb"))
    shutil.copy(GUEST, root.inside("/var/lib/trial/guest.py"))
    root.inside("/etc/systemd/system/trial.service").write_text(_TRIAL_UNIT.format(python=root.target.python))
    root.inside("/etc/hosts").write_text("127.0.0.1 localhost tried\n::1 localhost\n")
    root.run("systemctl", "enable", "trial.service")


def image(root: Root, path: Path) -> None:
    """The root as the disk of a machine."""
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-d", root.path, path, f"{BOOT['disk_mib']}M"]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def newest(root: Root, what: str) -> Path:
    """vmlinuz or initrd.img of the installed kernel."""
    return sorted(root.inside("/boot").glob(f"{what}-*"))[-1]


@contextmanager
def machine(folder: Path, boot: int, *more: str) -> Iterator[Iterator[dict[str, Any]]]:
    """A virtual machine that runs; yields the steps it tells, to its end. Leaving the block pulls the plug."""
    console, steps = folder / f"console{boot}.log", folder / f"steps{boot}"
    steps.touch()
    accel = os.environ.get("ACCEL", "tcg")
    process = subprocess.Popen(
        ["qemu-system-x86_64", "-accel", accel, "-cpu", "host" if accel == "kvm" else "max", "-m", str(BOOT["memory_mib"]), "-smp", "2", "-display", "none", "-nodefaults", "-no-reboot",
         "-kernel", folder / "vmlinuz", "-initrd", folder / "initrd", "-append", "root=/dev/vda rw console=ttyS0 panic=-1 systemd.journald.forward_to_console=1",
         "-drive", f"file={folder / 'disk.img'},format=raw,if=virtio", "-serial", f"file:{console}", "-serial", f"file:{steps}", *more],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip

    def told() -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + BOOT["patience_s"]
        with steps.open() as lines:
            part = ""
            while True:
                part += lines.readline()
                if part.endswith("\n"):
                    if part.strip():
                        yield json.loads(part)
                    part = ""
                elif process.poll() is not None:
                    return
                elif time.monotonic() > deadline:
                    say(f"no end after {BOOT['patience_s']} s; the console says: {console.read_text(errors='replace')[-3000:]}")
                    return
                else:
                    time.sleep(0.05)

    try:
        yield told()
    finally:
        process.kill()
        process.wait()


def serving(unit: Mapping[str, str]) -> bool:
    """Whether systemd holds it for started and ready."""
    return (unit.get("ActiveState"), unit.get("SubState")) == ("active", "running")


class Trial:
    """One package; collects what was seen and what is wrong."""

    def __init__(self, target: Target, package: Path, seed: int) -> None:
        self.target, self.package, self.rng = target, package, Random(seed)
        self.seen: dict[str, Any] = {"target": str(target), "package": package.name}
        self.wrong: list[str] = []
        self.steps: dict[tuple[int, str], dict[str, Any]] = {}

    def expect(self, well: bool, what: str, found: object = None) -> None:
        """Keep a complaint where something is not as it should be."""
        say(f"  {'well ' if well else 'WRONG'} {what}" + (f": {found}" if found is not None else ""))
        if not well:
            self.wrong.append(f"{self.target}: {what}: {found}")

    def run(self) -> None:
        """Both boots."""
        packages = [*deb.dependencies(self.package, self.target), *MACHINE]
        with tempfile.TemporaryDirectory(prefix="edge-boot-") as name:
            folder = Path(name)
            with roots.fresh(self.target, packages) as root:
                furnish(root, self.package, folder)
                shutil.copy(newest(root, "vmlinuz"), folder / "vmlinuz")
                shutil.copy(newest(root, "initrd.img"), folder / "initrd")
                image(root, folder / "disk.img")
            say(f"{self.target}: boot 1")
            with machine(folder, 1) as steps:
                for step in steps:
                    self.steps[1, step["step"]] = step
                    if step["step"] == "cut":
                        # Anywhere between two commits of the scores, soon after the acknowledgement.
                        unplugged = time.monotonic() + self.rng.uniform(0.2, 6.0)
                        for step in steps:
                            self.steps[1, step["step"]] = step
                            if time.monotonic() > unplugged:
                                break
                        break
            self.judge_first()
            say(f"{self.target}: boot 2, after the cut, the clock at {CLOCK}")
            with machine(folder, 2, "-rtc", f"base={CLOCK}") as steps:
                for step in steps:
                    self.steps[2, step["step"]] = step
            self.judge_second()
            for boot in (1, 2):
                if self.wrong:
                    say((folder / f"console{boot}.log").read_text(errors="replace")[-3000:])

    def step(self, boot: int, name: str) -> dict[str, Any]:
        """What was told; a complaint and nothing where it was not."""
        found = self.steps.get((boot, name))
        if found is None:
            self.expect(False, f"boot {boot}: step {name}", self.steps.get((boot, "broken"), "not reached"))
        return found or {}

    def judge_first(self) -> None:
        """From power on to the cut."""
        ready = self.ready(1)
        self.seen |= {"systemd": ready.get("systemd"), "kernel": ready.get("kernel")}
        confined = self.step(1, "confined")
        of = confined.get("status", {})
        kernel = {key: of.get(key) for key in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}
        nothing = "0000000000000000"
        want = {"Uid": confined.get("uid"), "CapEff": nothing, "CapBnd": nothing, "NoNewPrivs": "1", "Seccomp": "2"}
        self.expect(kernel == want, "its own user, no capabilities, no new privileges, system calls filtered", kernel)
        files = confined.get("files", {})
        self.expect(files.get("wrote") == [] and files.get("own") is True, "it can write its own folder and no other", files.get("wrote"))
        disks = [name for name in files.get("devices", ["?"]) if name.startswith(("vd", "sd", "mem", "kmsg", "ttyS", "?"))]
        self.expect(not disks, "it sees no disk, memory or serial line", disks or None)
        self.seen["memory_mib"] = round(int(confined.get("memory", {}).get("MemoryCurrent", 0)) / 2**20, 1)
        scores = self.step(1, "scores")
        self.expect(scores.get("rows", 0) > 0 and scores.get("exit") == 0, "it scores what comes through mosquitto", scores.get("rows"))
        acked = self.step(1, "acknowledged")
        self.expect('"ACKED"' in acked.get("status", {}).get("text", ""), "a fault is told and acknowledged", acked.get("ack"))
        self.expect(self.step(1, "reload").get("same") is True, "systemctl reload: the same process goes on")
        frozen = self.step(1, "frozen")
        well = frozen.get("unit", {}).get("NRestarts") == "1" and "Watchdog timeout" in frozen.get("journal", "")
        kept = '"ACKED"' in frozen.get("acked", {}).get("text", "")
        self.expect(well and kept, "frozen: the watchdog ends it, it is back and the alarm still acknowledged", f"{frozen.get('seconds')} s")
        killed = self.step(1, "killed")
        self.expect(killed.get("unit", {}).get("NRestarts") == "2", "killed: it is back", f"{killed.get('seconds')} s")
        upgrade = self.step(1, "upgrade")
        well = upgrade.get("exit") == 0 and serving(upgrade.get("unit", {})) and "~before" not in upgrade.get("now", "~before")
        self.expect(well and upgrade.get("kept") is True, "upgraded while it runs: the new version runs, scores are kept", upgrade.get("now"))
        self.seen |= {"frozen_s": frozen.get("seconds"), "killed_s": killed.get("seconds"), "upgrade_s": upgrade.get("seconds")}
        self.expect(self.step(1, "cut").get("ack", [1])[0] == 0, "an alarm is acknowledged, then the power goes", len(self.step(1, "cut").get("events", [])))

    def judge_second(self) -> None:
        """From the cut to the removal."""
        self.ready(2)
        cut, kept = self.step(1, "cut"), self.step(2, "kept")
        self.expect(kept.get("quick_check") == "ok", "the database is whole", kept.get("quick_check"))
        before, after = cut.get("events", []), kept.get("events", [])
        self.expect(bool(before) and after[: len(before)] == before, "every event from before the cut is there", f"{len(before)} then, {len(after)} now")
        text = kept.get("status", {}).get("text", "")
        self.expect('"ACKED"' in text and '"anna"' in text, "and the acknowledgement with its name")
        lost_s = parse_time(cut["last"]) - parse_time(kept["last"]) if cut.get("last") and kept.get("last") else None
        self.expect(lost_s is not None and lost_s <= BOOT["lost_s"], "scores that went with the power, s", lost_s)
        self.seen |= {"lost_s": None if lost_s is None else round(lost_s, 1), "events": len(after)}
        scores = self.step(2, "scores")
        shown = scores.get("status", {}).get("text", "")
        self.expect(scores.get("rows", 0) > 0 and kept.get("last", "?") not in shown, "it scores on years back, and status shows it", scores.get("rows"))
        doctor = self.step(2, "doctor").get("text", "")
        self.expect(" clock " in doctor and "not synchronised" in doctor, "the doctor names the clock")
        stop = self.step(2, "stop")
        unit = stop.get("unit", {})
        self.expect(unit.get("ActiveState") == "inactive" and unit.get("Result") == "success", "systemctl stop", f"{stop.get('seconds')} s")
        login = self.step(2, "credential")
        well = login.get("connected") is True and login.get("leaked") is False and serving(login.get("unit", {}))
        self.expect(well, "a password that systemd hands to it alone opens the broker and stands in no log", login.get("mode") if well else login)
        remove = self.step(2, "remove")
        well = remove.get("exit") == 0 and not remove.get("processes") and serving(remove.get("before", {}))
        self.expect(well and not remove.get("failed"), "removed while it runs: stopped, no process left, no unit failed", remove.get("processes") or None)
        if "cpuinfo" in (log := self.step(2, "log").get("text", "")) or "Permission denied" in log:
            self.expect(False, "nothing is denied to it that it asks for", log)

    def ready(self, boot: int) -> dict[str, Any]:
        """systemd has started it."""
        ready = self.step(boot, "ready")
        unit = ready.get("unit", {})
        after = round(int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6, 1)
        self.expect(serving(unit) and unit.get("NRestarts") == "0", f"boot {boot}: systemd has started it, READY after", f"{after} s")
        self.seen[f"ready_{boot}_s"] = after
        return ready


def main(argv: Sequence[str] | None = None) -> int:
    """Try every package that was built; the last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.boot", description=__doc__)
    parser.add_argument("--releases", default="12,13")
    parser.add_argument("--packages", type=Path, default=build.OUT, help="where `make deb` put them")
    parser.add_argument("--write", action="store_true", help="put the table into docs/install.md, where nothing was left out")
    args = parser.parse_args(argv)
    seed = int(os.environ.get("SEED") or secrets.randbits(32))
    roots.end_tidily()
    tried: list[Trial] = []
    left_out: dict[str, str] = {}
    for target in build.targets(args.releases, "amd64"):
        try:
            possible(target)
            tried.append(Trial(target, deb.newest(args.packages, target), seed))
            tried[-1].run()
        except UnreachableError as why:
            left_out[str(target)] = str(why)
            say(f"{target}: left out: {why}")
    wrong = [what for trial in tried for what in trial.wrong]
    ok = bool(tried) and not wrong and not left_out
    print(json.dumps({"name": NAME, "ok": ok, "wrong": wrong, "left_out": left_out, "tried": [t.seen for t in tried], "seed": seed}))
    if args.write and ok:
        write_section(NAME, table([t.seen for t in tried]), deb.PAGE)
    return 0 if ok else 1 if tried else 77


def table(seen: Sequence[Mapping[str, Any]]) -> str:
    """For docs/install.md."""
    lines = [
        "| system | READY after power on | memory of its control group | frozen, back after | killed, back after | upgrade | events kept | scores lost with the power |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['target']}, {' '.join(row['systemd'].split(' ')[:2])}, Linux {row['kernel']} | {row['ready_1_s']} s, {row['ready_2_s']} s | {row['memory_mib']} MiB "
        f"| {row['frozen_s']} s | {row['killed_s']} s | {row['upgrade_s']} s | {row['events']} of {row['events']} | of {row['lost_s']} s |"
        for row in seen
    ]  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
