"""What `make boot-test` has a virtual machine do to itself; standard library only, started by a unit at each boot.

    boot 1  ready · confined · scores · acknowledged · reload · frozen · killed · upgrade ─► cut (the host pulls the plug)
    boot 2  ready · kept · doctor · scores (the clock stands years back) · stop · credential · remove ─► off

Each step is one line of JSON on the second serial line; the host judges.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

UNIT = "edge-agent.service"
CONFIG, DATABASE = "/etc/edge-agent/config.yaml", "/var/lib/edge-agent/edge-agent.db"
HERE = Path("/var/lib/trial")
PROPERTIES = ("ActiveState", "SubState", "MainPID", "NRestarts", "Result", "StatusText", "ActiveEnterTimestampMonotonic", "Version")
PASSWORD = "hush-4711"
#: How long anything may take before the step tells what it has.
PATIENCE_S = 150.0


def tell(step, **seen):
    """One line to the host."""
    with Path("/dev/ttyS1").open("w") as line:
        line.write(json.dumps({"step": step, "t": round(time.time(), 1), **seen}) + "\n")


def run(*argv):
    """A command to its end: (exit code, what it printed)."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout.strip()


def unit():
    """What systemd knows of the service."""
    text = run("systemctl", "show", UNIT, "-p", ",".join(PROPERTIES))[1]
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def until(well, what=unit, patience_s=PATIENCE_S):
    """Look until it is well; the last look, and the seconds it took."""
    began = time.monotonic()
    while True:
        seen = what()
        if well(seen) or time.monotonic() - began > patience_s:
            return seen, round(time.monotonic() - began, 1)
        time.sleep(0.2)


def serving(seen):
    """Started and ready."""
    return seen.get("ActiveState") == "active" and seen.get("SubState") == "running"


def count(sql):
    """One number of the database; 0 before it is there."""
    try:
        with sqlite3.connect(f"file:{DATABASE}?mode=ro", uri=True, timeout=10) as db:
            return db.execute(sql).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def rows():
    """Scored windows."""
    return count("SELECT count(*) FROM scores WHERE score IS NOT NULL")


def last():
    """End of the window that was judged last."""
    return count("SELECT ts FROM scores ORDER BY id DESC LIMIT 1")


def state():
    """Of the alarm."""
    return count("SELECT state FROM alarm_state WHERE sensor = 'demo'")


def events():
    """Identities of all events on record, in order."""
    return str(count("SELECT group_concat(event_id) FROM (SELECT event_id FROM events ORDER BY rowid)")).split(",")


def status():
    """The sensor as `edge-agent status` prints it."""
    code, text = run("edge-agent", "status", "-c", CONFIG, "--json")
    return {"exit": code, "text": text[-600:]}


def replayed(path, speed="max"):
    """Publish a recording to its end; rows that came of it, and what was printed."""
    before = rows()
    code, text = run("edge-agent", "replay", path, "-c", CONFIG, "--sensor", "demo", "--speed", speed)
    until(lambda n: n > before, rows, 20.0)
    return {"rows": rows() - before, "exit": code, "replay": text[-300:]}


def forbidden(pid):
    """From inside the service's own view of the files: what it can write although it should not, and see."""
    view = ["nsenter", f"--target={pid}", "--mount"]
    wrote = [p for p in ("/usr/x", "/etc/x", "/boot/x", "/var/log/x", "/home/x", str(Path.home() / "x")) if run(*view, "touch", p)[0] == 0]
    return {
        "wrote": wrote, "own": run(*view, "touch", "/var/lib/edge-agent/x")[0] == 0 and not Path("/var/lib/edge-agent/x").unlink(),
        "devices": sorted(run(*view, "ls", "/dev")[1].split()), "home": run(*view, "ls", "/home")[1],
    }


def confined(pid):
    """What the kernel says of the process."""
    text = Path(f"/proc/{pid}/status").read_text()
    keys = ("Uid", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "VmRSS", "Threads")
    found = {key: re.search(rf"^{key}:\s*(.*)$", text, re.MULTILINE) for key in keys}
    return {key: match[1].split("\t")[0] if match else None for key, match in found.items()}


def memory():
    """Of the service's control group, MiB."""
    text = run("systemctl", "show", UNIT, "-p", "MemoryCurrent,MemoryMax,TasksCurrent")[1]
    return dict(line.split("=", 1) for line in text.splitlines())


def again(old_pid, restarts):
    """Wait for another process in place of that one."""
    return until(lambda u: serving(u) and u["MainPID"] != old_pid and int(u["NRestarts"]) >= restarts)


def first():
    """Everything up to the cut."""
    seen, _ = until(serving)
    pid = seen["MainPID"]
    tell("ready", boot=1, unit=seen, systemd=run("systemctl", "--version")[1].split("\n")[0], kernel=os.uname().release)
    uid = run("id", "-u", "edge-agent")[1]
    tell("confined", uid=uid, status=confined(pid), files=forbidden(pid), memory=memory())
    run("edge-agent", "simulate", "vibration", f"{HERE}/healthy.npz", "--seconds", "20")
    run("edge-agent", "simulate", "vibration", f"{HERE}/faulty.npz", "--seconds", "20", "--severity", "1")
    run("edge-agent", "simulate", "vibration", f"{HERE}/growing.npz", "--seconds", "120", "--onset", "15", "--growth", "5", "--seed", "3")
    tell("scores", **replayed(f"{HERE}/healthy.npz"), status=status())
    fault = replayed(f"{HERE}/faulty.npz")
    code, text = run("edge-agent", "ack", "demo", "-c", CONFIG, "--by", "boot-test", "--why", "seen")
    acked, _ = until(lambda s: "ack" in s["text"].lower() and "unack" not in s["text"].lower(), status, 15.0)
    tell("acknowledged", **fault, ack=[code, text[-300:]], status=acked)
    code, text = run("systemctl", "reload", UNIT)
    time.sleep(2.0)
    seen = unit()
    tell("reload", exit=code, text=text, same=seen["MainPID"] == pid, unit=seen)
    os.kill(int(pid), signal.SIGSTOP)
    seen, took = again(pid, 1)
    tell("frozen", unit=seen, seconds=took, journal=said("atchdog"), acked=status())
    pid = seen["MainPID"]
    os.kill(int(pid), signal.SIGKILL)
    seen, took = again(pid, 2)
    tell("killed", unit=seen, seconds=took)
    pid, before, version, began = seen["MainPID"], rows(), package(), time.monotonic()
    code, text = run("apt-get", "install", "-y", "-qq", "-o", "Dpkg::Options::=--force-confold", f"{HERE}/newer.deb")
    seen, _ = until(lambda u: serving(u) and u["MainPID"] != pid)
    took = round(time.monotonic() - began, 1)
    tell("upgrade", exit=code, text=text[-300:], was=version, now=package(), unit=seen, seconds=took, kept=rows() >= before)
    (HERE / "phase").write_text("second")
    os.sync()
    # A healthy machine again, so that the alarm ends; then one that fails while the host's hand is at the plug.
    live = ["edge-agent", "replay", f"{HERE}/growing.npz", "-c", CONFIG, "--sensor", "demo"]
    subprocess.Popen(live, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda s: s == "NORM", state, 60.0)
    until(lambda s: s == "UNACK", state, 120.0)
    code, text = run("edge-agent", "ack", "demo", "-c", CONFIG, "--by", "anna", "--why", "the last word before the dark")
    while True:
        tell("cut", ack=[code, text], rows=rows(), last=last(), events=events())
        time.sleep(0.2)


def second():
    """After the cut."""
    seen, _ = until(serving)
    tell("ready", boot=2, unit=seen, year=time.gmtime().tm_year)
    checked = count("PRAGMA quick_check")
    tell("kept", rows=rows(), last=last(), events=events(), quick_check=checked, status=status(), failed=failed())
    code, text = run("edge-agent", "doctor", "-c", CONFIG)
    tell("doctor", exit=code, text=text[-3000:])
    tell("scores", **replayed(f"{HERE}/healthy.npz"), status=status())
    began = time.monotonic()
    code, text = run("systemctl", "stop", UNIT)
    tell("stop", exit=code, text=text, seconds=round(time.monotonic() - began, 1), unit=unit())
    tell("credential", **credential())
    seen = unit()
    code, text = run("apt-get", "remove", "-y", "-qq", "edge-agent")
    left = run("pgrep", "-u", "edge-agent")[1]
    tell("remove", exit=code, text=text[-300:], before=seen, processes=left, unit=unit(), failed=failed(), rows=rows())
    tell("log", text=run("journalctl", "-b", "-o", "cat", "-u", UNIT)[1][-3000:])
    tell("off")


def credential():
    """A broker that asks for a password, which systemd hands to the service alone (docs/security.md): what came of it."""
    Path("/etc/mosquitto/conf.d/trial.conf").write_text(
        "per_listener_settings true\nlistener 1883 127.0.0.1\nallow_anonymous true\n"
        "listener 1884 127.0.0.1\nallow_anonymous false\npassword_file /etc/mosquitto/trial.passwd\n"
    )
    run("mosquitto_passwd", "-b", "-c", "/etc/mosquitto/trial.passwd", "agent", PASSWORD)
    run("chown", "mosquitto", "/etc/mosquitto/trial.passwd")
    broker = run("systemctl", "restart", "mosquitto")
    kept = Path("/etc/edge-agent/mqtt-password")
    kept.touch(0o600)
    kept.write_text(PASSWORD + "\n")
    config = Path(CONFIG).read_text()
    login = 'port: 1884\n  username: agent\n  password: "${cred:mqtt-password}"'
    Path(CONFIG).write_text(config.replace("port: 1883", login))
    drop_in = Path(f"/etc/systemd/system/{UNIT}.d")
    drop_in.mkdir()
    (drop_in / "password.conf").write_text("[Service]\nLoadCredential=mqtt-password:/etc/edge-agent/mqtt-password\n")
    run("systemctl", "daemon-reload")
    started = run("systemctl", "start", UNIT)
    log, _ = until(lambda text: "localhost:1884 (MQTT" in text, lambda: run("journalctl", "-b", "-o", "cat", "-u", UNIT)[1], 60.0)
    shown = run("systemctl", "show", UNIT)[1]
    return {
        "broker": broker, "started": started, "connected": "connected to broker localhost:1884" in log, "unit": unit(),
        "leaked": PASSWORD in log or PASSWORD in shown, "mode": run("stat", "-c", "%A %U", kept)[1], "log": log[-500:],
    }


def said(words):
    """Lines of the journal with one of these."""
    return run("journalctl", "-b", "-o", "cat", "--grep", words)[1][-600:]


def failed():
    """Units that failed."""
    return run("systemctl", "--failed", "--plain", "--no-legend")[1]


def package():
    """Of the installed package."""
    return run("dpkg-query", "-W", "-f", "${Version}", "edge-agent")[1]


def main():
    """The part of this boot; then off."""
    phase = HERE / "phase"
    run("stty", "-F", "/dev/ttyS1", "raw", "clocal")  # else to open it waits for a carrier
    try:
        (second if phase.exists() else first)()
    except Exception as error:  # noqa: BLE001 - told to the host, which calls it wrong
        tell("broken", error=f"{type(error).__name__}: {error}", line=sys.exc_info()[2].tb_lineno)
    run("systemctl", "poweroff")


if __name__ == "__main__":
    main()
