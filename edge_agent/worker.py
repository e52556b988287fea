"""The one thread that scores: message → pipeline → rows, events, state; and a person's commands.

    Inbox ─► Worker ─┬─ scores (QoS 0) and sensor status ─────────► broker
                     └─ rows, events, state, answers ─► Keeper ─► SQLite ─► broker

One interpreter serves one thread, so all that touches a pipeline happens here. A bad message costs the
message; a bug in one sensor's pipeline costs that sensor (status `fault`), never the others.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from edge_agent import commands, commissioning, host, pipeline, regimes, trouble
from edge_agent.alarms import MACHINE, NOTICE, Alarm, Refused, Transition
from edge_agent.commands import Command, Unusable
from edge_agent.config import SensorConfig
from edge_agent.inbox import Inbox, OperatingValue
from edge_agent.keeper import Answer, Keeper
from edge_agent.pipeline import Measured, Pipeline, PipelineState
from edge_agent.signals import rfc3339
from edge_agent.store import EventRow, ShadowRow, Store
from edge_agent.transport import Transport
from edge_agent.windowing import WindowerState

log = logging.getLogger(__name__)

#: Messages dropped in a row until the status says bad_data.
BAD_IN_A_ROW = 3
#: The retained state is refreshed at most this often.
STATE_EVERY_S = 60.0
TICK_S = 0.25
#: The clock has been set where it leaves the monotonic one by more than this between two looks; less is drift and slewing.
STEP_S = 1.0
#: A quarantined sensor is tried again after this, and each time it fails after twice as long, up to a day.
QUARANTINE_S, QUARANTINE_MAX_S = 600.0, 86400.0
#: A message may have waited so long since it was received.
WAITED_S = 60.0
#: Messages of a sensor that wait, beyond which no bundle is scored beside: the live one goes first.
SHADOW_BACKLOG = 32
#: So long after a connect what the broker has kept is on its way; and so long it is waited for while more of it waits here.
CAUGHT_UP_S, BACKLOG_S = 3.0, 600.0
#: Answers kept, so that a command delivered twice is carried out once.
REMEMBERED_ANSWERS = 64


class Tally:
    """Dropped messages by sensor and reason; counted by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}

    def add(self, sensor: str, reason: str, n: int = 1) -> bool:
        """Count; returns whether this is the first of its kind, which is the one to log."""
        with self._lock:
            counts = self._counts.setdefault(sensor, Counter())
            counts[reason] += n
            return counts[reason] == n

    def counts(self) -> dict[str, dict[str, int]]:
        """A copy."""
        with self._lock:
            return {sensor: dict(counts) for sensor, counts in self._counts.items()}


@dataclass
class Sensor:
    """What changes of one sensor while the agent runs; touched by the worker only.

    heard    : monotonic time of the last message
    faults   : how often its pipeline has failed without holding for long in between
    again_at : monotonic time at which a quarantined one is tried again; of the last trial where it runs
    kept     : end of a shelving that was given before this start, as it was on record; None for one of this run
    """

    config: SensorConfig
    pipeline: Pipeline
    state: PipelineState
    heard: float
    status: str | None = None
    bad_run: int = 0
    fault: bool = False
    faults: int = 0
    again_at: float = float("-inf")
    announced: float = float("-inf")
    last_event_id: str | None = None
    kept: float | None = None
    windows: int = 0
    gaps: int = 0


@dataclass
class Shadow:
    """A bundle that is scored beside a sensor's own, on the same messages; nothing of it leaves the device."""

    pipeline: Pipeline
    state: PipelineState
    skipped: int = 0

    @property
    def label(self) -> str:
        """NAME/VERSION"""
        return f"{self.pipeline.identity.bundle}/{self.pipeline.identity.version}"


@dataclass
class Work:
    """How much the worker did."""

    signal_s: float = 0.0
    busy_s: float = 0.0


class Worker:
    """Runs in its own thread from `start` to `stop`; `sensors` may be looked at, not changed, by others."""

    def __init__(
        self,
        base: str,
        sensors: Iterable[Sensor],
        inbox: Inbox,
        keeper: Keeper,
        transport: Transport,
        tally: Tally,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        on_reload: Callable[[Callable[[bool, str], None]], None],
        disabled: Iterable[str] = (),
    ) -> None:
        """disabled: sensors on record that the configuration no longer has"""
        self._base = base
        self.sensors = {sensor.config.id: sensor for sensor in sensors}
        self._disabled: dict[str, Sensor | None] = dict.fromkeys(disabled)
        self._inbox, self._keeper, self._transport, self._tally = inbox, keeper, transport, tally
        self._clock, self._monotonic, self._on_reload = clock, monotonic, on_reload
        self.heartbeat = monotonic()
        self.crashed: BaseException | None = None
        self._work, self._taken = Work(), Work()
        self._answers: OrderedDict[Command, Answer] = OrderedDict()
        self.shadows: dict[str, Shadow] = {}
        self._draining = threading.Event()
        self._ahead = clock() - monotonic()
        self._set_by, self._set_at = 0.0, float("-inf")
        self._ticked = float("-inf")
        self._linked = monotonic()
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    # ---------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def drain(self, timeout_s: float) -> bool:
        """Work off what waits, then end; returns whether that was done within the time."""
        self._draining.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def alive(self) -> bool:
        """False after a bug ended the thread."""
        return self._thread.is_alive()

    def take_work(self) -> Work:
        """What was done since the last call."""
        before, self._taken = self._taken, self.worked()
        return Work(self._taken.signal_s - before.signal_s, self._taken.busy_s - before.busy_s)

    def worked(self) -> Work:
        """What was done since the start."""
        return replace(self._work)

    # ---------------------------------------------------------------- the loop

    def _run(self) -> None:
        try:
            for sensor in self.sensors.values():
                self._tell_exchange(sensor)
            while True:
                self.heartbeat = self._monotonic()
                item = self._inbox.take(TICK_S)
                self._watch_clock()
                if item is None:
                    if self._draining.is_set():
                        return
                elif callable(item):
                    item()
                else:
                    self._message(*item)
                if self.heartbeat - self._ticked >= TICK_S:
                    self._ticked = self.heartbeat
                    self._tick()
        except BaseException as error:
            self.crashed = error
            log.critical("the worker ended by a bug", exc_info=True)
            raise

    def _message(self, name: str, payload: bytes, received: float) -> None:
        sensor = self.sensors.get(name)
        if sensor is None or sensor.fault:
            return
        received = self._by_this_clock(received)
        if isinstance(payload, OperatingValue):
            self._operate(sensor, payload, received)
            return
        began = self._monotonic()
        sensor.heard = began
        before = sensor.state.windower
        try:
            sensor.state, outcome = pipeline.step(sensor.pipeline, sensor.state, payload, received)
            self._tell(sensor, outcome, received)
        except Exception as error:  # noqa: BLE001 - a bug here must not stop the other sensors
            self._quarantine(sensor, error)
        if name in self.shadows:
            self._beside(sensor, self.shadows[name], before, payload, received)
        self._work.busy_s += self._monotonic() - began

    # ---------------------------------------------------------------- bundles beside

    def set_shadows(self, pipelines: Mapping[str, Pipeline]) -> None:
        """What to score beside, by sensor (in the worker's thread, or before it starts); what runs already goes on."""
        old, self.shadows = self.shadows, {}
        for name, built in pipelines.items():
            was = old.get(name)
            if was is not None and was.pipeline.identity == built.identity and was.pipeline.window == built.window:
                self.shadows[name] = replace(was, pipeline=built)
            else:
                self.shadows[name] = Shadow(built, pipeline.initial(built))
                log.info("%s: %s is scored beside, without alarms", name, self.shadows[name].label)

    def _beside(
        self, sensor: Sensor, shadow: Shadow, before: WindowerState, payload: bytes, received: float
    ) -> None:
        """One message through the other bundle, after all that is live was told; a failure ends that run only.

        before : the live windower as it was before this message
        """
        name = sensor.config.id
        try:
            if self._inbox.depths().get(name, 0) > SHADOW_BACKLOG:
                shadow.skipped += 1
                if shadow.skipped == 1:
                    log.warning("%s: messages wait; %s is not scored beside until they are worked off", name, shadow.label)
                return
            state = replace(shadow.state, operating=sensor.state.operating)
            if shadow.pipeline.window == sensor.pipeline.window:
                # Cut where the live windows are cut, also after a start in mid-stream: else no two could be compared.
                state = replace(state, windower=before)
            shadow.state, outcome = pipeline.step(shadow.pipeline, state, payload, received)
            told = {i: tr.type for i, tr in outcome.transitions if tr.type in MACHINE}
            self._keeper.put_shadow(
                ShadowRow(name, m.end, shadow.label, m.score, m.threshold, m.ratio, told.get(i))
                for i, m in enumerate(outcome.measured)
            )
        except Exception as error:
            del self.shadows[name]
            log.error(
                "%s: %s, scored beside, failed (%s: %s) and is stopped; the sensor's own bundle goes on",
                name, shadow.label, type(error).__name__, error, exc_info=error,
            )  # fmt: skip

    def _tell(self, sensor: Sensor, outcome: pipeline.Outcome, received: float) -> None:
        name = sensor.config.id
        if outcome.dropped is not None:
            self.dropped(name, outcome.dropped.reason, outcome.dropped.message)
            sensor.bad_run += 1
            if sensor.bad_run >= BAD_IN_A_ROW or sensor.state.trouble.episode is not None:
                self._set_status(sensor, "bad_data")
        else:
            sensor.bad_run = 0
            self._set_status(sensor, _running(sensor.state))
        sensor.gaps += outcome.gap_s is not None
        if not outcome.measured and not outcome.transitions:
            return
        window = sensor.pipeline.window
        self._work.signal_s += len(outcome.measured) * min(window.hop_samples, window.n_samples) / window.fs_hz
        sensor.windows += len(outcome.measured)
        for measured in outcome.measured:
            self._transport.publish(self._topic(name, "score"), _score(measured))
        rows = tuple(
            self._event(sensor, tr, None if i is None else outcome.measured[i]) for i, tr in outcome.transitions
        )
        self._hand_over(sensor, received, outcome.measured, rows)

    def _operate(self, sensor: Sensor, payload: bytes, received: float) -> None:
        try:
            operating = regimes.parse(payload, received)
        except ValueError as error:
            self.dropped(sensor.config.id, "bad_operating_value", f"{sensor.config.regime_topic}: {error}")
            return
        sensor.state = pipeline.operate(sensor.state, operating)

    def _hand_over(
        self,
        sensor: Sensor,
        t: float,
        measured: tuple[Measured, ...] = (),
        events: tuple[EventRow, ...] = (),
        answers: tuple[Answer, ...] = (),
    ) -> None:
        now = self._monotonic()
        announce = None
        if events or now - sensor.announced >= STATE_EVERY_S:
            sensor.announced = now
            announce = self.state_message(sensor)
        self._keeper.put(
            sensor.config.id,
            sensor.state,
            t,
            measured=measured,
            events=events,
            announce=announce,
            answers=answers,
        )

    def _event(self, sensor: Sensor, transition: Transition, measured: Measured | None) -> EventRow:
        name = sensor.config.id
        payload = pipeline.event(sensor.pipeline, transition, measured, bool(host.clock_synced()), sensor.state)
        row = EventRow(transition, self._topic(name, "event"), msgspec.json.encode(payload).decode())
        if transition.type == NOTICE and transition.extra is not None:
            notice = transition.extra["notice"]
            log.info("%s: notice of %s: %s", name, notice["kind"], notice["text"])
            return row
        if transition.type not in MACHINE:
            alarm = (transition.extra or {})["quality_alarm"]
            log.warning("%s: data quality %s: %s", name, "alarm" if alarm["active"] else "is good again, it was", ", ".join(alarm["reasons"]))
            return row
        sensor.last_event_id = transition.event_id
        log.log(
            # Somebody should look at what began or grew, not at an all-clear or a quiet sensor's shelving.
            logging.INFO if transition.type == "end" or transition.severity is None else logging.WARNING,
            "%s: %s%s, %s%s",
            name,
            transition.state,
            "" if transition.severity is None else f" {transition.severity}",
            transition.type,
            f", ratio {measured.ratio:.3g}" if measured is not None and measured.ratio is not None else "",
        )
        return row

    def _quarantine(self, sensor: Sensor, error: Exception) -> None:
        now = self._monotonic()
        sensor.faults = 0 if now - sensor.again_at > QUARANTINE_MAX_S else sensor.faults
        wait_s = min(QUARANTINE_MAX_S, QUARANTINE_S * 2.0**sensor.faults)
        sensor.fault, sensor.faults, sensor.again_at = True, sensor.faults + 1, now + wait_s
        log.error(
            "%s: its pipeline failed (%s: %s) and is stopped; the other sensors go on. It is tried again in %g s; once the cause "
            "is mended a reload does so at once (kill -HUP, or the command reload)",
            sensor.config.id,
            type(error).__name__,
            error,
            wait_s,
            exc_info=error,
        )
        self._set_status(sensor, "fault")

    def _try_again(self, sensor: Sensor, now: float) -> None:
        """End a quarantine whose time is over: alarm, votes and what was learnt stay, the samples that it failed on do not."""
        sensor.fault, sensor.heard = False, now
        sensor.state = pipeline.without_samples(sensor.state)
        log.warning("%s: its pipeline is tried again after a failure", sensor.config.id)

    def dropped(self, sensor: str, reason: str, message: str, n: int = 1) -> None:
        """Count dropped messages, of any thread; the first of each sensor and reason is logged."""
        if self._tally.add(sensor, reason, n):
            log.warning("%s: message dropped (%s; counted from now on without a line): %s", sensor, reason, message)

    # ---------------------------------------------------------------- time

    def _watch_clock(self) -> None:
        """Notice that somebody has set the clock: a board without a battery starts in the past, and time servers step it."""
        now = self._monotonic()
        ahead = self._clock() - now
        by, self._ahead = ahead - self._ahead, ahead
        if abs(by) < STEP_S:
            return
        self._set_by, self._set_at = by, now
        log.warning("the clock was set by %+.1f s; windows, delays and shelvings go on as they were", by)
        for sensor in self.sensors.values():
            sensor.state = pipeline.clock_set(sensor.state, by, sensor.kept)
            self._hand_over(sensor, self._clock())
        for out in filter(None, self._disabled.values()):
            out.state = pipeline.clock_set(out.state, by, out.kept)
        for shadow in self.shadows.values():
            shadow.state = pipeline.clock_set(shadow.state, by)

    def _by_this_clock(self, received: float) -> float:
        """A receipt time that was taken before the clock was set, as the clock would have told it now."""
        age = self._clock() - received
        waited = self._monotonic() - self._set_at < WAITED_S
        return received + self._set_by if waited and abs(age - self._set_by) < abs(age) else received

    def _tick(self) -> None:
        now, t = self._monotonic(), self._clock()
        for sensor in self.sensors.values():
            if sensor.fault and now >= sensor.again_at:
                self._try_again(sensor, now)
            if not sensor.fault and sensor.status != "silent" and now - sensor.heard > sensor.config.silent_after_s:
                self._set_status(sensor, "silent")
                if sensor.state.last is not None:
                    # What is retained is refreshed once a minute at most: now it tells what came last.
                    sensor.announced = float("-inf")
                    self._hand_over(sensor, t)
            if self._may_be_behind(sensor, now):
                continue
            state, transition = pipeline.expire(sensor.pipeline, sensor.state, t)
            if transition is not None:
                sensor.state = state
                self._hand_over(sensor, t, events=(self._event(sensor, transition, state.last),))

    def _may_be_behind(self, sensor: Sensor, now: float) -> bool:
        """Whether windows from the time of its shelving may still come, as after a start or a cut: they belong to it."""
        until, last = sensor.state.alarm.shelved_until, sensor.state.last
        if until is None or (last is not None and last.end >= until):
            return False
        linked_s = now - self._linked
        if not self._transport.connected or linked_s < CAUGHT_UP_S:
            return True
        return linked_s < BACKLOG_S and self._inbox.depths().get(sensor.config.id, 0) > 0

    def _set_status(self, sensor: Sensor, status: str) -> None:
        if status != sensor.status:
            level = logging.INFO if status in ("online", "learning") else logging.WARNING
            if sensor.status is not None or status != "online":
                log.log(level, "%s: %s", sensor.config.id, status)
            sensor.status = status
            self.publish_status(sensor.config.id, status)

    def publish_status(self, name: str, status: str) -> None:
        """The retained status of one sensor."""
        self._transport.publish(self._topic(name, "status"), status.encode(), qos=1, retain=True)

    def republish(self) -> None:
        """After a connect: every status that is known (the keeper sends the states)."""
        self._linked = self._monotonic()
        for name, sensor in self.sensors.items():
            if sensor.status is not None:
                self.publish_status(name, sensor.status)
        for name in self._disabled:
            self.publish_status(name, "disabled")

    def state_message(self, sensor: Sensor) -> Answer:
        """The retained state: an event's fields without `type`, about now."""
        alarm, last = sensor.state.alarm, sensor.state.last
        t = last.end if last is not None else self._clock()
        stand_in = Transition("", "", "", t, alarm.state, "", t)
        fields: dict[str, Any] = pipeline.event(
            sensor.pipeline, stand_in, last, bool(host.clock_synced()), sensor.state
        )
        del fields["type"]
        fields |= {
            "event_id": sensor.last_event_id,
            "alarm_id": alarm.alarm_id,
            "severity": alarm.severity,
            "since": None if alarm.since is None else rfc3339(alarm.since),
            "shelved_until": None if alarm.shelved_until is None else rfc3339(alarm.shelved_until),
            "acked_by": alarm.acked_by,
            "ack_why": alarm.ack_why,
            "commissioning": pipeline.commissioning_fields(sensor.state),
            "quality_alarm": trouble.fields(sensor.state.trouble),
        }
        return self._topic(sensor.config.id, "state"), msgspec.json.encode(fields)

    # ---------------------------------------------------------------- commands

    def command(self, name: str, payload: bytes) -> None:
        """Carry out a command that came over MQTT (in the worker's thread) and answer it."""
        try:
            asked = commands.parse(name, payload)
        except Unusable as error:
            log.warning("command %s: %s", name, error)
            if error.request_id is not None:
                self._transport.publish(*self._result(name, error.request_id, False, str(error)), qos=1)
            return
        # The whole command is compared: two people's tools may count their requests alike.
        if asked.request_id is not None and asked in self._answers:
            self._transport.publish(*self._answers[asked], qos=1)
            return
        if asked.name == "reload":
            self._on_reload(lambda ok, message: self._answer(asked, ok, message))
        elif asked.name == "verdict":
            self._keeper.judge(
                asked.alarm_id or "", asked.true, asked.by, asked.why, lambda ok, message: self._remember(asked, ok, message)
            )
        elif asked.name == "resend":
            self._keeper.resend(
                {"since_t": asked.since_t, "event_id": asked.event_id, "alarm_id": asked.alarm_id},
                lambda ok, message: self._remember(asked, ok, message),
            )
        else:
            self._alarm_command(asked)

    def _alarm_command(self, asked: Command) -> None:
        sensor = self.sensors.get(asked.sensor or "")
        if sensor is None:
            known = ", ".join(self.sensors)
            self._answer(asked, False, f"unknown sensor {asked.sensor!r}; known: {known}")
            return
        t = self._clock()
        try:
            if asked.name == "commission":
                state, transition = pipeline.commission(
                    sensor.pipeline,
                    sensor.state,
                    asked.action or "start",
                    t,
                    by=asked.by,
                    comment=asked.why,
                    windows=asked.windows,
                    for_s=asked.for_s,
                    healthy=asked.healthy,
                )
            else:
                state, transition = pipeline.command(
                    sensor.pipeline, sensor.state, asked.name, t, by=asked.by, comment=asked.why, for_s=asked.for_s
                )
        except (Refused, commissioning.Refused) as error:
            self._answer(asked, False, f"{asked.sensor}: {error}")
            return
        sensor.state = state
        if asked.name == "shelve":
            sensor.kept = None
        row = self._event(sensor, transition, state.last)
        if sensor.status in ("online", "learning"):
            self._set_status(sensor, _running(state))
        said = f"{state.commissioning.phase}: {state.commissioning.reason}" if asked.name == "commission" else transition.state
        # The answer leaves with the commit: what a person was told is on record.
        answer = self._remember(asked, True, f"{asked.sensor}: {said}")
        self._hand_over(sensor, t, events=(row,), answers=(answer,))

    def _answer(self, asked: Command, ok: bool, message: str) -> None:
        self._transport.publish(*self._remember(asked, ok, message), qos=1)

    def _remember(self, asked: Command, ok: bool, message: str) -> Answer:
        answer = self._result(asked.name, asked.request_id, ok, message)
        if asked.request_id is not None:
            self._answers[asked] = answer
            while len(self._answers) > REMEMBERED_ANSWERS:
                self._answers.popitem(last=False)
        return answer

    def _result(self, name: str, request_id: str | int | None, ok: bool, message: str) -> Answer:
        log.info("command %s: %s%s", name, "" if ok else "refused: ", message)
        return f"{self._base}/cmd/{name}/result", commands.result(request_id, ok, message)

    # ---------------------------------------------------------------- reload

    def replace_sensors(
        self, configs: Mapping[str, SensorConfig], pipelines: Mapping[str, Pipeline], recalled: Mapping[str, Sensor] | None = None
    ) -> str:
        """Take over a new configuration (in the worker's thread); says what changed.

        An unchanged sensor keeps everything. A changed one, and one that was there before, keeps as much of its state as fits
        the new pipeline. A quarantine is lifted.
        recalled : sensors that did not run until now, as they stand on record
        """
        old, now = self.sensors, self._monotonic()
        new: dict[str, Sensor] = {}
        changed = []
        for name, config in configs.items():
            was = old.get(name) or self._disabled.get(name)
            if was is None:
                known = (recalled or {}).get(name)
                new[name] = known or Sensor(config, pipelines[name], pipeline.initial(pipelines[name]), now)
            elif name in old and was.config == config and was.pipeline.identity == pipelines[name].identity and not was.fault:
                new[name] = was
                continue
            else:
                state = was.state if was.pipeline.channels == pipelines[name].channels else pipeline.without_samples(was.state)
                new[name] = replace(
                    was, config=config, pipeline=pipelines[name], state=carry(pipelines[name], pipeline.dump(state)), heard=now,
                    status=None, bad_run=0, fault=False,
                )  # fmt: skip
            changed.append(name)
        gone = [name for name in old if name not in new]
        # They stay known: who takes one out and in again means the same machine.
        self._disabled = {**{n: s for n, s in self._disabled.items() if n not in new}, **{n: old[n] for n in gone}}
        self.sensors = new
        for name in gone:
            self.publish_status(name, "disabled")
            self._keeper.forget(name)
        for name in changed:
            self._hand_over(new[name], self._clock())
            self._tell_exchange(new[name])
        return f"{len(new)} sensor{'' if len(new) == 1 else 's'}; changed: {', '.join(changed) or 'none'}; removed: {', '.join(gone) or 'none'}"

    def _tell_exchange(self, sensor: Sensor) -> None:
        """A notice where another bundle scores now than did before."""
        t = self._clock()
        try:
            sensor.state, transition = pipeline.exchanged(sensor.pipeline, sensor.state, t)
            if transition is not None:
                # With the last window of the former one, which is where a replay of the rows has to change over.
                self._hand_over(sensor, t, events=(self._event(sensor, transition, sensor.state.last),))
        except Exception as error:  # noqa: BLE001 - a bug here must not stop the other sensors
            self._quarantine(sensor, error)

    def _topic(self, sensor: str, what: str) -> str:
        return f"{self._base}/s/{sensor}/{what}"


def carry(to: Pipeline, blob: bytes, known: Alarm | None = None) -> PipelineState:
    """A stored state for this pipeline: what of it means something there, else its alarm (or the one that is known besides), else
    new."""
    state = pipeline.load(to, blob)
    if state is not None:
        return state
    fresh, alarm = pipeline.initial(to), pipeline.load_alarm(blob) or known
    if alarm is None:
        return fresh
    # Votes of another version mean nothing here.
    return replace(fresh, alarm=replace(alarm, ratios=(), raise_since=None, return_since=None))


def recall(database: Store | None, config: SensorConfig, built: Pipeline, t: float, now: float) -> Sensor:
    """A sensor as it stands on record (database None: there is none), at t by the receipt and `now` by the monotonic clock."""
    blob = None if database is None else database.load_state(config.id)
    if database is None or (blob is None and config.id not in database.sensors()):
        return Sensor(config, built, pipeline.initial(built), now)
    known, saved = database.alarm_of(config.id), database.saved_at(config.id)
    state = carry(built, blob or b"", known)  # a salvaged one has its alarm without the state that belongs to it
    kept = state.alarm.shelved_until
    state = state if saved is None else pipeline.woken(state, saved, t)
    return Sensor(config, built, state, now, last_event_id=database.last_event_id(config.id), kept=kept)


def _running(state: PipelineState) -> str:
    """The status of a sensor whose messages are used."""
    if state.trouble.episode is not None:
        return "bad_data"
    return "learning" if state.commissioning.active else "online"


def _score(m: Measured) -> bytes:
    return msgspec.json.encode({"schema": 1, **pipeline.score_fields(m)})
