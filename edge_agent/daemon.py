"""The agent as it runs on the device: threads, signals, health, watchdog.

    network thread ─► Inbox ─► worker ─► Keeper (store thread) ─► SQLite, broker
    main thread: signals, reload, health, systemd; feeds the watchdog only while the worker makes progress

`run` is what `edge-agent run` calls; `Daemon` is the same without signals, for the demo and for tests.
"""

from __future__ import annotations

import errno
import logging
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import msgspec

from edge_agent import __version__, budget, host, salvage, store, what_if
from edge_agent.assemble import assemble, load, shadows, usable
from edge_agent.config import Config
from edge_agent.errors import ConfigError, EdgeAgentError, StoreError
from edge_agent.inbox import Bucket, Inbox, OperatingValue
from edge_agent.keeper import Keeper
from edge_agent.metrics import Exporter
from edge_agent.pipeline import Pipeline
from edge_agent.signals import rfc3339
from edge_agent.transport import MqttTransport, Transport
from edge_agent.worker import BACKLOG_S, CAUGHT_UP_S, Sensor, Tally, Worker, recall

log = logging.getLogger(__name__)

#: Longest time a clean stop may take to work off what waits.
DRAIN_S = 8.0
#: The network thread waits so long at most for room in a sensor's queue: at a time, well below the keep-alive of the connection, and in
#: all after a connect. A backlog is worked off by then or nearly; a flood never is, and must not hold up others and commands.
ROOM_S, ROOM_ALL_S = 5.0, 10.0
#: What a reload looks back on.
WHAT_IF_S = 30 * 86400.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Daemon:
    """One running agent.

    start() → tick() about once a second until it returns False → stop(). The clocks are arguments:
    `clock` is the receipt clock (s since 1970), `monotonic` measures durations.
    """

    def __init__(
        self,
        config: Config,
        pipelines: dict[str, Pipeline],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        reloader: Callable[[], tuple[Config, dict[str, Pipeline]]] | None = None,
    ) -> None:
        """Sensors of `config` without a pipeline are not run: their status is `fault` until a reload mends it."""
        self._refused = tuple(name for name in config.sensors if name not in pipelines)
        config = replace(config, sensors={name: config.sensors[name] for name in pipelines})
        self.config, self._pipelines = config, pipelines
        self._clock, self._monotonic, self._reloader = clock, monotonic, reloader
        self._base = config.mqtt.base
        self._tally = Tally()
        self.inbox = Inbox(config.sensors)
        self._routes = _routes(config)
        self._regimes = _regimes(config)
        self._buckets = _buckets(config, {})
        self._commands = f"{self._base}/cmd/"
        self._reload: list[Callable[[bool, str], None]] = []
        self._health_due = False
        self._behind_since: float | None = None  # monotonic, of the connection whose backlog still comes
        self._waited: dict[str, float] = {}  # s that this connection was held up by each sensor
        self._transport: Transport
        self._keeper: Keeper
        self._claim: IO[bytes]
        self.worker: Worker
        self.metrics = Exporter(config.metrics, self.vitals)

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Claim and open the database, bring every sensor's state back, start the threads, begin to connect.

        Raises StoreError where the database cannot be used, or another agent uses it. The broker may be
        absent.
        """
        # Two agents on one database would overwrite each other's states and, with one client id between
        # them, throw each other off the broker for ever.
        self._claim = store.lock(self.config.database)
        try:
            self._start()
        except BaseException:
            self._claim.close()
            raise

    def _start(self) -> None:
        config = self.config
        begun = salvage.begin(config.database, self._base, self._clock())
        # On a disk that may only be read the states are still there.
        database = begun.store or salvage.peek(config.database)
        try:
            client_id = config.mqtt.client_id or _client_id(config)
        except StoreError:
            if database is not None:
                database.close()
            raise
        transport = MqttTransport(
            config.mqtt,
            client_id,
            on_message=self._on_message,
            on_connected=self._on_connected,
            on_disconnected=lambda: self._keeper.disconnected(),
            on_acknowledged=lambda token, ok: self._keeper.acknowledged(token, ok),
            status_topic=f"{self._base}/status",
        )
        self._transport = transport
        now, t = self._monotonic(), self._clock()
        sensors = [recall(database, config.sensors[name], built, t, now) for name, built in self._pipelines.items()]
        there = {*config.sensors, *self._refused}
        disabled = () if database is None else tuple(name for name in database.sensors() if name not in there)
        if database is not None and begun.store is None:
            database.close()
        states = {sensor.config.id: sensor.state for sensor in sensors}
        self._keeper = Keeper(
            begun,
            config.database,
            self._base,
            transport,
            states,
            self._clock,
            self._monotonic,
            config.storage,
            one_each=config.mqtt.require_subscriber,
        )
        self.worker = Worker(
            self._base,
            sensors,
            self.inbox,
            self._keeper,
            transport,
            self._tally,
            clock=self._clock,
            monotonic=self._monotonic,
            on_reload=self.request_reload,
            disabled=disabled,
        )
        self.worker.set_shadows(_shadows(config))
        for sensor in sensors:
            self._keeper.announce(sensor.config.id, self.worker.state_message(sensor))
        self._started = self._reported = now
        self._written = host.written_bytes()
        self._keeper.start()
        self.worker.start()
        self.metrics.start()
        transport.subscribe(self._subscriptions())
        transport.start()
        log.info(
            "edge-agent %s: agent %s, %d sensor%s",
            __version__,
            config.agent_id,
            len(sensors),
            "" if len(sensors) == 1 else "s",
        )
        if slow := host.slow_networks():
            log.warning("%s", slow)
        self._tell_cautions({})

    def _tell_cautions(self, before: dict[str, Pipeline]) -> None:
        """What can be promised of the false alarms that the configuration allows, for each sensor that has a budget; and what
        of its settings will surprise. Not of a sensor that was told the same before. Where a commissioned limit acts, that is what is
        told of, and that a new one of the configuration does not."""
        for name, ready in self._pipelines.items():
            if name in before and (before[name].caution, before[name].threshold) == (ready.caution, ready.threshold):
                continue
            acting = self.worker.sensors[name].state.commissioning.acting if name in self.worker.sensors else None
            if acting is not None and name in before and before[name].threshold != ready.threshold:
                log.warning(
                    "sensor %s: its commissioned limit acts on, whatever threshold or false_alarms say now: commission it again, or "
                    "roll back (edge-agent commission %s --rollback)", name, name,
                )  # fmt: skip
            if ready.caution and acting is None:
                log.warning("sensor %s: %s", name, ready.caution)
            limit = ready.threshold if acting is None else acting.threshold
            told = budget.told(limit)
            if told is None:
                continue
            if told["promised"] == told["wanted"]:
                log.info("sensor %s: false alarms: %s is kept", name, told["wanted"])
            else:
                log.warning("sensor %s: false alarms: %s", name, limit.warning)

    def tick(self) -> bool:
        """The main thread's round: reload, health, is everybody alive. False: give up and be restarted."""
        if self._reload:
            self._reload_now()
        if not self.worker.alive() or not self._keeper.alive():
            log.critical(
                "a thread of the agent has ended; stopping with an error so that it is started again"
            )
            return False
        self._keeper.watch()
        now = self._monotonic()
        if self._health_due or now - self._reported >= self.config.health_every_s:
            self._health_due = False
            self._transport.publish(f"{self._base}/health", self._health(now - self._reported), retain=True)
            self._reported = now
        return True

    def stop(self) -> None:
        """Work off what waits, write every state with its window tail, say `stopped`, disconnect."""
        self._transport.pause()
        self.metrics.stop()
        if not self.worker.drain(DRAIN_S):
            log.warning("%d messages were still waiting and are lost", sum(self.inbox.depths().values()))
        self._keeper.stop({name: sensor.state for name, sensor in self.worker.sensors.items()})
        self._transport.stop()
        self._claim.close()
        log.info("stopped")

    def progressing(self, within_s: float) -> bool:
        """Whether the worker has gone round (idle counts) within this time: what the watchdog stands for."""
        return self.worker.alive() and self._monotonic() - self.worker.heartbeat < within_s

    def request_reload(self, answer: Callable[[bool, str], None] = lambda _ok, _message: None) -> None:
        """Have the next `tick` read the configuration again."""
        self._reload.append(answer)

    # ---------------------------------------------------------------- paho's thread: only enqueues

    def _catching_up(self) -> bool:
        """Whether what the broker has kept for us still comes. Brokers send all of it at once, whatever was asked for, so then the network
        thread waits for the worker, and what does not fit here stays in the broker. At other times a flood of one
        sensor must not hold up the others."""
        if self._behind_since is None:
            return False
        since_s = self._monotonic() - self._behind_since
        if since_s > BACKLOG_S or (since_s > CAUGHT_UP_S and self.inbox.empty()):
            self._behind_since = None
        return self._behind_since is not None

    def _on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic.startswith(self._commands):
            if retained:
                log.warning("retained command on %s ignored: publish commands without retain", topic)
            elif not self.inbox.call(lambda: self.worker.command(topic[len(self._commands) :], payload)):
                log.warning("command on %s dropped: too many wait", topic)
            return
        catching_up = self._catching_up()
        for sensor in self._regimes.get(topic, ()):
            if retained:
                self.worker.dropped(sensor, "retained", "a retained operating value is old by an unknown time")
            else:
                self._enqueue(sensor, OperatingValue(payload), catching_up)
        sensors = self._routes.get(topic)
        if sensors is None and topic in self._regimes:
            return
        if sensors is None:
            # The broker's session outlives the configuration that asked for this topic.
            self._transport.unsubscribe(topic)
            return
        for sensor in sensors:
            if retained:
                self.worker.dropped(
                    sensor, "retained", "a retained message is old by an unknown time; publish without retain"
                )
            elif (bucket := self._buckets.get(sensor)) is not None and not bucket.take(self._monotonic()):
                self.worker.dropped(
                    sensor,
                    "rate_limited",
                    f"more than max_messages_per_s ({bucket.rate:g}) for longer than a burst; is the sensor well?",
                )
            else:
                self._enqueue(sensor, payload, catching_up)

    def _enqueue(self, sensor: str, payload: bytes, catching_up: bool) -> None:
        left_s = ROOM_ALL_S - self._waited.get(sensor, 0.0)
        if catching_up and left_s > 0.0:
            began = self._monotonic()
            self.inbox.wait_for_room(sensor, min(ROOM_S, left_s))
            self._waited[sensor] = self._waited.get(sensor, 0.0) + self._monotonic() - began
        if evicted := self.inbox.put(sensor, payload, self._clock()):
            self.worker.dropped(sensor, "overflow", "messages come faster than they can be scored; the oldest go", evicted)

    def _on_connected(self) -> None:
        self._behind_since, self._waited = self._monotonic(), {}
        self._transport.publish(f"{self._base}/info", self._info(), qos=1, retain=True)
        for name in self._refused:
            self._transport.publish(f"{self._base}/s/{name}/status", b"fault", qos=1, retain=True)
        self._keeper.connected()
        self.inbox.call(self.worker.republish)
        self._health_due = True

    def _subscriptions(self) -> list[str]:
        return [*self._routes, *(topic for topic in self._regimes if topic not in self._routes), f"{self._commands}+"]

    # ---------------------------------------------------------------- reload, health, info

    def _reload_now(self) -> None:
        asked, self._reload = self._reload, []
        host.notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            config, pipelines = self._reloader() if self._reloader else (self.config, self._pipelines)
        except Exception as error:
            # Whatever a file or a bundle does to its reader: what runs goes on.
            unforeseen = None if isinstance(error, EdgeAgentError) else error
            log.error("reload refused, the old configuration goes on: %s", error, exc_info=unforeseen)
            outcome = False, f"refused, the old configuration goes on: {error}"
        else:
            outcome = self._take_over(config, pipelines)
        host.notify("READY=1")
        for answer in asked:
            answer(*outcome)

    def _take_over(self, config: Config, pipelines: dict[str, Pipeline]) -> tuple[bool, str]:
        """Have the worker run these from now on; (whether it does, what is to be said)."""
        old, before = self.config, self._pipelines
        fixed = all(getattr(old, what) == getattr(config, what) for what in ("agent_id", "mqtt", "database", "metrics"))
        try:
            recalled = self._recalled(config, pipelines)
        except StoreError as error:
            # Begun anew, a sensor's alarm on record would be written over.
            log.error("reload refused, the old configuration goes on: %s", error)
            return False, f"refused, the old configuration goes on: {error}; reload again once the database can be read"
        # Both old and new sensors are known while the worker changes over.
        self.inbox.watch([*old.sensors, *config.sensors])
        said: list[str] = []
        beside = _shadows(config)

        def take_over() -> None:
            changes = self.worker.replace_sensors(config.sensors, pipelines, recalled)
            self.worker.set_shadows(beside)
            said.append(changes)

        deadline = time.monotonic() + DRAIN_S
        while not (called := self.inbox.call(take_over)) and self.worker.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        if not called:
            self.inbox.watch(old.sensors)
            log.error("reload refused: too many commands wait")
            return False, "refused, the old configuration goes on: too many commands wait; ask again"
        while not said and self.worker.alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.config, self._pipelines, self._refused = config, pipelines, ()
        self.inbox.watch(config.sensors)
        self._routes, self._regimes = _routes(config), _regimes(config)
        self._buckets = _buckets(config, self._buckets)
        self._transport.subscribe(self._subscriptions())
        self._transport.publish(f"{self._base}/info", self._info(), qos=1, retain=True)
        note = "" if fixed else "; changes of agent, mqtt, metrics and database take effect with a restart"
        outcome = f"reloaded: {said[0] if said else 'the worker is busy and takes over soon'}{note}"
        log.info("%s", outcome)
        self._tell_cautions(before)
        self._tell_what_if(before, pipelines)
        return True, outcome

    def _recalled(self, config: Config, pipelines: dict[str, Pipeline]) -> dict[str, Sensor]:
        """Sensors that do not run yet, as they stand on record: one whose bundle was mended, or that was there some time ago. Raises
        StoreError where the record cannot be read."""
        names = [name for name in pipelines if name not in self.worker.sensors]
        # A connection of its own: the store thread's is not ours.
        database = salvage.peek(self.config.database, live=True) if names else None
        t, now = self._clock(), self._monotonic()
        try:
            return {name: recall(database, config.sensors[name], pipelines[name], t, now) for name in names}
        finally:
            if database is not None:
                database.close()

    def _tell_what_if(self, before: dict[str, Pipeline], now: dict[str, Pipeline]) -> None:
        """Log what the new settings would have told of the last 30 days, for the sensors whose alarm or limit changed.

        In a thread of its own: on a small board a month of rows takes seconds.
        """
        changed = {
            name: new
            for name, new in now.items()
            if (old := before.get(name)) is not None
            and (old.policy, old.threshold.value) != (new.policy, new.threshold.value)
        }
        if not changed:
            return
        path, since = self.config.database, rfc3339(self._clock() - WHAT_IF_S)

        def tell() -> None:
            try:
                for answer in what_if.ask(path, changed, since, against=before):
                    log.info("what if, the last 30 days: %s", answer.summary())
            except StoreError as error:
                log.warning("what if: nothing can be said: %s", error)
            except Exception:  # the agent goes on whatever becomes of this
                log.exception("what if: failed")

        threading.Thread(target=tell, name="what-if", daemon=True).start()

    def _health(self, since_s: float) -> bytes:
        work = self.worker.take_work()
        # Seconds of signal scored per second of work: 10 means a load of 10 %.
        factor = round(work.signal_s / work.busy_s, 2) if work.signal_s and work.busy_s else None
        load = round(work.busy_s / since_s, 4) if since_s > 0 else None
        figures = self._figures(real_time_factor=factor, load=load)
        return msgspec.json.encode({"schema": 1, "ts": rfc3339(self._clock()), **figures})

    def _figures(self, **since: float | None) -> dict[str, Any]:
        """What `health` and the metrics both tell; `since`: what health alone tells, of the time since the last one."""
        t, stats, sensors = self._clock(), self._keeper.stats, dict(self.worker.sensors)
        return {
            "uptime_s": round(self._monotonic() - self._started, 1),
            "rss_bytes": host.rss_bytes(),
            "queues": self.inbox.depths(),
            "drops": self._tally.counts(),
            "gaps": {name: sensor.gaps for name, sensor in sensors.items() if sensor.gaps},
            "quality": {
                name: sensor.state.trouble.counts for name, sensor in sensors.items() if sensor.state.trouble.counts
            },
            "windows": {name: sensor.windows for name, sensor in sensors.items()},
            "outbox_rows": stats.outbox_rows,
            "outbox_oldest_s": None
            if stats.outbox_oldest_t is None
            else round(max(0.0, t - stats.outbox_oldest_t), 1),
            **since,
            "shed_scores": stats.shed_scores,
            "trimmed_scores": stats.trimmed_scores,
            "store_trouble": stats.trouble,
            "store_set_aside": stats.set_aside,
            "store_checked": stats.checked,
            "buffer_hours": stats.buffer_hours,
            "bytes_written_per_day": self._written_per_day(),
            "refused_sensors": list(self._refused),
            "clock_synced": host.clock_synced(),
        }

    def vitals(self) -> dict[str, Any]:
        """What the metrics tell, of any thread: the figures of `health`, and how each sensor and the worker stand."""
        now, work, sensors = self._monotonic(), self.worker.worked(), dict(self.worker.sensors)
        figures = self._figures()
        last = {name: sensor.state.last for name, sensor in sensors.items()}
        return {
            **figures,
            "gaps": {name: sensor.gaps for name, sensor in sensors.items()},
            "agent": self.config.agent_id,
            "version": __version__,
            "connected": self._transport.connected,
            "idle_s": max(0.0, now - self.worker.heartbeat),
            "busy_s": work.busy_s,
            "signal_s": work.signal_s,
            "store_trouble": figures["store_trouble"] is not None,
            "database_bytes": host.database_bytes(self.config.database),
            "heard_s": {name: max(0.0, now - sensor.heard) for name, sensor in sensors.items()},
            "statuses": {name: {sensor.status: 1} for name, sensor in sensors.items() if sensor.status is not None},
            "alarms": {name: {sensor.state.alarm.state: 1} for name, sensor in sensors.items()},
            "ratios": {name: measured.ratio for name, measured in last.items() if measured is not None},
        }

    def _written_per_day(self) -> int | None:
        """What this process writes to its disks, by its rate since the start; None in the first minute."""
        now, s = host.written_bytes(), self._monotonic() - self._started
        if now is None or self._written is None or s < 60.0:
            return None
        return round((now - self._written) / s * 86400.0)

    def _info(self) -> bytes:
        config = self.config
        return msgspec.json.encode(
            {
                "schema": 1,
                "agent": config.agent_id,
                "version": __version__,
                "config_sha256": config.sha256,
                "sensors": {
                    name: {
                        "topic": sensor.topic,
                        "machine": sensor.machine,
                        "fs_hz": sensor.fs_hz,
                        "unit": sensor.unit,
                        "window": {
                            "n": self._pipelines[name].window.n_samples,
                            "hop": self._pipelines[name].window.hop_samples,
                        },
                        "threshold": self._pipelines[name].threshold.value,
                        "false_alarms": budget.told(self._pipelines[name].threshold),
                        "bundle": self._pipelines[name].identity.bundle,
                        "version": self._pipelines[name].identity.version,
                        "sha256": self._pipelines[name].identity.sha256,
                    }
                    for name, sensor in config.sensors.items()
                },
            }
        )


def _routes(config: Config) -> dict[str, tuple[str, ...]]:
    """Topic -> the sensors that listen to it."""
    routes: dict[str, tuple[str, ...]] = {}
    for sensor in config.sensors.values():
        routes[sensor.topic] = (*routes.get(sensor.topic, ()), sensor.id)
    return routes


def _regimes(config: Config) -> dict[str, tuple[str, ...]]:
    """Topic of an operating value -> the sensors whose regime it tells."""
    routes: dict[str, tuple[str, ...]] = {}
    for sensor in config.sensors.values():
        if sensor.regime_topic is not None:
            routes[sensor.regime_topic] = (*routes.get(sensor.regime_topic, ()), sensor.id)
    return routes


def _buckets(config: Config, old: dict[str, Bucket]) -> dict[str, Bucket]:
    """One for each sensor with a limit; one whose rate stays the same goes on as it is."""
    rates = {name: sensor.max_messages_per_s for name, sensor in config.sensors.items()}
    return {
        name: kept if (kept := old.get(name)) is not None and kept.rate == rate else Bucket(rate)
        for name, rate in rates.items()
        if rate is not None
    }


def _shadows(config: Config) -> dict[str, Pipeline]:
    """What is to be scored beside; whatever is wrong there costs that run only."""
    try:
        pipelines, problems = shadows(config)
    except Exception:
        log.exception("bundles to be scored beside cannot be loaded; what is live goes on")
        return {}
    for name, found in problems.items():
        for problem in found:
            log.error("%s: no bundle is scored beside: %s", name, problem)
    return pipelines


def _client_id(config: Config) -> str:
    """The agent's id and 6 characters, the same at every start: the broker knows its session by it."""
    path = config.database.with_name(config.database.name + ".client-id")
    fresh = f"{config.agent_id}-{secrets.token_hex(3)}"
    try:
        if path.exists():
            known = path.read_text(encoding="ascii").strip()
            if known.startswith(f"{config.agent_id}-") and len(known) == len(config.agent_id) + 7:
                return known
        path.write_text(fresh + "\n", encoding="ascii")
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.ENOSPC):
            log.error("%s: cannot be kept (%s); %s is used for this run", path, error.strerror, fresh)
            return fresh
        raise StoreError(
            f"{path}: the client id cannot be kept ({error}): the agent's user must be able to write beside "
            "the database, or set mqtt.client_id"
        ) from error
    return fresh


def run(config_path: Path) -> int:
    """`edge-agent run`: 0 after a clean stop, 78 bad configuration, 1 anything else.

    SIGTERM and SIGINT stop, SIGHUP reloads; a bad new configuration is logged and the old one kept.
    """
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    # Blocked in every thread and fetched by the main one: no handler ever interrupts anything.
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        return _run(config_path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 78
    except EdgeAgentError as error:
        print(f"edge-agent: {error}", file=sys.stderr)
        return 1
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def _run(config_path: Path) -> int:
    def read() -> tuple[Config, dict[str, Pipeline]]:
        config = load(config_path)
        return config, assemble(config)

    config = load(config_path)
    pipelines, problems = usable(config)
    if not pipelines:
        raise ConfigError(str(config.path), [p for found in problems.values() for p in found])
    for name, found in problems.items():
        for problem in found:
            log.error("%s is not run, the other sensors are: %s: %s", name, config.path, problem)
    daemon = Daemon(config, pipelines, reloader=read)
    daemon.start()
    host.notify("READY=1")
    watchdog = host.watchdog_s()
    period = min(1.0, watchdog / 4.0) if watchdog else 1.0
    code = 0
    while True:
        caught = signal.sigtimedwait(_SIGNALS, period)
        if caught is not None and caught.si_signo in (signal.SIGTERM, signal.SIGINT):
            break
        if caught is not None:
            daemon.request_reload()
        if not daemon.tick():
            code = 1
            break
        if watchdog and daemon.progressing(watchdog / 2.0):
            host.notify("WATCHDOG=1")
    host.notify("STOPPING=1")
    daemon.stop()
    return code
