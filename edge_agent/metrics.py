"""The agent's figures for Prometheus, on an HTTP port of the loopback.

    Daemon.vitals() ─► families(): one text line a figure ─► GET /metrics

prometheus-client is imported only where `metrics.port` is set: an agent without it starts no faster and no slower. A figure
that is not known (a clock of which nobody can say whether it is right) has no line; it is never 0 instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from edge_agent.config import MetricsConfig

log = logging.getLogger(__name__)

#: name -> (help, key of the vitals): one value of the whole agent. A name that ends in _total counts up for ever.
SINGLE = {
    "uptime_seconds": ("Seconds since the agent's start", "uptime_s"),
    "resident_bytes": ("Resident memory of the agent", "rss_bytes"),
    "broker_connected": ("1 while the broker has accepted the agent", "connected"),
    "worker_idle_seconds": ("Seconds since the worker last went round; more than a few: it hangs", "idle_s"),
    "busy_seconds_total": ("Seconds that the worker spent on messages", "busy_s"),
    "signal_seconds_total": ("Seconds of signal that were scored", "signal_s"),
    "outbox_rows": ("Events that the broker has not acknowledged", "outbox_rows"),
    "outbox_oldest_seconds": ("Age of the oldest of them", "outbox_oldest_s"),
    "store_trouble": ("1 while the database cannot be written", "store_trouble"),
    "buffer_hours": ("Hours for which events and scores still find room", "buffer_hours"),
    "scores_shed_total": ("Scores that were lost because the disk stalled", "shed_scores"),
    "scores_trimmed_total": ("Scores that were deleted because the disk was full", "trimmed_scores"),
    "database_bytes": ("Size of the database with its journal", "database_bytes"),
    "written_bytes_per_day": ("What the agent writes to its disks, by its rate since the start", "bytes_written_per_day"),
    "clock_synced": ("1 while the clock is synchronised; no line: nobody can say", "clock_synced"),
    "sensors_refused": ("Sensors of the configuration that are not run", "refused_sensors"),
}
#: The same of one sensor: key is a mapping of sensor -> value.
BY_SENSOR = {
    "windows_total": ("Windows that got a row", "windows"),
    "gaps_total": ("Gaps in the signal", "gaps"),
    "queued_messages": ("Messages that wait to be scored", "queues"),
    "message_age_seconds": ("Seconds since the last message", "heard_s"),
    "score_ratio": ("The last score over its limit; 1 is the limit", "ratios"),
}
#: And of one sensor by another label: sensor -> {value of the label -> value}.
BY_LABEL = {
    "messages_dropped_total": ("Messages that were dropped", "drops", "reason"),
    "quality_windows_total": ("Windows whose samples are in doubt", "quality", "reason"),
    "sensor_status": ("1 for the status that a sensor has", "statuses", "status"),
    "alarm_state": ("1 for the state that a sensor's alarm has", "alarms", "state"),
}
PREFIX = "edge_agent_"

#: (name, help, type, label names, [(label values, value)])
Family = tuple[str, str, str, tuple[str, ...], Sequence[tuple[tuple[str, ...], float]]]


def families(vitals: Mapping[str, Any]) -> Iterable[Family]:
    """Vitals -> metric families, in the order of the tables; those without a value are left out."""
    named = str(vitals["agent"]), str(vitals["version"])
    yield PREFIX + "info", "The agent and its version", "gauge", ("agent", "version"), [(named, 1.0)]
    for name, (text, key) in SINGLE.items():
        value = _number(vitals.get(key))
        if value is not None:
            yield PREFIX + name, text, _kind(name), (), [((), value)]
    for name, (text, key) in BY_SENSOR.items():
        numbers = ((sensor, _number(value)) for sensor, value in vitals.get(key, {}).items())
        rows = [((sensor,), n) for sensor, n in numbers if n is not None]
        if rows:
            yield PREFIX + name, text, _kind(name), ("sensor",), rows
    for name, (text, key, label) in BY_LABEL.items():
        found = vitals.get(key, {}).items()
        pairs = [((sensor, of), float(value)) for sensor, values in found for of, value in values.items()]
        if pairs:
            yield PREFIX + name, text, _kind(name), ("sensor", label), pairs


def _kind(name: str) -> str:
    return "counter" if name.endswith("_total") else "gauge"


def _number(value: Any) -> float | None:
    """What a figure is as a number: a text or list counts by whether, or how much, there is of it."""
    if isinstance(value, list):
        return float(len(value))
    return None if value is None else float(value)


class Exporter:
    """Answers GET /metrics from `start` to `stop`."""

    def __init__(self, config: MetricsConfig, vitals: Callable[[], Mapping[str, Any]]) -> None:
        self._config, self._vitals = config, vitals
        self._server: Any = None

    @property
    def port(self) -> int | None:
        """Where it listens; None while it does not."""
        return None if self._server is None else int(self._server.server_port)

    def start(self) -> bool:
        """Listen; False, with a line in the log, where that cannot be: no figure is worth an agent."""
        if self._config.port is None:
            return False
        where = f"{self._config.bind}:{self._config.port}"
        try:
            from prometheus_client import start_http_server
            from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
            from prometheus_client.registry import CollectorRegistry
        except ImportError as error:
            log.error("no metrics on %s: %s; install prometheus-client, or take metrics out of the configuration", where, error)
            return False
        vitals = self._vitals

        class Collector:
            def collect(self) -> Iterable[Any]:
                for name, text, kind, labels, rows in families(vitals()):
                    make = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
                    family = make(name, text, labels=labels)
                    for values, value in rows:
                        family.add_metric(values, value)
                    yield family

        registry = CollectorRegistry()
        registry.register(Collector())
        try:
            self._server, _ = start_http_server(self._config.port, self._config.bind, registry)
        except OSError as error:
            log.error("no metrics on %s: %s; choose another metrics.port or metrics.bind", where, error.strerror or error)
            return False
        log.info("metrics on http://%s:%d/metrics", self._config.bind, self.port)
        return True

    def stop(self) -> None:
        """End it."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
