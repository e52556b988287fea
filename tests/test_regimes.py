"""Regimes: the value's interval or the nearest cluster, a limit for each, and an unknown one abstains."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from agents import Agent, message, write_plant
from bundles import healthy, make_indicator_bundle
from conftest import Broker, Listener, until
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import offline, pipeline, regimes, windowing
from edge_agent.pipeline import PipelineState
from edge_agent.regimes import UNKNOWN, Operating, Spec
from edge_agent.signals import Chunk

SPEC = Spec("plant/rpm", (600.0, 1200.0))


@pytest.mark.parametrize(
    ("value", "name"),
    [(-1e9, "below 600"), (599.9, "below 600"), (600.0, "600 to 1200"), (1199.0, "600 to 1200"), (1200.0, "1200 and above")],
)
def test_an_edge_belongs_to_what_lies_above_it(value: float, name: str) -> None:
    """Every value has exactly one regime, named by its interval."""
    assert regimes.name(SPEC, value) == name


@given(edges=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6, unique=True), value=st.floats(-1e7, 1e7))
def test_there_is_one_regime_more_than_edges(edges: list[float], value: float) -> None:
    """However many edges, the value's regime is the interval that holds it."""
    spec = Spec("t", tuple(sorted(edges)))
    k = int(np.searchsorted(spec.edges, value, "right"))
    names = [regimes.name(spec, e) for e in (spec.edges[0] - 1.0, *spec.edges)]
    assert regimes.name(spec, value) == names[k]


@pytest.mark.parametrize(
    ("payload", "meant"),
    [
        (b"1480", Operating(1480.0, 5.0)),
        (b" 14.5e1 ", Operating(145.0, 5.0)),
        (b'{"v": 3, "ts": 1000000000}', Operating(3.0, 1e9)),
        (b'{"v": 3, "ts": "2001-09-09T01:46:40Z", "unit": "rpm"}', Operating(3.0, 1e9)),
        (b'{"v": 3}', Operating(3.0, 5.0)),
    ],
)
def test_a_plain_number_or_an_object_is_read(payload: bytes, meant: Operating) -> None:
    """Without a time it is that of the receipt."""
    assert regimes.parse(payload, 5.0) == meant


@pytest.mark.parametrize("payload", [b"", b"fast", b"true", b"null", b"[1]", b'{"rpm": 3}', b'{"v": "3"}', b"1e999", b"\xff", b'{"v": 1, "ts": "soon"}'])  # fmt: skip
def test_anything_else_is_refused(payload: bytes) -> None:
    """With what came and what was expected."""
    with pytest.raises(ValueError):
        regimes.parse(payload, 0.0)


def test_clusters_are_found_and_named_in_a_fixed_order() -> None:
    """Two clouds give two centres, the same in any order of the vectors."""
    rng = np.random.default_rng(3)
    low, high = rng.normal(0.0, 0.3, (80, 3)), rng.normal(4.0, 0.3, (40, 3))
    x = np.concatenate([low, high]).astype(np.float32)
    centres = regimes.cluster(x, 2)
    assert centres == pytest.approx(np.stack([low.mean(0), high.mean(0)]), abs=0.05)
    assert regimes.cluster(x[::-1], 2) == pytest.approx(centres, abs=1e-5)
    assert regimes.nearest(centres, x[0]) == "cluster 1"
    assert regimes.nearest(centres, x[-1]) == "cluster 2"
    assert len(regimes.cluster(np.ones((50, 3), np.float32), 3)) == 1


@pytest.fixture(scope="module")
def rms(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Pipeline:
    """RMS at 1 kHz under a regime topic with one edge at 1000."""
    ready = offline.pipeline_for(make_indicator_bundle(tmp_path_factory.mktemp("bundle") / "rms"))
    return replace(ready, regime=Spec("plant/rpm", (1000.0,)))


def feed(ready, state, plan):
    """One window for each (rpm or None, level); the state and every (measured, notices, transitions)."""
    out = []
    for rpm, level in plan:
        i = state.windower.window_seq
        t = 1e9 + 0.256 * i
        if rpm is not None:
            state = pipeline.operate(state, Operating(rpm, t))
        chunk = Chunk(healthy(256, seed=i, level=level), t=t, seq=i, fs_hz=1000.0)
        state, outcome = pipeline.step_chunk(ready, state, chunk, t + 0.3)
        out.append((outcome.measured[0], outcome.notices, outcome.machine))
    return state, out


def armed(ready, levels=((600.0, 0.4), (1500.0, 0.8))):
    """Commissioned on a machine that changes its speed every 20 windows."""
    state, _ = pipeline.commission(ready, pipeline.initial(ready), "start", 1e9, windows=300)
    for k in range(300):
        state, _ = feed(ready, state, [levels[k % 2]] * 20)
        if not state.commissioning.active:
            break
    assert state.commissioning.phase == "armed", state.commissioning.reason
    return state


def test_each_regime_has_its_own_limit(rms) -> None:
    """What is quiet at the fast speed alarms at the slow one."""
    state = armed(rms)
    slow, fast = (pipeline.limit_of(rms, state, name).value for name in ("below 1000", "1000 and above"))
    assert slow < 0.6 < 0.8 < fast
    _, out = feed(rms, state, [(1500.0, 0.8)] * 20)
    assert not any(transitions for _, _, transitions in out)
    assert {m.regime for m, _, _ in out} == {"1000 and above"}
    _, out = feed(rms, state, [(600.0, 0.8)] * 5)
    assert [t.type for _, _, transitions in out for t in transitions][:1] == ["new"]


def test_an_unknown_regime_abstains_and_says_so_once(rms) -> None:
    """At a speed never learnt a loud machine is scored, not voted on, and told of once; back at a known one it votes."""
    state = armed(rms)
    state, out = feed(rms, state, [(9000.0, 3.0)] * 30)
    assert {m.regime for m, _, _ in out} == {UNKNOWN}
    assert all(m.score is not None and m.ratio is not None for m, _, _ in out)
    assert not any(transitions for _, _, transitions in out)
    told = [n for _, notices, _ in out for n in notices]
    assert [n.extra["notice"]["kind"] for n in told] == ["regime"]
    assert "9000 lies outside" in told[0].extra["notice"]["text"]
    # A short visit to a known regime does not let it be told again.
    state, out = feed(rms, state, [(600.0, 0.4)] * 5 + [(9000.0, 0.4)] * 5)
    assert [n for _, notices, _ in out for n in notices] == []
    state, out = feed(rms, state, [(600.0, 3.0)] * 5)
    assert next(t.type for _, _, transitions in out for t in transitions) == "new"


def test_a_stale_value_is_an_unknown_regime(rms) -> None:
    """When the speed stops coming, nothing is voted on after max_age_s."""
    ready = replace(rms, regime=replace(rms.regime, max_age_s=5.0))
    state = armed(ready)
    state, out = feed(ready, state, [(600.0, 0.4)] + [(None, 0.4)] * 40)
    names = [m.regime for m, _, _ in out]
    assert names[:10] == ["below 1000"] * 10
    assert names[-10:] == [UNKNOWN] * 10
    text = [n.extra["notice"]["text"] for _, notices, _ in out for n in notices]
    assert len(text) == 1
    assert "more than 5 s old" in text[0]


def test_before_commissioning_every_regime_votes_under_the_bundles_limit(rms) -> None:
    """Without limits of their own no regime is unknown: a machine is never left unwatched by a speed topic."""
    _, out = feed(rms, pipeline.initial(rms), [(None, 3.0)] * 3 + [(99.0, 3.0)] * 3)
    assert [m.regime for m, _, _ in out] == [None] * 3 + ["below 1000"] * 3
    assert next(t.type for _, _, transitions in out for t in transitions) == "new"


def test_windows_without_a_speed_are_not_learnt_from(rms) -> None:
    """A commissioning whose speed never comes is refused, and says why."""
    state, _ = pipeline.commission(rms, pipeline.initial(rms), "start", 1e9)
    state, _ = feed(rms, state, [(None, 0.5)] * 40)
    assert state.commissioning.phase == "refused"
    assert "operating value" in state.commissioning.reason


def test_clustered_regimes_have_limits_and_never_abstain(tmp_path: Path) -> None:
    """Without a topic the levels are told apart by the features; what lies far from both still votes."""
    ready = offline.pipeline_for(make_indicator_bundle(tmp_path / "rms"))
    ready = replace(ready, regime=Spec(clusters=2))
    state = armed(ready, ((None, 0.4), (None, 0.8)))
    assert [limit.name for limit in sorted(state.commissioning.baseline.limits, key=lambda r: r.name)] == ["cluster 1", "cluster 2"]
    state = pipeline.load(ready, pipeline.dump(state))
    _, out = feed(ready, state, [(None, 0.4)] * 5 + [(None, 0.8)] * 5)
    assert [m.regime for m, _, _ in out] == ["cluster 1"] * 5 + ["cluster 2"] * 5
    assert not any(transitions for _, _, transitions in out)
    _, out = feed(ready, state, [(None, 3.0)] * 5)
    assert [t.type for _, _, transitions in out for t in transitions][:1] == ["new"]


def test_a_late_value_changes_nothing(rms) -> None:
    """Values that overtake each other on the way are taken in their own order."""
    state = pipeline.operate(pipeline.initial(rms), Operating(5.0, 100.0))
    after = pipeline.operate(state, Operating(6.0, 99.0)).operating
    assert after is not None
    assert (after.value, after.t) == (5.0, 100.0)


def test_the_agent_hears_the_regimes_topic(
    tmp_path: Path, broker: Broker, listen: Callable[..., Listener]
) -> None:
    """Values on the topic name the regime of the windows after them, in rows and scores; a bad one is counted."""
    regime = {"topic": "plant/rpm", "edges": [1000], "max_age_s": 1e6}
    path = write_plant(tmp_path, broker.port, {"a": {"regime": regime}})
    ear = listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        ear.wait("edge/t/s/a/state")
        ear.publish("plant/a", message(0))
        ear.publish("plant/rpm", {"v": 800, "ts": 1_790_000_000})
        ear.publish("plant/rpm", "quick")
        ear.publish("plant/a", message(1))
        ear.publish("plant/rpm", {"v": 1480, "ts": 1_790_000_001})
        ear.publish("plant/a", message(2))
        scores = [json.loads(p) for p in ear.wait("edge/t/s/a/score", 3)]
        health = until(lambda: [h for h in ear.json("edge/t/health") if h["drops"]])[-1]
    assert [s.get("regime") for s in scores] == [None, "below 1000", "1000 and above"]
    assert agent.rows("SELECT regime FROM scores ORDER BY id") == [(None,), ("below 1000",), ("1000 and above",)]
    assert health["drops"] == {"a": {"bad_operating_value": 1}}


def test_one_value_dated_ahead_blinds_nobody() -> None:
    """After a value of next year, and after the clock of plain numbers was set back, the fifth that runs forwards is taken again; a late
    one between fresh ones is not."""
    state = pipeline.operate(PipelineState(windowing.initial(), np.zeros((0, 1), np.float32)), Operating(600.0, 1000.0))
    state = pipeline.operate(state, Operating(900.0, 1000.0 + 365 * 86400.0))
    for i in range(1, 5):
        state = pipeline.operate(state, Operating(600.0, 1000.0 + i))
        assert state.operating is not None
        assert state.operating.value == 900.0
    state = pipeline.operate(state, Operating(600.0, 1005.0))
    assert state.operating == Operating(600.0, 1005.0)
    for i in range(20):
        state = pipeline.operate(state, Operating(700.0, 1006.0 + i))
        state = pipeline.operate(state, Operating(600.0, 1004.0))
        assert state.operating is not None
        assert state.operating.value == 700.0
