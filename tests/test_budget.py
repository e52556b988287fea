"""A number of false alarms is promised only where the scores carry it, and then it holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from agents import Agent, message, write_plant
from bundles import make_indicator_bundle
from conftest import Broker, Listener
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from benchmarks import budget as judged
from edge_agent import alarms, assemble, budget
from edge_agent import bundle as bundles
from edge_agent.alarms import Alarm, AlarmPolicy
from edge_agent.budget import Budget
from edge_agent.cli import main
from edge_agent.config import load
from edge_agent.errors import ConfigError

POLICY = AlarmPolicy()


def folded(ratios: np.ndarray, policy: AlarmPolicy, hop_s: float) -> list[int]:
    """Windows at which the alarm engine itself, step by step, says `new` or raises again."""
    alarm, found = Alarm(), []
    for i, ratio in enumerate(ratios):
        was = alarm.condition
        alarm, _ = alarms.step(alarm, policy, float(ratio), (i + 1) * hop_s, "t/a")
        if alarm.condition and not was:
            found.append(i)
    return found


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([0.5, 0.5, 0.5, 0.85, 0.95, 1.2]), max_size=120),
    st.integers(1, 7).flatmap(lambda n: st.tuples(st.integers(1, n), st.just(n))),
    st.sampled_from([0.0, 10.0, 25.0]),
    st.sampled_from([0.0, 10.0, 35.0]),
)
def test_onsets_are_those_of_the_alarm_engine(
    ratios: list[float], vote: tuple[int, int], on: float, off: float
) -> None:
    """The fast count of onsets agrees with the engine folded over the same windows, for any vote and delays."""
    policy = AlarmPolicy(vote=vote, on_delay_s=on, off_delay_s=off)
    fast = budget.onsets(np.array(ratios), 1.0, 1.0 - policy.deadband, policy, 10.0)
    assert fast.tolist() == folded(np.array(ratios), policy, 10.0)


@pytest.mark.parametrize(
    ("text", "per_s"), [("1 per 30 d", 30 * 86400.0), ("2 per d", 43200.0), ("1 in 90 min", 5400.0), ("0.5 per 12 h", 86400.0)]
)
def test_a_budget_is_read_as_written(text: str, per_s: float) -> None:
    """Budgets in s, min, h and d are seconds an event, and are told in the largest unit."""
    assert budget.parse(text).per_s == pytest.approx(per_s)
    assert budget.parse(str(budget.parse(text))).per_s == pytest.approx(per_s, rel=0.01)


@pytest.mark.parametrize("text", ["", "1 per", "never", "0 per d", "-1 per d", "1 per 5 weeks", "1 per 1 s"])
def test_what_is_no_budget_is_refused(text: str) -> None:
    """Anything else is refused with an example, also times that are far too short."""
    with pytest.raises(ValueError, match="1 per"):
        budget.parse(text)


@pytest.mark.parametrize(("kind", "correlation"), [("gamma", 0.0), ("gamma", 0.6), ("log-normal", 0.3)])
def test_a_promise_holds_on_windows_never_seen(kind: str, correlation: float) -> None:
    """From 14 h of windows a week's promise is given, and over 115 days of fresh ones the events are within 3 times it."""
    record = judged.process(kind, 5000, correlation, np.random.default_rng(3))
    wanted = budget.parse("1 per 5 d")
    promise = budget.fit(record, 10.0, POLICY, wanted)
    assert promise.promised == wanted
    fresh = judged.process(kind, 1_000_000, correlation, np.random.default_rng(4))
    limit = promise.threshold.value
    events = budget.onsets(fresh, limit, limit * (1.0 - POLICY.deadband), POLICY, 10.0).size
    assert 1 / 3 <= events / (1e7 / wanted.per_s) <= 3


def test_too_little_data_is_said_plainly() -> None:
    """500 windows do not support one event in a year; the sentence says what they do support."""
    record = judged.process("log-normal", 500, 0.6, np.random.default_rng(5))
    promise = budget.fit(record, 10.0, POLICY, budget.parse("1 per 365 d"))
    assert promise.promised is None or promise.promised.per_s < 365 * 86400.0
    assert promise.statement is not None
    assert promise.statement.startswith("500 windows (1.39 h) cannot support 1 per 365 d; ")
    assert promise.threshold.warning == promise.statement


def test_bursts_and_regimes_are_not_taken_for_noise() -> None:
    """Where scores come in bursts or in two regimes, nothing near a month is promised from 14 h of them."""
    for kind in ("bursts", "two regimes"):
        record = judged.process(kind, 5000, 0.0, np.random.default_rng(6))
        promise = budget.fit(record, 10.0, POLICY, judged.MONTH)
        assert promise.promised is None or promise.promised.per_s <= 2 * 86400.0, kind


def test_a_rarer_budget_has_a_higher_limit() -> None:
    """The limit rises as the budget gets tighter, and the same scores always give the same limit."""
    record = judged.process("gamma", 3000, 0.3, np.random.default_rng(7))
    limits = [budget.fit(record, 10.0, POLICY, Budget(d * 86400.0)).threshold.value for d in (0.1, 1, 7, 30)]
    assert limits == sorted(limits)
    assert limits[0] < limits[-1]
    assert limits[1] == budget.fit(record, 10.0, POLICY, Budget(86400.0)).threshold.value


def test_the_warning_ratio_is_part_of_the_limit() -> None:
    """With warning_ratio 2 the threshold is half as high: the crossing stays where the budget wants it."""
    record = judged.process("gamma", 2000, 0.0, np.random.default_rng(8))
    day = Budget(86400.0)
    plain = budget.fit(record, 10.0, POLICY, day).threshold.value
    double = budget.fit(record, 10.0, AlarmPolicy(warning_ratio=2.0, alarm_ratio=3.0), day).threshold.value
    assert double == pytest.approx(plain / 2.0)


def test_a_budget_shorter_than_a_window_is_refused() -> None:
    """Ten-minute windows cannot keep a budget of one event in five minutes: refused with both figures."""
    record = judged.process("gamma", 200, 0.0, np.random.default_rng(9))
    with pytest.raises(ValueError, match="10 min and a budget of 1 per 5 min"):
        budget.fit(record, 600.0, POLICY, budget.parse("1 per 5 min"))


@settings(max_examples=15)
@given(st.integers(10, 300), st.floats(0.05, 3.0), st.integers(0, 10**6))
def test_any_healthy_scores_give_a_limit_above_most_of_them(n: int, sigma: float, seed: int) -> None:
    """Whatever the spread and however few the scores, the limit is finite and above their median."""
    record = np.exp(sigma * np.random.default_rng(seed).standard_normal(n))
    promise = budget.fit(record, 60.0, POLICY, budget.parse("1 per 1 d"))
    assert np.isfinite(promise.threshold.value)
    assert promise.threshold.value > np.median(record)


def test_an_unkept_budget_errs_towards_silence() -> None:
    """Few windows: the limit lies above that of the best estimate, and never below the one that acted before."""
    record = judged.process("gamma", 60, 0.0, np.random.default_rng(3))
    month = budget.parse("1 per 30 d")
    few = budget.fit(record, 600.0, POLICY, month)
    assert few.promised != month
    kept = budget.fit(judged.process("gamma", 5000, 0.0, np.random.default_rng(3)), 600.0, POLICY, month)
    assert kept.promised == month
    assert few.threshold.value > 1.1 * kept.threshold.value
    assert budget.fit(record, 600.0, POLICY, month, floor=1e3).threshold.value == 1e3
    with_floor = budget.fit(judged.process("gamma", 5000, 0.0, np.random.default_rng(3)), 600.0, POLICY, month, floor=1e3)
    assert with_floor.threshold.value == kept.threshold.value, "a budget that is kept sets the limit alone"


def test_configured_budget_acts_and_is_told(broker: Broker, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`false_alarms` sets the limit; check prints what the scores support, events say what was promised."""
    path = write_plant(tmp_path, broker.port, {"a": {"false_alarms": "1 per 300 d"}})
    assert main(["check", "-c", str(path)]) == 0
    assert "cannot support 1 per 300 d" in capsys.readouterr().err
    ready = assemble.assemble(load(path))["a"]
    assert ready.threshold.value >= bundles.load(tmp_path / "rms").threshold.value
    ear = Listener(broker.port, "edge/#")
    with Agent(path):
        ear.wait("edge/t/status")  # what is sent before it listens is heard by nobody
        for seq in range(8):
            ear.publish("plant/a", message(seq, 3.0))
        ear.wait("edge/t/s/a/event")
    event = ear.json("edge/t/s/a/event")[0]
    told = event["limit"]["false_alarms"]
    assert told == budget.told(ready.threshold)
    assert told["wanted"] == "1 per 300 d"
    assert told["promised"] != told["wanted"]
    assert json.loads(ear.on("edge/t/info")[0])["sensors"]["a"]["false_alarms"] == told
    ear.close()


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_the_evidence_of_bursts_is_a_likelihood_ratio(rho: float) -> None:
    """It is the ratio of two multivariate normal densities (scipy), with a raised box and without, averaged over boxes."""
    n, rng = 40, np.random.default_rng(5)
    covariance = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    z = rng.multivariate_normal(np.zeros(n), covariance)
    density = multivariate_normal(np.zeros(n), covariance)
    expected = 0.0
    for begin in range(1, n - max(budget._BURSTS)):
        ratios = []
        for length in budget._BURSTS:
            box = np.zeros(n)
            box[begin : begin + length] = 1.0
            ratios += [math.exp(density.logpdf(z - h * box) - density.logpdf(z)) for h in budget._BURST_HEIGHTS]
        expected += math.log1p(budget._BURST_SHARE * float(np.mean(ratios)))
    innovations = (z[1:] - rho * z[:-1]) / math.sqrt(1.0 - rho * rho)
    found = budget._burst_evidence(innovations[None], np.array([rho]))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bursts_that_seldom_stand_out_are_told_from_chance() -> None:
    """Bursts 1.5 to 3 times as loud: most records of 14 h show them as bursts; of plain ones about one in thirty seems to."""

    def share(kind: str) -> float:
        told = []
        for i in range(30):
            record = judged.process(kind, 5000, 0.3, np.random.default_rng([11, i]))
            z = budget.normal_scores(record)
            coefficients = budget.autoregression(z)
            drawn = budget.simulate(coefficients, 100 * 5000, np.random.default_rng(i)).reshape(100, 5000)
            own, others = (budget.together(x, coefficients)["in bursts"] for x in (z[None], drawn))
            told.append(float(np.mean(others >= own)) <= budget.CHANCES["in bursts"])
        return float(np.mean(told))

    assert share(judged.FAINT) > 0.6
    assert share("gamma") < 0.15


def test_budget_and_threshold_exclude_each_other(tmp_path: Path) -> None:
    """A sensor with both is a mistake that names the key; so is a budget that cannot be read."""
    make_indicator_bundle(tmp_path / "rms")
    path = write_plant(tmp_path, 1883, {"a": {"false_alarms": "1 per 30 d", "threshold": {"method": "pot"}}})
    with pytest.raises(ConfigError, match=r"sensors\.a\.false_alarms"):
        load(path)
    path = write_plant(tmp_path, 1883, {"a": {"false_alarms": "seldom"}})
    with pytest.raises(ConfigError, match="such as 1 per 30 d"):
        load(path)


@pytest.mark.parametrize(
    ("default", "own"), [({"threshold": {"value": 3.0}}, {"false_alarms": "1 per 30 d"}), ({"false_alarms": "1 per 30 d"}, {"threshold": {"value": 3.0}})]
)
def test_a_sensor_may_go_the_other_way_than_the_defaults(tmp_path: Path, default: dict[str, object], own: dict[str, object]) -> None:
    """A threshold for all and a budget for one, or the reverse: what the sensor says takes the place of what the defaults say."""
    make_indicator_bundle(tmp_path / "rms")
    config = load(write_plant(tmp_path, 1883, {"a": own, "b": {}}, defaults=default))
    a, b = (config.sensors[name] for name in "ab")
    assert (a.false_alarms is None) != (b.false_alarms is None)
    assert (a.threshold is None) != (b.threshold is None)


def test_calibration_times_travel_in_the_bundle(tmp_path: Path) -> None:
    """Starts ten minutes apart are an interval of 600 s; a bundle without times has none."""
    plain = make_indicator_bundle(tmp_path / "plain")
    assert plain.interval_s is None
    timed = make_indicator_bundle(tmp_path / "timed", starts=600.0 * np.arange(200))
    assert timed.interval_s == 600.0
