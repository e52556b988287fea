"""The judge of `make boot-test`: a machine that did well passes, each single fault fails and is named."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from benchmarks import boot
from deploy.deb.roots import Target

RUNS = {"ActiveState": "active", "SubState": "running", "NRestarts": "0", "Result": "success", "ActiveEnterTimestampMonotonic": "9500000"}
KERNEL = {"Uid": "102", "CapEff": "0" * 16, "CapBnd": "0" * 16, "NoNewPrivs": "1", "Seccomp": "2"}
ACKED = {"text": '{"state":"ACKED","acked_by":"anna","ts":"2026-04-27T19:49:27.038Z"}'}
#: What a guest tells where all is well.
WELL: dict[tuple[int, str], dict[str, Any]] = {
    (1, "ready"): {"unit": RUNS, "systemd": "systemd 252 (252.39)", "kernel": "6.1.0"},
    (1, "confined"): {
        "uid": "102", "status": KERNEL, "memory": {"MemoryCurrent": "76730368"},
        "files": {"wrote": [], "own": True, "devices": ["null", "tty", "urandom"]},
    },
    (1, "scores"): {"rows": 22, "exit": 0},
    (1, "acknowledged"): {"status": ACKED, "ack": [0, "demo: ACKED"]},
    (1, "reload"): {"same": True},
    (1, "frozen"): {"unit": RUNS | {"NRestarts": "1"}, "journal": "Watchdog timeout (limit 1min)!", "acked": ACKED, "seconds": 72.6},
    (1, "killed"): {"unit": RUNS | {"NRestarts": "2"}, "seconds": 12.1},
    (1, "upgrade"): {"exit": 0, "unit": RUNS, "now": "0.1.0+deb12", "kept": True, "seconds": 9.0},
    (1, "cut"): {"ack": [0, "demo: ACKED"], "events": ["A", "B"], "last": "2026-11-26T23:56:51.074Z"},
    (2, "ready"): {"unit": RUNS},
    (2, "kept"): {"quick_check": "ok", "events": ["A", "B", "C"], "status": ACKED, "last": "2026-11-26T23:56:44.674Z"},
    (2, "doctor"): {"text": "note     clock                   2026-04-27T19:49:14.245Z, not synchronised"},
    (2, "scores"): {"rows": 5, "status": ACKED},
    (2, "stop"): {"unit": {"ActiveState": "inactive", "Result": "success"}, "seconds": 0.5},
    (2, "credential"): {"connected": True, "leaked": False, "unit": RUNS, "mode": "-rw------- root"},
    (2, "remove"): {"exit": 0, "processes": "", "before": RUNS, "failed": ""},
    (2, "log"): {"text": "INFO connected to broker"},
}  # fmt: skip


def judged(steps: dict[tuple[int, str], dict[str, Any]]) -> boot.Trial:
    trial = boot.Trial(Target("12", "amd64"), Path("edge-agent_0.1.0+deb12_amd64.deb"), seed=1)
    trial.steps = steps
    trial.judge_first()
    trial.judge_second()
    return trial


def test_a_machine_that_did_well_passes_and_has_its_row() -> None:
    """No complaint, and a row of the page with its figures: 6.4 s of scores went with the power."""
    trial = judged(WELL)
    assert trial.wrong == []
    row = boot.table([trial.seen]).splitlines()[-1]
    assert row.startswith("| debian12-amd64, systemd 252, Linux 6.1.0 | 9.5 s, 9.5 s | 73.2 MiB | 72.6 s | 12.1 s | 9.0 s | 3 of 3 | of 6.4 s |")


@pytest.mark.parametrize("missing", WELL)
def test_a_step_that_was_not_told_is_a_complaint(missing: tuple[int, str]) -> None:
    """A guest that stops half-way passes nothing by silence."""
    assert judged({key: step for key, step in WELL.items() if key != missing}).wrong


@pytest.mark.parametrize(
    ("where", "path", "value"),
    [
        ((1, "ready"), ("unit", "SubState"), "auto-restart"),
        ((1, "ready"), ("unit", "NRestarts"), "1"),
        ((1, "confined"), ("status", "Uid"), "0"),
        ((1, "confined"), ("status", "CapBnd"), "000001ffffffffff"),
        ((1, "confined"), ("status", "Seccomp"), "0"),
        ((1, "confined"), ("files", "wrote"), ["/usr/x"]),
        ((1, "confined"), ("files", "own"), False),
        ((1, "confined"), ("files", "devices"), ["null", "vda"]),
        ((1, "scores"), ("rows",), 0),
        ((1, "acknowledged"), ("status", "text"), '{"state":"UNACK"}'),
        ((1, "reload"), ("same",), False),
        ((1, "frozen"), ("journal",), ""),
        ((1, "frozen"), ("acked", "text"), '{"state":"NORM"}'),
        ((1, "killed"), ("unit", "NRestarts"), "1"),
        ((1, "upgrade"), ("now",), "0.1.0~before+deb12"),
        ((1, "upgrade"), ("kept",), False),
        ((1, "cut"), ("ack",), [1, "no answer"]),
        ((2, "kept"), ("quick_check",), "row 3 missing from index"),
        ((2, "kept"), ("events",), ["A"]),
        ((2, "kept"), ("status", "text"), '{"state":"UNACK"}'),
        ((2, "kept"), ("last",), "2026-11-26T23:56:01.000Z"),
        ((2, "scores"), ("rows",), 0),
        ((2, "scores"), ("status", "text"), '{"ts":"2026-11-26T23:56:44.674Z"}'),
        ((2, "doctor"), ("text",), "well     clock                   synchronised"),
        ((2, "stop"), ("unit", "Result"), "timeout"),
        ((2, "credential"), ("connected",), False),
        ((2, "credential"), ("leaked",), True),
        ((2, "remove"), ("processes",), "355"),
        ((2, "remove"), ("failed",), "edge-agent.service"),
        ((2, "log"), ("text",), "Error in cpuinfo: failed to parse processor information from /proc/cpuinfo"),
    ],
)
def test_a_single_fault_is_found(where: tuple[int, str], path: tuple[str, ...], value: object) -> None:
    """Each figure that the page shows, and each claim beside it, can fail the run."""
    steps = {key: copy.deepcopy(step) for key, step in WELL.items()}
    at: Any = steps[where]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    assert len(judged(steps).wrong) == 1
