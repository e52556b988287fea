"""The whole core: however a stream is cut, stored or batched, the same windows, scores and alarms."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bundles import healthy, make_indicator_bundle
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import alarms, offline, payloads, pipeline, simulate
from edge_agent import bundle as bundles
from edge_agent.alarms import Alarm, AlarmPolicy
from edge_agent.features import Context
from edge_agent.payloads import PayloadLayout
from edge_agent.regimes import Operating
from edge_agent.signals import Chunk

DEMO = Path(__file__).parents[1] / "models" / "demo-lstm-ae"
T0 = 1_790_000_000.0


@pytest.fixture(scope="module")
def rms(tmp_path_factory: pytest.TempPathFactory) -> pipeline.Pipeline:
    """256-point windows every 128 points at 1 kHz; RMS of a history of two; vote 2 of 3."""
    folder = tmp_path_factory.mktemp("bundle") / "rms"
    bundle = make_indicator_bundle(folder, hop=128, context=Context("windows", 2))
    ready = offline.pipeline_for(bundle, policy=AlarmPolicy(vote=(2, 3)))
    return replace(ready, layout=PayloadLayout("f32le", 1, "ts_seq"))


@pytest.fixture(scope="module")
def demo() -> pipeline.Pipeline:
    """The committed int8 LSTM autoencoder."""
    return offline.pipeline_for(bundles.load(DEMO))


def feed(ready, samples, cuts, fs_hz, state=None, first=0):
    """Push samples (n,) cut at the given places; returns the state and everything that came out."""
    state = pipeline.initial(ready) if state is None else state
    measured, transitions = [], []
    edges = [0, *sorted(cuts), len(samples)]
    for seq, (a, b) in enumerate(itertools.pairwise(edges)):
        if a == b:
            continue
        chunk = Chunk(samples[None, a:b], t=T0 + (first + a) / fs_hz, seq=None, fs_hz=fs_hz)
        state, outcome = pipeline.step_chunk(ready, state, chunk, T0 + (first + b) / fs_hz)
        assert outcome.dropped is None, seq
        transitions += [t for _, t in outcome.transitions]
        measured += outcome.measured
    return state, measured, transitions


def same(a, b):
    """Equal windows, scores to the bit, and times to a microsecond (a sum of floats may differ in the last bit)."""
    assert [(m.seq, m.score, m.ratio) for m in a] == [(m.seq, m.score, m.ratio) for m in b]
    assert [m.end for m in a] == pytest.approx([m.end for m in b], abs=1e-6)


@settings(max_examples=60)
@given(data=st.data())
def test_any_cut_of_a_stream_gives_the_same_windows_and_scores(rms, data) -> None:
    """A stream with a loud stretch, cut anywhere, gives the rows and transitions of the whole."""
    x = healthy(4000, seed=5)[0].copy()
    x[1500:2800] *= 3
    # Messages of at least 4 samples: times alone tell chunks apart, and they carry milliseconds.
    cuts = data.draw(st.lists(st.integers(1, 999).map(lambda i: 4 * i), max_size=40, unique=True))
    _, whole, told = feed(rms, x, [], 1000.0)
    _, cut, also_told = feed(rms, x, cuts, 1000.0)
    same(whole, cut)
    assert [(t.type, t.severity) for t in told] == [("new", "warning"), ("update", "alarm"), ("end", "alarm")]
    assert [(t.type, t.state, t.severity) for t in told] == [(t.type, t.state, t.severity) for t in also_told]


@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 8192 * 8 - 1), max_size=12, unique=True))
def test_any_cut_gives_the_same_int8_scores(demo, cuts) -> None:
    """The committed LSTM autoencoder scores eight windows to the bit the same, however they arrive."""
    x = simulate.vibration(
        simulate.demo_machine(), 8192 * 8, simulate.constant(0.3), np.random.default_rng(1)
    )
    cuts = [c for c in cuts if min((abs(c - d) for d in [*cuts, 0, len(x)] if d != c), default=99) >= 40]
    _, whole, _ = feed(demo, x, [], 10240.0)
    _, cut, _ = feed(demo, x, cuts, 10240.0)
    assert len(whole) == 8
    same(whole, cut)


def test_one_window_and_many_are_the_same_call(demo) -> None:
    """Features of a batch equal those of its windows one by one, and so do the scores."""
    x = healthy(8192 * 6, seed=2)[0].reshape(6, 1, 8192)
    judge = demo.judge
    together = judge.features(x)
    for i in range(6):
        np.testing.assert_array_equal(together[i], judge.vectors(x[i]))
    width = judge.features.spec.context.width
    histories = [together[i - width + 1 : i + 1, 0] for i in range(width - 1, 6)]
    scores = [judge.score(h).value for h in histories]
    assert scores == [judge.score(h).value for h in histories], "the LSTM keeps no state between windows"


@settings(max_examples=40)
@given(at=st.integers(1, 3999))
def test_a_stored_state_goes_on_where_it_was(rms, at) -> None:
    """dump and load at any sample of a run with an alarm changes no row, no transition and no identity."""
    x = healthy(4000, seed=5)[0].copy()
    x[1500:2800] *= 3
    at = 4 * (at // 4) or 4
    if at == 4000:
        at = 3996
    _, whole, told = feed(rms, x, [at], 1000.0)
    state, first, early = feed(rms, x[:at], [], 1000.0)
    again = pipeline.load(rms, pipeline.dump(state))
    assert again is not None
    _, rest, late = feed(rms, x[at:], [], 1000.0, again, first=at)
    same(whole, first + rest)
    assert told == early + late


def test_a_state_without_its_tail_keeps_votes_and_history(rms) -> None:
    """What a periodic commit writes brings back alarm, history and window count; only samples are missing."""
    state, _, _ = feed(rms, 3 * healthy(1000, seed=1)[0], [], 1000.0)
    again = pipeline.load(rms, pipeline.dump(state, tail=False))
    assert again.alarm == state.alarm
    assert again.alarm.state == "UNACK"
    np.testing.assert_array_equal(again.history, state.history)
    assert again.windower.window_seq == state.windower.window_seq
    assert len(pipeline.dump(state, tail=False)) < 700 < len(pipeline.dump(state))


@pytest.mark.parametrize(
    "blob", [b"", b"\x00", b"junk" * 9, pipeline.msgspec.msgpack.encode({"version": 99})]
)
def test_a_state_that_is_not_one_is_refused(rms, blob) -> None:
    """Whatever stands in the table, loading gives a state or None, never an exception."""
    assert pipeline.load(rms, blob) is None
    assert pipeline.load_alarm(blob) is None


def test_a_state_of_another_bundle_keeps_what_means_something_there(rms, demo) -> None:
    """A new model starts its history and votes anew; alarm, quality alarm and operating value stay what they were."""
    state, _, _ = feed(rms, 3 * healthy(1000, seed=1)[0], [], 1000.0)
    trouble = replace(state.trouble, episode="q", since=5.0, seen=("stuck",))
    state = replace(state, trouble=trouble, operating=Operating(900.0, 7.0))
    after = pipeline.load(demo, pipeline.dump(state))
    assert after is not None
    assert after.alarm == replace(state.alarm, ratios=(), raise_since=None, return_since=None)
    assert after.alarm.state == "UNACK"
    assert (after.trouble, after.operating) == (trouble, state.operating)
    assert after.history.shape == (0, len(demo.judge.features.names))


@pytest.mark.parametrize(("factor", "events"), [(10.0, []), (1.0, ["new"])])
def test_votes_are_carried_to_another_limit(rms, factor: float, events: list[str]) -> None:
    """Two crossings of three, then a limit ten times as high: the third loud window raises nothing; under the same limit it does."""
    quiet = replace(rms, policy=AlarmPolicy(vote=(3, 3)))

    def send(ready, state, n):
        chunk = Chunk(3.0 * healthy(256, seed=n), t=T0 + 0.256 * n, fs_hz=1000.0, seq=n)
        return pipeline.step_chunk(ready, state, chunk, T0 + 0.256 * n + 0.3)

    state, n, told = pipeline.initial(quiet), 0, []
    while len(state.alarm.ratios) < 2:
        state, outcome = send(quiet, state, n)
        told += outcome.machine
        n += 1
    assert told == []
    other = replace(quiet, threshold=replace(quiet.threshold, value=factor * quiet.threshold.value), policy=AlarmPolicy(vote=(3, 3)))
    state = pipeline.load(other, pipeline.dump(state))
    assert state is not None
    assert all((ratio >= 1.0) == (factor == 1.0) for ratio in state.alarm.ratios)
    state, outcome = send(other, state, n)
    assert [transition.type for transition in outcome.machine] == events


def test_a_shorter_hop_keeps_the_baseline(rms) -> None:
    """A state that stands in the middle of a long hop goes on under a shorter one, with all that was learnt, at the next chunk."""
    sparse = replace(rms, window=replace(rms.window, hop_samples=2560))
    state, _ = pipeline.commission(sparse, pipeline.initial(sparse), "start", T0, windows=60)

    def send(ready, state, n):
        chunk = Chunk(healthy(256, seed=n, level=0.4), t=T0 + 0.256 * n, fs_hz=1000.0, seq=n)
        return pipeline.step_chunk(ready, state, chunk, T0 + 0.256 * n + 0.3)

    n = 0
    while state.commissioning.active:
        state, _ = send(sparse, state, n)
        n += 1
    limit = pipeline.limit_of(sparse, state).value
    assert state.windower.skip > 1024
    dense = replace(rms, window=replace(rms.window, hop_samples=1024))
    state = pipeline.load(dense, pipeline.dump(state))
    assert state.commissioning.phase == "armed"
    assert pipeline.limit_of(dense, state).value == limit
    state, outcome = send(dense, state, n)
    assert len(outcome.measured) == 1


def test_a_pause_longer_than_max_gap_empties_the_history(tmp_path: Path) -> None:
    """With max_gap_s 5 a window after a minute's pause waits for a full history; after a second's it does not."""
    bundle = make_indicator_bundle(tmp_path / "rms", context=Context("windows", 3, 1, 5.0))
    ready = offline.pipeline_for(bundle)
    for pause, waiting in ((1.0, 2), (60.0, 4)):
        state = pipeline.initial(ready)
        rows = []
        for i in range(8):
            t = T0 + i * 0.256 + (pause if i >= 4 else 0.0)
            chunk = Chunk(healthy(256, seed=i), t=t, fs_hz=1000.0)
            state, outcome = pipeline.step_chunk(ready, state, chunk, t + 1)
            rows += outcome.measured
        assert sum(m.score is None for m in rows) == waiting


def test_the_event_is_the_contracts_and_says_why(rms) -> None:
    """Every field of the contract's event, in finite JSON, from a run with an alarm."""
    x = 3 * healthy(2000, seed=1)[0]
    state, measured, told = feed(rms, x, [], 1000.0)
    event = pipeline.event(rms, told[0], measured[2], True)
    text = json.dumps(event, allow_nan=False)
    assert list(json.loads(text)) == [
        "schema", "type", "event_id", "alarm_id", "agent", "sensor", "machine", "ts", "state", "severity", "since",
        "score", "threshold", "ratio", "quality", "limit", "window", "why", "model", "late", "clock_synced",
    ]  # fmt: skip
    assert (event["type"], event["state"], event["window"]["n"]) == ("new", "UNACK", 256)
    assert [w["feature"] for w in event["why"]] == ["rms"]
    assert event["why"][0]["z"] > 10
    assert state.alarm.alarm_id == event["alarm_id"]


def test_messages_that_belong_elsewhere_are_dropped_by_reason(rms) -> None:
    """Sensor id, rate, channels and size are checked before a sample is used."""
    plain = replace(rms, layout=PayloadLayout("json", 1))
    state = pipeline.initial(plain)
    record = replace(rms, layout=PayloadLayout("record_json", 1))
    cases = [
        (plain, b'{"fs": 2000, "v": [1, 2]}', "wrong_rate"),
        (plain, b'{"v": [[1, 2], [3, 4]]}', "wrong_channels"),
        (plain, b'{"v": [1, 1e39]}', "not_finite"),
        (record, b'{"data_time": 1, "signal_value": "1,2", "sensor_id": "other"}', "wrong_sensor"),
        (replace(plain, max_payload_bytes=10), b'{"v": [1, 2, 3, 4]}', "too_large"),
        (plain, b"\xff\xfe", "undecodable"),
    ]
    for ready, payload, reason in cases:
        after, outcome = pipeline.step(ready, state, payload, T0)
        assert outcome.dropped is not None, reason
        assert outcome.dropped.reason == reason
        assert len(outcome.dropped.message) > 20
        # The sender's mistake leaves windows, votes and alarm alone; doubtful data are counted.
        counted = {reason: 1} if reason in ("not_finite", "wrong_rate") else {}
        assert after.trouble.counts == counted
        assert replace(after, trouble=state.trouble) == state
    _, outcome = pipeline.step(plain, state, payloads.encode(Chunk(healthy(300), t=T0), plain.layout), T0)
    assert len(outcome.measured) == 1


def test_an_event_beside_the_alarm_carries_its_own_fields(rms) -> None:
    """What `extra` holds stands in the event, next to the alarm's present state, with no severity of its own."""
    notice = alarms.beside("notice", Alarm(state="ACKED"), "a/s", 1, T0, {"notice": {"kind": "drift", "text": "x"}})
    marked = pipeline.Measured(1, T0, T0 + 1, 1.0, 1.0, 1.0, "suspect", (), ("hum",), "1400 rpm")
    event = pipeline.event(rms, notice, marked, True)
    assert (event["type"], event["state"], event["severity"]) == ("notice", "ACKED", None)
    assert (event["notice"]["kind"], event["reasons"], event["regime"]) == ("drift", ["hum"], "1400 rpm")
    assert pipeline.score_fields(marked)["reasons"] == ["hum"]


def test_a_value_that_no_sensor_gives_is_not_scored(demo) -> None:
    """One exponent bit turned in a healthy window under a network: the score is that of the repaired samples alone, finite and no crossing, also
    where the raw ones would score next to nothing or infinity."""
    with np.load(DEMO / "golden.npz") as golden:
        x = (golden["windows"][0] * np.float32(golden["window_scale"])).astype(np.float32)
    seen: list[float] = []
    length = x.shape[1] / demo.window.fs_hz

    def scored(samples: np.ndarray) -> pipeline.Measured:
        """The last of a full history, the others whole."""
        state, n = pipeline.initial(watched), demo.judge.features.spec.context.width
        for i in range(n):
            chunk = Chunk(samples if i == n - 1 else x, t=T0 + i * length, fs_hz=demo.window.fs_hz, seq=i)
            state, outcome = pipeline.step_chunk(watched, state, chunk, T0 + (i + 1) * length)
        return outcome.measured[0]

    def model(patches: np.ndarray):
        seen.append(float(np.abs(patches).max()))
        return demo.judge.model(patches)

    watched = replace(demo, judge=replace(demo.judge, model=model))
    whole = scored(x)
    turned = x.copy()
    k = int(np.argmin(np.abs(np.abs(turned[0]) - 0.5 * np.abs(turned[0]).max())))
    turned[0, k] = 1e38
    broken = scored(turned)
    assert broken.reasons == ("spikes",)
    assert broken.ratio == pytest.approx(whole.ratio, rel=0.2)
    assert len(seen) == 2, "the raw samples are not asked"
