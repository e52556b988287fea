"""The alarm system's own figures: rate, floods, chattering, stale, the worst sensors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from agents import write_plant

from edge_agent import alarms, cli, pipeline
from edge_agent.alarms import Alarm, AlarmPolicy
from edge_agent.signals import rfc3339
from edge_agent.store import EventRow, Record, Store

DAY = 86400.0
T0 = 1_790_000_000.0
#: Ratios of ten windows that raise one alarm under vote [1, 1] and end it.
ONCE = [2.0, *[0.5] * 9]


def stored(folder: Path, sensors: dict[str, list[tuple[float, list[float]]]], policy: AlarmPolicy) -> Path:
    """A configuration and a database: for each sensor stretches of windows every 10 s, by begin (s after T0) and ratios."""
    path = write_plant(folder, 1, {name: {} for name in sensors})
    store = Store.open(folder / "agent.db")
    for name, stretches in sensors.items():
        alarm, measured, events = Alarm(), [], []
        for begin, ratios in stretches:
            for i, ratio in enumerate(ratios):
                t = T0 + begin + 10.0 * i
                measured.append(pipeline.Measured(i, t - 10.0, t, ratio, 1.0, ratio))
                alarm, transition = alarms.step(alarm, policy, ratio, t, f"t/{name}")
                if transition is not None:
                    events.append(EventRow(transition, "t", "{}"))
        store.write([Record(name, tuple(measured), tuple(events), alarm, None, T0)])
        if name == "worst":
            store.judge(events[0].transition.alarm_id, False, "bob", None, T0)
            store.judge(events[2].transition.alarm_id, True, "bob", None, T0)
    store.close()
    return path


def asked(path: Path, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What `edge-agent alarms --summary` prints."""
    assert cli.main(["alarms", "--summary", "-c", str(path), *args]) == 0
    return capsys.readouterr().out


def test_the_figures_of_a_month(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten days with one sensor that chatters, one that stands for days and a quiet one: counted, ordered and named."""
    plan = {
        "quiet": [(0.0, [0.5] * 10), (10 * DAY - 90.0, [0.5] * 10)],
        "worst": [(1 * DAY, ONCE), (2 * DAY, ONCE * 4), (9 * DAY, ONCE)],
        "stands": [(5 * DAY, [2.0] * 5)],
    }
    path = stored(tmp_path, plan, AlarmPolicy(vote=(1, 1)))
    s = json.loads(asked(path, capsys, "--json", "--since", rfc3339(T0)))
    assert (s["days"], s["alarms"], s["alarms_per_day"]) == (10.0, 7, 0.7)
    assert (s["peak_10_min"], s["floods"], s["chattering"]) == (4, 0, 1)
    assert (s["standing"], s["unacknowledged"], s["stale"], s["shelved"]) == (1, 1, 1, 0)
    assert s["verdicts"] == {"true": 1, "false": 1, "none": 5}
    assert [(r["sensor"], r["alarms"], r["chattering"], r["stale"], r["false"]) for r in s["sensors"]] == [
        ("worst", 6, 1, False, 1),
        ("stands", 1, 0, True, 0),
    ]
    text = asked(path, capsys, "--since", rfc3339(T0)).splitlines()
    assert "10 days: 7 alarms, 0.7 a day" in text[0]
    assert text[-2].split() == ["worst", "6", "0.6", "0.857", "1", "no", "1"]
    one = json.loads(asked(path, capsys, "--json", "--since", rfc3339(T0 + 3 * DAY), "--sensor", "worst"))
    assert one["alarms"] == 1
    # What stood then is listed, also where it began before.
    assert cli.main(["alarms", "-c", str(path), "--since", rfc3339(T0 + 6 * DAY), "--json"]) == 0
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(row["sensor"], row["ended"] is None) for row in listed} == {("worst", False), ("stands", True)}
    assert len(listed) == 2


def test_a_flood_is_more_than_ten_in_ten_minutes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Eleven sensors raised within a minute are one flood; ten are none; less than a day gives no rate."""
    eleven = {f"s{i:02d}": [(5.0 * i, ONCE)] for i in range(11)}
    path = stored(tmp_path, eleven, AlarmPolicy(vote=(1, 1)))
    s = json.loads(asked(path, capsys, "--json", "--since", rfc3339(T0)))
    assert (s["alarms"], s["peak_10_min"], s["floods"], s["alarms_per_day"]) == (11, 11, 1, None)
    assert len(s["sensors"]) == 10
    fewer = json.loads(asked(path, capsys, "--json", "--since", rfc3339(T0 + 1.0)))
    assert (fewer["peak_10_min"], fewer["floods"]) == (10, 0)
    assert "less than a day: no rate" in asked(path, capsys, "--since", rfc3339(T0))


def test_a_latched_alarm_raised_again_counts_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Latching hides no chatter: the same alarm raised five times is five alarms, and chattering."""
    path = stored(tmp_path, {"a": [(0.0, ONCE * 5)]}, AlarmPolicy(vote=(1, 1), latching=True))
    s = json.loads(asked(path, capsys, "--json", "--since", rfc3339(T0)))
    assert (s["alarms"], s["chattering"], s["standing"]) == (5, 1, 1)
    assert (s["unacknowledged"], s["latched"]) == (0, 1)
    assert "1 standing, 0 of them not acknowledged, 1 latched" in asked(path, capsys, "--since", rfc3339(T0))


def test_nothing_seen_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a row in that time there are no figures, and that is said on stderr."""
    path = stored(tmp_path, {"a": [(0.0, ONCE)]}, AlarmPolicy())
    assert cli.main(["alarms", "--summary", "-c", str(path), "--since", rfc3339(T0 + DAY)]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == ("", "no scores yet; the agent commits every 5 s\n")
