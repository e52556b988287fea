"""What-if: stored scores give the events of a fresh run, and what differs is told."""

from __future__ import annotations

import json
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agents import FS_HZ, T0, N, Process, message, rows, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener, needs_mosquitto, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent import cli, pipeline, queries, what_if
from edge_agent.alarms import AlarmPolicy, Transition
from edge_agent.assemble import assemble
from edge_agent.config import load
from edge_agent.features import Context
from edge_agent.pipeline import Measured, Pipeline, PipelineState
from edge_agent.regimes import UNKNOWN, Operating
from edge_agent.signals import rfc3339
from edge_agent.store import EventRow, Record, Store
from edge_agent.thresholds import Threshold
from edge_agent.worker import carry

#: One window of the test bundle, s.
HOP = N / FS_HZ
Action = Callable[[Pipeline, PipelineState], tuple[PipelineState, list[Transition]]]


def plant(folder: Path, alarm: dict[str, Any] | None = None, context: Context | None = None, **keys: Any) -> Pipeline:
    """The pipeline of sensor `a` with this alarm policy."""
    if context is not None and not (folder / "rms").exists():
        make_indicator_bundle(folder / "rms", fs_hz=FS_HZ, n_samples=N, context=context)
    path = write_plant(folder, 1, {"a": {"alarm": alarm or {}, **keys}})
    return assemble(load(path))["a"]


def run(
    pipe: Pipeline, items: Iterable[bytes | Operating | Action], database: Path | None = None, state: PipelineState | None = None
) -> list[Transition]:
    """A run of the agent's pipeline (a fresh one without a state) over messages, operating values and people's actions; stored where asked."""
    state, events, told = state or pipeline.initial(pipe), [], []
    measured: list[Measured] = []
    for item in items:
        if isinstance(item, Operating):
            state = pipeline.operate(state, item)
            continue
        if callable(item):
            state, found = item(pipe, state)
            pairs: list[tuple[Transition, Measured | None]] = [(tr, state.last) for tr in found]
        else:
            state, outcome = pipeline.step(pipe, state, item, T0)
            measured += outcome.measured
            pairs = [(tr, None if i is None else outcome.measured[i]) for i, tr in outcome.transitions]
        for tr, m in pairs:
            payload = msgspec.json.encode(pipeline.event(pipe, tr, m, True, state)).decode()
            events.append(EventRow(tr, "t", payload))
            told.append(tr)
    if database is not None:
        store = Store.open(database)
        store.write([Record("a", tuple(measured), tuple(events), state.alarm, pipeline.dump(state), T0)])
        store.close()
    return [tr for tr in told if tr.type in ("new", "update", "end")]


def replayed(database: Path, pipe: Pipeline) -> list[Transition]:
    """What what-if makes of the stored rows."""
    with queries.reading(database) as db:
        return [tr for _, tr in what_if.replay(what_if.read(db, "a", ""), pipe)]


def same(a: list[Transition], b: list[Transition]) -> bool:
    """Whether two runs told the same, in all that a row of `events` keeps."""
    found = ([(t.event_id, t.alarm_id, t.type, t.state, t.severity, rfc3339(t.t), rfc3339(t.since)) for t in x] for x in (a, b))
    return next(found) == next(found)


POLICIES = st.builds(
    AlarmPolicy,
    vote=st.sampled_from([(1, 1), (2, 4), (3, 5), (4, 4)]),
    on_delay_s=st.sampled_from([0.0, HOP, 1.0]),
    off_delay_s=st.sampled_from([0.0, HOP, 2.0]),
    deadband=st.sampled_from([0.0, 0.1, 0.5]),
    warning_ratio=st.sampled_from([0.8, 1.0]),
    alarm_ratio=st.sampled_from([1.0, 1.5]),
    latching=st.booleans(),
    require_ack=st.booleans(),
)


@pytest.fixture(scope="module")
def of_history(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """A pipeline that scores three windows together, at most 5 s apart."""
    return plant(tmp_path_factory.mktemp("history"), context=Context("windows", 3, max_gap_s=5.0))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(POLICIES, POLICIES, st.sampled_from([None, 0.9, 1.5]), st.integers(0, 2**31))
def test_a_replay_of_the_rows_is_a_fresh_run(
    of_history: Pipeline, was: AlarmPolicy, now: AlarmPolicy, limit: float | None, seed: int
) -> None:
    """Over a random mix of levels, gaps, dead sensors and windows without a score, the rows that one run left give, event for event, what a
    fresh run with other settings and another limit tells."""
    rng = random.Random(seed)
    seq, items = 0, []
    while len(items) < 100:
        level, n = rng.choice([0.0, 0.5, 1.0, 1.0, 1.3, 1.8]), rng.choice([1, 2, 8])
        items += [message(seq + i, level) for i in range(n)]
        seq += n + rng.choice([0, 0, 0, 3, 100])
    other = replace(of_history, policy=now)
    if limit is not None:
        other = replace(other, threshold=Threshold(limit, "value"))
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "agent.db"
        run(replace(of_history, policy=was), items, database)
        assert same(replayed(database, other), run(other, items))


def commission(action: str, **how: Any) -> Action:
    """A person's command at the end of the last window."""

    def act(pipe: Pipeline, state: PipelineState) -> tuple[PipelineState, list[Transition]]:
        t = T0 if state.last is None else state.last.end
        state, notice = pipeline.commission(pipe, state, action, t, **how)
        return state, [notice]

    return act


def test_commissioned_limits_stay_and_forget_votes_where_the_run_did(tmp_path: Path) -> None:
    """Learnt, armed, learnt again, cancelled and rolled back: the limit that acted on a row acts in the replay, the others are
    those of the new settings, and votes of one limit never count under another."""
    healthy_ = [message(i, 0.5) for i in range(160)]
    loud = lambda a, b, level: [message(i, level) for i in range(a, b)]
    story = [
        *healthy_[:5], *loud(5, 7, 2.0), commission("start", windows=60), *healthy_[7:],  # votes of 2 are forgotten twice
        *loud(160, 170, 0.7), *loud(170, 180, 0.5), *loud(180, 182, 0.7),
        commission("start", windows=60), *loud(182, 190, 0.7), commission("cancel"), *loud(190, 194, 0.7),
        *loud(194, 204, 0.5), *loud(204, 206, 0.7), commission("rollback"), *loud(206, 210, 0.7), *loud(210, 214, 2.0),
    ]  # fmt: skip
    database = tmp_path / "agent.db"
    first = plant(tmp_path, {"vote": [3, 5]})
    told = run(first, story, database)
    assert [t.type for t in told].count("new") >= 3, "under the commissioned limit and, at the end, the bundle's"
    assert same(replayed(database, first), told)
    for alarm in ({"vote": [2, 3]}, {"vote": [1, 1], "off_delay_s": 1.0}, {"warning_ratio": 0.9}):
        other = plant(tmp_path, alarm, threshold={"value": 1.9})
        assert same(replayed(database, other), run(other, story))


def test_windows_of_an_unknown_regime_do_not_vote(tmp_path: Path) -> None:
    """Rows whose regime was never learnt were not voted on, and are not in a replay."""
    regime = {"topic": "plant/rpm", "edges": [100]}
    story: list[Any] = [commission("start", windows=60)]
    for i in range(120):
        story += [Operating(50.0, T0 + i * HOP), message(i, 0.5)]
    for i in range(120, 150):
        story += [Operating(50.0 if i >= 140 else 500.0, T0 + i * HOP), message(i, 0.9)]
    database = tmp_path / "agent.db"
    pipe = plant(tmp_path, regime=regime)
    told = run(pipe, story, database)
    with queries.reading(database) as db:
        kinds = dict(db.conn.execute("SELECT regime, count(*) FROM scores WHERE ratio >= 1 GROUP BY 1").fetchall())
        scores = what_if.read(db, "a", "")
    assert kinds[UNKNOWN] == 20
    assert (scores.windows, scores.t.size) == (150, 130)
    assert [t.type for t in told] == ["new", "update"], "one alarm, which grows grave"
    assert same(replayed(database, pipe), told)
    other = plant(tmp_path, {"vote": [1, 1]}, regime=regime)
    assert same(replayed(database, other), run(other, story))


def test_rows_count_in_the_order_they_were_judged(tmp_path: Path) -> None:
    """A sensor's clock set back leaves rows whose times overlap: the replay follows the run, not the times,
    and no alarm ends before it began."""
    first = levels((20, 1.0), (6, 2.0), (14, 1.0))
    again = [message(40 + i, 2.0 if 8 <= i < 14 else 1.0, t0=T0 - 25.5 * HOP) for i in range(34)]
    pipe = plant(tmp_path)
    told = run(pipe, [*first, *again], tmp_path / "agent.db")
    assert [t.type for t in told] == ["new", "end"] * 2
    assert same(replayed(tmp_path / "agent.db", pipe), told)
    (answer,) = what_if.ask(tmp_path / "agent.db", {"a": pipe}, "2000-01-01T00:00:00.000Z")
    assert answer.changes == ()
    assert all(s.end is not None and s.begin <= s.end for s in answer.after)


def levels(*pairs: tuple[int, float], now: float = T0) -> list[bytes]:
    """Messages: so many windows of each level in turn."""
    seq, out = 0, []
    for n, level in pairs:
        out += [message(seq + i, level, t0=now) for i in range(n)]
        seq += n
    return out


def ask(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr of `edge-agent what-if`."""
    code = cli.main(["what-if", "--since", "2000-01-01", *args])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_the_command_lists_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against what was told: a stricter vote loses the short fault and moves the long one; --json says the same; against its
    own configuration nothing differs."""
    story = levels((20, 1.0), (3, 2.0), (20, 1.0), (40, 2.0), (20, 1.0))
    run(plant(tmp_path), story, tmp_path / "agent.db")
    old = (tmp_path / "config.yaml").rename(tmp_path / "old.yaml")
    new = write_plant(tmp_path, 1, {"a": {"alarm": {"vote": [6, 6]}}})
    code, out, err = ask(capsys, "-c", str(new))
    assert (code, err) == (0, "")
    first, head, *lines = out.splitlines()
    assert first.endswith(": 2 alarms before, 1 with these settings: 0 gained, 1 lost, 1 moved, 0 chattering")
    assert head.split() == ["sensor", "change", "began", "ended", "severity", "before"]
    assert [line.split()[1] for line in lines] == ["lost", "moved"]
    code, out, _ = ask(capsys, "-c", str(new), "--json")
    answer = json.loads(out)
    assert (answer["sensor"], answer["windows"], answer["alarms_before"], answer["alarms_after"]) == ("a", 103, 2, 1)
    assert answer["lost"][0]["began"] == rfc3339(T0 + 23 * HOP)
    assert answer["moved"][0]["before"]["began"] == rfc3339(T0 + 46 * HOP)
    assert answer["moved"][0]["after"]["began"] == rfc3339(T0 + 49 * HOP)
    code, out, _ = ask(capsys, "-c", str(new), "--against", str(old), "--json")
    assert {k: json.loads(out)[k] for k in ("lost", "moved")} == {k: answer[k] for k in ("lost", "moved")}
    code, out, _ = ask(capsys, "-c", str(old))
    assert "2 alarms before, 2 with these settings: 0 gained, 0 lost, 0 moved" in out
    assert len(out.splitlines()) == 1
    code, out, _ = ask(capsys, "-c", str(old), "--sensor", "a", "--until", rfc3339(T0 + 30 * HOP), "--json")
    assert (json.loads(out)["alarms_before"], json.loads(out)["windows"]) == (1, 30)


def test_a_restless_setting_chatters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Vote [1, 1] without deadband over single loud windows: every one an alarm, and the burst is told as chattering."""
    run(plant(tmp_path), levels(*[(5, 1.0), (1, 2.0)] * 6), tmp_path / "agent.db")
    new = write_plant(tmp_path, 1, {"a": {"alarm": {"vote": [1, 1], "deadband": 0}}})
    code, out, _ = ask(capsys, "-c", str(new), "--json")
    answer = json.loads(out)
    assert (code, len(answer["gained"]), answer["alarms_before"]) == (0, 6, 0)
    assert [burst["alarms"] for burst in answer["chattering"]] == [6]


def does(name: str, **how: Any) -> Action:
    """A person's command after the last window."""

    def act(p: Pipeline, state: PipelineState) -> tuple[PipelineState, list[Transition]]:
        assert state.last is not None
        state, tr = pipeline.command(p, state, name, state.last.end, **how)
        return state, [tr]

    return act


@pytest.mark.parametrize(
    ("before", "meanwhile", "after", "stood"),
    [
        ("c" * 9, "c" * 4 + "L" * 6, "L" * 4 + "c" * 9, [(19, 28)]),  # came meanwhile: told when the shelving ends
        ("c" * 9 + "L" * 5, "c" * 9, "c" * 5, [(12, 23)]),  # went meanwhile: its end is told then
        ("c" * 9, "L" * 5 + "c" * 9, "c" * 5, []),  # came and went: never told
        ("c" * 9 + "L" * 5, "c" * 6 + "L" * 5, "L" * 3 + "c" * 9, [(12, 33)]),  # went and came again: one alarm
        ("c" * 9 + "L" * 5, "L" * 5, "L" * 3, [(12, None)]),
        ("c" * 9, "L" * 5, "", []),  # still shelved
    ],
)
def test_what_turned_while_shelved_is_no_difference(
    tmp_path: Path, before: str, meanwhile: str, after: str, stood: list[tuple[int, int | None]]
) -> None:
    """The settings that were in force, over a time in which the sensor was shelved: nothing gained, lost or moved."""
    pipe, n = plant(tmp_path), 0
    story: list[Any] = []
    for part, then in ((before, does("shelve", for_s=1e4)), (meanwhile, does("unshelve") if after else None), (after, None)):
        story += [message(n + i, 2.0 if c == "L" else 0.8) for i, c in enumerate(part)] + ([] if then is None else [then])
        n += len(part)
    run(pipe, story, tmp_path / "agent.db")
    (answer,) = what_if.ask(tmp_path / "agent.db", {"a": pipe}, "2000-01-01T00:00:00.000Z")
    windows = [(round((s.begin - T0) / HOP), None if s.end is None else round((s.end - T0) / HOP)) for s in answer.before]
    assert windows == stood
    assert answer.changes == ()
    assert [(s.begin, s.end) for s in answer.after] == [(s.begin, s.end) for s in answer.before]


def test_shelved_acknowledged_and_reset_alarms_are_those_that_stood(tmp_path: Path) -> None:
    """What was told is read as times in which the alarm stood: a shelving in between does not cut it, nor what is latched
    prolong it."""
    pipe = plant(tmp_path, {"latching": True})
    loud, calm = [message(i, 2.0) for i in range(40)], [message(i, 1.0) for i in range(40)]
    story = [
        *loud[:5], does("ack", by="kim"), *loud[5:8], does("shelve", for_s=9.0), *loud[8:10], does("unshelve"),
        *loud[10:12], *calm[12:20], *loud[20:25], *calm[25:32], does("reset"), *calm[32:40],
    ]  # fmt: skip
    run(pipe, story, tmp_path / "agent.db")
    with queries.reading(tmp_path / "agent.db") as db:
        stood = queries.stood(db, "a")
        windows = [(round((s.begin - T0) / HOP), round((s.end - T0) / HOP)) for s in stood if s.end is not None]
    assert windows == [(3, 17), (23, 30)]
    (answer,) = what_if.ask(tmp_path / "agent.db", {"a": pipe}, "2000-01-01T00:00:00.000Z")
    assert answer.changes == ()


def test_what_cannot_be_replayed_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another bundle's scores, a time rolled up to minutes and a sensor of one configuration only: each is named with the
    mend and exit code 1; no scores at all is said and is well."""
    pipe = plant(tmp_path)
    config = str(tmp_path / "config.yaml")
    run(pipe, levels((20, 1.0)), tmp_path / "agent.db")
    make_indicator_bundle(tmp_path / "other", fs_hz=FS_HZ, n_samples=N, seed=1)
    other = tmp_path / "other.yaml"
    other.write_text(Path(config).read_text().replace("model: rms", "model: other"))
    code, out, err = ask(capsys, "-c", str(other))
    assert (code, out) == (1, "")
    assert "a: its scores are of another bundle than other 1" in err
    third = write_plant(tmp_path / "rms", 1, {"b": {"model": str(tmp_path / "rms")}}, database=str(tmp_path / "agent.db"))
    code, _, err = ask(capsys, "-c", str(third), "--against", config)
    assert (code, err) == (1, "b: is in one of the two configurations only\n")
    assert ask(capsys, "-c", str(third))[:2] == (0, "b: no scores in this time\n")
    with Store.open(tmp_path / "agent.db")._transaction() as db:
        db.execute("CREATE TABLE IF NOT EXISTS scores_minute(sensor TEXT, minute TEXT)")
        db.execute("INSERT INTO scores_minute(sensor, minute) VALUES ('a', '2026-09-01T00:00:00.000Z')")
    code, out, err = ask(capsys, "-c", config)
    assert code == 1
    assert "rolled up to minutes" in err
    assert "--since 2026-09-01T00:01:00.000Z or later" in err
    assert cli.main(["what-if", "--since", "2026-09-01T00:01:00Z", "-c", config]) == 0


@needs_mosquitto
def test_a_reload_logs_what_the_new_settings_would_have_told(
    tmp_path: Path, broker: Broker, listen: Callable[..., Listener]
) -> None:
    """SIGHUP with a stricter vote: the log has what-if's own line over the stored scores; one with nothing changed has none. A
    budget that the bundle's windows cannot support is warned of then as at the start."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    agent = Process(path)
    ear.wait("edge/t/status")
    for payload in levels((10, 1.0), (3, 2.0), (10, 1.0), (10, 2.0), now=time.time() - 60.0):
        ear.publish("plant/a", payload)
    ear.wait("edge/t/s/a/event", 3)
    until(lambda: rows(tmp_path / "agent.db", "SELECT count(*) FROM scores") == [(33,)], what="all windows on record")
    agent.send(signal.SIGHUP)
    until(lambda: agent.said().count("reloaded: ") == 1)
    write_plant(tmp_path, broker.port, {"a": {"alarm": {"vote": [6, 6]}}})
    agent.send(signal.SIGHUP)
    until(lambda: "what if" in agent.said())
    assert "false alarms" not in agent.said()
    write_plant(tmp_path, broker.port, {"a": {"alarm": {"vote": [6, 6]}, "false_alarms": "1 per 30 d"}})
    for n in (3, 4):  # told once: the second time nothing has changed
        agent.send(signal.SIGHUP)
        until(lambda n=n: agent.said().count("reloaded: ") == n)
    assert agent.end() == 0
    (warning,) = (line for line in agent.said().splitlines() if "false alarms" in line)
    assert "WARNING sensor a: false alarms: " in warning
    assert "1 per 30 d" in warning
    (line,) = (line for line in agent.said().splitlines() if "what if" in line)
    assert "what if, the last 30 days: a: " in line
    assert line.endswith("2 alarms before, 1 with these settings: 0 gained, 1 lost, 1 moved, 0 chattering")


def test_rows_of_a_former_bundle_keep_its_limit(tmp_path: Path) -> None:
    """Peak values of 3 under a limit of 4, then RMS values of 1 under one of 1.2: with the settings in use nothing is gained, also where the
    former bundle was commissioned; a new limit judges the rows of the present bundle only."""
    pipe = plant(tmp_path)
    make_indicator_bundle(tmp_path / "peak", fs_hz=FS_HZ, n_samples=N, feature="peak")
    former = assemble(load(write_plant(tmp_path, 1, {"a": {"model": "peak"}})))["a"]
    run(former, [commission("start", windows=50), *(message(i) for i in range(200))], tmp_path / "agent.db")
    database = tmp_path / "agent.db"
    ((blob,),) = rows(database, "SELECT state FROM pipeline_state")

    def exchange(pipe: Pipeline, state: PipelineState) -> tuple[PipelineState, list[Transition]]:
        state, notice = pipeline.exchanged(pipe, state, T0)
        assert notice is not None
        assert "commission again" in (notice.extra or {})["notice"]["text"]
        return state, [notice]

    run(pipe, [exchange, *(message(i, 1.0 if i < 300 else 1.5) for i in range(200, 320))], database, carry(pipe, blob))
    (same_,) = what_if.ask(database, {"a": pipe}, "2000-01-01T00:00:00.000Z")
    assert (len(same_.before), len(same_.after), same_.changes) == (1, 1, ())
    write_plant(tmp_path, 1, {"a": {"threshold": {"value": 5.0}}})
    (high,) = what_if.ask(database, {"a": assemble(load(tmp_path / "config.yaml"))["a"]}, "2000-01-01T00:00:00.000Z")
    assert (len(high.before), len(high.after), high.count("lost")) == (1, 0, 1)
