"""The soak's own arithmetic, and a short soak through a real broker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import make_indicator_bundle
from conftest import needs_mosquitto

from benchmarks import soak
from benchmarks.soak import Sample

FLAT = [Sample(float(i), 100 * i, 80.0, 50.0, 12, 5, 100, 0) for i in range(41)]
COUNTED: dict[str, Any] = {
    "windows": 4000, "rows": 4000, "events": 3, "events_heard": 3, "alarms": 2, "drops": 0, "shed_scores": 0, "outbox_left": 0,
    "said": [],
}  # fmt: skip


def test_a_flat_day_is_well() -> None:
    """Constant memory, queues, descriptors and threads, a row for every window and every event heard keep the bounds."""
    figures = soak.judged(FLAT, COUNTED)
    assert figures["missed"] == []
    assert figures["ok"]


@pytest.mark.parametrize(
    ("what", "a_window", "missed"),
    [
        ("rss", 1.1 / 3000, "slope_mib"), ("queued", 11 / 3000, "queue_growth"), ("outbox", 1.5 / 3000, "outbox_growth"),
        ("descriptors", 1 / 3000, "descriptor_growth"), ("threads", 1 / 3000, "thread_growth"),
    ],
)  # fmt: skip
def test_what_grows_is_missed(what: str, a_window: float, missed: str) -> None:
    """A rise that comes to just more than its bound over the last 3000 of 4000 windows is told by its name."""
    grown = [replace(s, **{what: getattr(s, what) + a_window * s.windows}) for s in FLAT]
    (said,) = soak.judged(grown, COUNTED)["missed"]
    assert said.startswith(missed)


def test_a_rise_at_the_beginning_is_none() -> None:
    """What an agent takes within the first quarter (caches, models) is not growth."""
    warm = [replace(s, rss=80.0 if s.windows >= 1000 else 60.0) for s in FLAT]
    assert soak.judged(warm, COUNTED)["slope_mib"] == 0.0


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("rows", 3999, "4000 windows sent, 3999 rows"), ("events_heard", 2, "3 events on record, 2 heard"),
        ("drops", 1, "drops 1"), ("alarms", 0, "not one alarm"), ("said", ["x ERROR y"], "x ERROR y"),
    ],
)  # fmt: skip
def test_what_is_lost_is_missed(what: str, value: object, said: str) -> None:
    """A window without a row, an event that nobody heard, a dropped message, a day without alarms, an error in the log."""
    missed = soak.judged(FLAT, {**COUNTED, what: value})["missed"]
    assert [line for line in missed if line.startswith(said)]


def test_too_few_samples_judge_nothing() -> None:
    """Of five samples nothing is said to be flat."""
    assert not soak.judged(FLAT[::10], COUNTED)["ok"]


def test_a_fault_is_louder_than_health() -> None:
    """The faulty windows have at least twice the RMS of the healthy ones, and blows: their crest factor is larger."""
    rng = np.random.default_rng(1)
    healthy, faulty = soak.signal(rng), soak.signal(rng, 2.5)
    assert faulty.std() > 2.0 * healthy.std()
    assert np.abs(faulty).max() / faulty.std() > 1.1 * np.abs(healthy).max() / healthy.std()


@needs_mosquitto
def test_a_short_soak_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three sensors, 80 windows of 8192 points each with a fault among them, through mosquitto and the agent's process: a row
    for each, alarms, every event heard, and a plot."""

    def bundle(folder: Path, _seed: int) -> Path:
        make_indicator_bundle(folder / "soak", fs_hz=soak.FS, n_samples=soak.N)
        return folder / "soak"

    monkeypatch.setattr(soak, "make_bundle", bundle)
    monkeypatch.setattr(soak, "EVERY", 40)
    monkeypatch.setattr(soak, "SAMPLE_S", 0.05)
    samples, counted = soak.soak(tmp_path, 80 * soak.N / soak.FS / 3600.0, 3, 5)
    assert (counted["windows"], counted["rows"], counted["drops"]) == (240, 240, 0)
    assert counted["alarms"] >= 3
    assert counted["events"] == counted["events_heard"]
    assert samples[-1].windows == 240
    soak.plot(samples, soak.judged(samples, counted), tmp_path / "plot" / "soak.png")
    assert (tmp_path / "plot" / "soak.png").stat().st_size > 10_000
