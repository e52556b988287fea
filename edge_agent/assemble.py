"""Configuration and bundles in, one ready `Pipeline` a sensor out; every mistake of both at once."""

from __future__ import annotations

from pathlib import Path

from edge_agent import alarms, budget, drift, installed, thresholds
from edge_agent import bundle as bundles
from edge_agent.budget import Budget
from edge_agent.bundle import Bundle
from edge_agent.config import Config, SensorConfig, ThresholdOverride, WindowOverride
from edge_agent.config import load as load_config
from edge_agent.errors import BundleError, ConfigError, Problem
from edge_agent.pipeline import Identity, Pipeline
from edge_agent.signing import Verifier
from edge_agent.thresholds import Threshold
from edge_agent.windowing import WindowSpec

#: Rate of a re-fit where neither the configuration nor the bundle names one.
DEFAULT_RATE = 1e-3
#: A fault that must last longer before anybody is told is as good as never told, and so is its end.
LONGEST_TURN_S = 30 * 86400.0


def load(path: Path) -> Config:
    """The configuration; where it has mistakes, those of the readable sensors' bundles are told with them."""
    try:
        return load_config(path)
    except ConfigError as error:
        cache: dict[tuple[Path, str | None], Bundle | BundleError] = {}
        problems = list(error.problems)
        for sensor in error.readable:
            if isinstance(sensor, SensorConfig):
                built = _pipeline("", sensor, cache)
                problems += [] if isinstance(built, Pipeline) else built
        raise ConfigError(error.path, problems) from None


def assemble(config: Config) -> dict[str, Pipeline]:
    """A pipeline for every sensor, in the order of the file; one ConfigError with the problems of all."""
    pipelines, problems = usable(config)
    if problems:
        raise ConfigError(str(config.path), [p for found in problems.values() for p in found])
    return pipelines


def usable(config: Config) -> tuple[dict[str, Pipeline], dict[str, list[Problem]]]:
    """Pipelines of the sensors whose bundle can be used, and what is wrong with the others.

    A bundle is loaded once however many sensors use it (once per machine where it knows machines
    apart): its model serves one thread.
    """
    cache: dict[tuple[Path, str | None], Bundle | BundleError] = {}
    pipelines: dict[str, Pipeline] = {}
    problems: dict[str, list[Problem]] = {}
    for sensor in config.sensors.values():
        built = _pipeline(config.agent_id, sensor, cache)
        if isinstance(built, Pipeline):
            pipelines[sensor.id] = built
        else:
            problems[sensor.id] = built
    return pipelines, problems


def shadows(config: Config) -> tuple[dict[str, Pipeline], dict[str, list[Problem]]]:
    """Pipelines of the bundles that are scored beside, and what is wrong with those that cannot be; nothing is shared with
    the live ones."""
    pipelines: dict[str, Pipeline] = {}
    problems: dict[str, list[Problem]] = {}
    for sensor in config.sensors.values():
        path = installed.shadow_of(sensor)
        if path is None:
            continue
        built = _pipeline(config.agent_id, sensor, {}, path)
        if isinstance(built, Pipeline):
            pipelines[sensor.id] = built
        else:
            problems[sensor.id] = built
    return pipelines, problems


def check(path: Path) -> tuple[Problem, ...]:
    """Every mistake of a configuration file and of the bundles it names; empty where all is well."""
    try:
        assemble(load(path))
    except ConfigError as error:
        return error.problems
    return ()


def candidate(config: Config, sensor: str, path: Path) -> Pipeline:
    """The sensor's pipeline with the bundle in `path` in place of its own; raises BundleError where it cannot use it."""
    built = _pipeline(config.agent_id, config.sensors[sensor], {}, path)
    if isinstance(built, Pipeline):
        return built
    raise BundleError("\n".join(str(problem) for problem in built))


def _pipeline(
    agent_id: str,
    sensor: SensorConfig,
    cache: dict[tuple[Path, str | None], Bundle | BundleError],
    instead: Path | None = None,
) -> Pipeline | list[Problem]:
    where, model = f"sensors.{sensor.id}", instead or installed.model_of(sensor)
    try:
        bundle = _load(sensor, model, cache)
    except BundleError as error:
        return [Problem(f"{where}.model", str(model), f"a bundle this agent can use; {error}")]
    problems: list[Problem] = []
    spec = bundle.manifest.features
    if not bundles.same_rate(spec.fs_hz, sensor.fs_hz):
        problems.append(
            Problem(
                f"{where}.fs_hz",
                f"{sensor.fs_hz:g}",
                f"{spec.fs_hz:g}, the rate {bundle.path} was trained for",
            )
        )
    if spec.n_channels != len(sensor.channels):
        plural = "" if spec.n_channels == 1 else "s"
        problems.append(
            Problem(
                f"{where}.channels",
                str(list(sensor.channels)),
                f"{spec.n_channels} channel{plural}, the number {bundle.path} was trained for",
            )
        )
    if sensor.unit is not None and bundle.manifest.unit is not None and sensor.unit != bundle.manifest.unit:
        problems.append(
            Problem(
                f"{where}.unit",
                repr(sensor.unit),
                f"{bundle.manifest.unit!r}, in which {bundle.path} was trained",
            )
        )
    window = _window(where, sensor, bundle, problems)
    problems += _never(where, sensor, bundle, window)
    threshold, source = _threshold(where, sensor.threshold, bundle, problems)
    if sensor.false_alarms is not None:
        threshold, source = _budgeted(where, sensor, sensor.false_alarms, bundle, window, problems)
    if problems:
        return problems
    return Pipeline(
        identity=Identity(
            agent=agent_id,
            sensor=sensor.id,
            machine=sensor.machine,
            bundle=bundle.manifest.name,
            version=bundle.manifest.version,
            sha256=bundle.sha256,
            limit_source=source,
        ),
        layout=sensor.layout,
        channels=sensor.channels,
        window=window,
        judge=bundle.judge,
        threshold=threshold,
        policy=sensor.policy,
        max_payload_bytes=sensor.max_payload_bytes,
        regime=sensor.regime,
        reference=drift.reference(bundle.calibration),
        budget_s=None if sensor.false_alarms is None else sensor.false_alarms.per_s,
        caution=_stays(sensor, bundle, threshold),
    )


def _load(sensor: SensorConfig, model: Path, cache: dict[tuple[Path, str | None], Bundle | BundleError]) -> Bundle:
    # Where the bundle knows no machines apart, all sensors share one model in memory.
    verifier = None if sensor.public_key is None else Verifier(sensor.public_key)
    machine = sensor.machine if sensor.machine in bundles.read_manifest(model, verifier).classes else None
    key = model, machine
    if key not in cache:
        try:
            cache[key] = bundles.load(model, machine, verifier=verifier)
        except BundleError as error:
            cache[key] = error
    found = cache[key]
    if isinstance(found, BundleError):
        raise found
    return found


def _window(where: str, sensor: SensorConfig, bundle: Bundle, problems: list[Problem]) -> WindowSpec:
    """The bundle's window with the sensor's hop; another length would change every feature."""
    spec, given = bundle.manifest.features, sensor.window or WindowOverride()
    n = spec.n_samples
    if given.n_samples not in (None, n):
        problems.append(
            Problem(
                f"{where}.window.n_samples",
                str(given.n_samples),
                f"{n}, the length {bundle.path} was trained for; only the hop is free",
            )
        )
    # Half a sample: a duration is written in decimals.
    if given.duration_s is not None and abs(given.duration_s * spec.fs_hz - n) > 0.5 + 1e-3 * n:
        problems.append(
            Problem(
                f"{where}.window.duration_s",
                f"{given.duration_s:g}",
                f"{n / spec.fs_hz:.10g} ({n} samples), the length {bundle.path} was trained for; only the hop is free",
            )
        )
    hop = given.hop_samples or spec.hop_samples
    if given.hop_s is not None:
        hop = max(1, round(given.hop_s * sensor.fs_hz))
    return WindowSpec(sensor.fs_hz, n, hop, len(sensor.channels), sensor.silent_after_s)


def _never(where: str, sensor: SensorConfig, bundle: Bundle, window: WindowSpec) -> list[Problem]:
    """Settings that are sound each by itself and together can raise no alarm, or end none."""
    problems: list[Problem] = []
    hop_s, (k, n) = window.hop_samples / window.fs_hz, sensor.policy.vote
    for turn, windows, key in (("the first crossing to the alarm", k, "on_delay_s"), ("the last crossing to the return", n, "off_delay_s")):
        turn_s = (windows - 1) * hop_s + (delay_s := getattr(sensor.policy, key))
        if turn_s > LONGEST_TURN_S:
            problems.append(
                Problem(
                    f"{where}.alarm",
                    f"vote [{k}, {n}] at a window every {hop_s:g} s and {key} {delay_s:g}: {turn_s / 86400.0:.3g} days",
                    f"at most {LONGEST_TURN_S / 86400.0:g} days from {turn}; lower vote, {key} or window.hop_s",
                )
            )
            break
    context, pause_s = bundle.manifest.features.context, (window.hop_samples - window.n_samples) / window.fs_hz
    if context.over == "windows" and context.width > 1 and context.max_gap_s is not None and pause_s > context.max_gap_s:
        problems.append(
            Problem(
                f"{where}.window.hop_s",
                f"{hop_s:g}",
                f"at most {context.max_gap_s + window.n_samples / window.fs_hz:g}: {bundle.path} scores {context.width} windows "
                f"together that lie at most {context.max_gap_s:g} s apart, so none would ever be scored",
            )
        )
    return problems


def _stays(sensor: SensorConfig, bundle: Bundle, threshold: Threshold) -> str:
    """That an alarm would not end by itself once the machine is healthy again, and the mend; empty where it would."""
    found = alarms.stays((bundle.calibration / threshold.value).tolist(), sensor.policy)
    if found is None:
        return ""
    share, deadband = found
    return (
        f"an alarm by the bundle's limit will not end by itself: {100.0 * share:.0f} % of the healthy windows of {bundle.path} score at or above "
        f"{alarms.return_ratio(sensor.policy):.3g} of the limit, below which alarm.deadband {sensor.policy.deadband:g} has the last "
        f"{sensor.policy.vote[1]} lie; "
        + (f"set sensors.{sensor.id}.alarm.deadband to {deadband:g}" if deadband else f"set a higher sensors.{sensor.id}.threshold")
    )


def _budgeted(
    where: str, sensor: SensorConfig, wanted: Budget, bundle: Bundle, window: WindowSpec, problems: list[Problem]
) -> tuple[Threshold, str]:
    """The limit that keeps the number of false alarms which the configuration allows."""
    # What the calibration windows say of each other holds for windows as far apart as they were.
    hop_s = bundle.interval_s or window.hop_samples / window.fs_hz
    try:
        promise = budget.fit(bundle.calibration, hop_s, sensor.policy, wanted, floor=bundle.threshold.value)
        return promise.threshold, "config"
    except ValueError as error:
        problems.append(Problem(f"{where}.false_alarms", str(wanted), f"a budget {bundle.path} can carry: {error}"))
        return bundle.threshold, "bundle"


def _threshold(
    where: str, given: ThresholdOverride | None, bundle: Bundle, problems: list[Problem]
) -> tuple[Threshold, str]:
    """The limit and where it comes from; fitted again only where the configuration asks for another."""
    own = bundle.threshold
    if given is None:
        return own, "bundle"
    if given.value is not None:
        return Threshold(given.value, "value"), "config"
    method = given.method or (own.method if own.method in thresholds.METHODS else "gamma")
    rate = given.false_alarm_rate or own.false_alarm_rate or DEFAULT_RATE
    if (method, rate) == (own.method, own.false_alarm_rate):
        return own, "bundle"
    try:
        return thresholds.fit(bundle.calibration, method, rate), "config"
    except ValueError as error:
        problems.append(
            Problem(
                f"{where}.threshold", f"{method} at {rate:g}", f"a limit {bundle.path} can carry: {error}"
            )
        )
        return own, "bundle"
