"""What the agent asks of its host: systemd's notify socket, its own memory, whether the clock is right."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from pathlib import Path

_TIMESYNC = Path("/run/systemd/timesync/synchronized")
#: adjtimex(2): the clock is not synchronised.
_TIME_ERROR, _STA_UNSYNC = 5, 0x0040


def notify(text: str) -> bool:
    """Tell systemd (sd_notify(3)): READY=1, WATCHDOG=1, RELOADING=1, STOPPING=1, STATUS=...

    Returns whether there was somebody to tell. NOTIFY_SOCKET is a path, or an abstract name after '@'.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    if address[0] == "@":
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(text.encode(), address)
        except OSError:
            return False
    return True


def watchdog_s() -> float | None:
    """Seconds within which systemd wants WATCHDOG=1 from this process; None where it does not watch."""
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6 or None


def database_bytes(path: Path) -> int | None:
    """Size of a database with its journal; None where there is none."""
    sizes = []
    for file in (path, path.with_name(path.name + "-wal")):
        try:
            sizes.append(file.stat().st_size)
        except OSError:
            continue
    return sum(sizes) if sizes else None


#: What XNNPACK, which computes the networks, asks the kernel about the processor.
CPUINFO = Path("/proc/cpuinfo")


def slow_networks() -> str | None:
    """Why networks take many times as long here, with the mend; None where they do not."""
    if not sys.platform.startswith("linux") or os.access(CPUINFO, os.R_OK):
        return None
    return (
        f"{CPUINFO} cannot be read, so the TFLite runtime goes without XNNPACK and a network may take 50 times as long: "
        "take ProcSubset=pid out of the unit, or what hides /proc out of the container's settings"
    )


def rss_bytes() -> int | None:
    """Resident memory of this process; None where /proc does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def written_bytes() -> int | None:
    """Bytes this process has caused to be written to block devices; None where /proc does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["write_bytes"])
    except (OSError, KeyError, ValueError):
        return None


class _Timex(ctypes.Structure):
    # struct timex begins so; the rest is not looked at but must have room (208 bytes in all on 64 bit).
    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock_synced() -> bool | None:
    """Whether the kernel or systemd-timesyncd says that the clock is synchronised; None: nobody knows."""
    if _TIMESYNC.exists():
        return True
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    timex = _Timex()  # modes 0: only read
    verdict = int(adjtimex(ctypes.byref(timex)))
    if verdict < 0:
        return None
    return verdict != _TIME_ERROR and not timex.status & _STA_UNSYNC


def sync_folder(folder: Path) -> None:
    """Have the entries of a folder on the disk: a rename survives a power cut only then. OSError where it cannot be."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
