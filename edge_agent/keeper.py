"""The store thread: puts on record what the worker hands over, and only then lets it out.

    worker ─put()─► buffer ─commit─► SQLite ─┬─► outbox rows ─► broker ─PUBACK─► mark sent
                    (bounded)                ├─► retained `state`
                                             └─► answers to commands

Nothing of an alarm leaves the device before the transaction that holds it, so a kill at any moment
leaves either a transition that nobody has seen and that is computed anew, or one that is on record and
is sent again under the same event_id. A commit happens at an event at once, else every `COMMIT_S`.
A stalled or broken disk stops neither the scoring nor the watchdog: the buffer keeps every event and
state, and sheds the oldest scores. What is done about it:

    full       the oldest scores are deleted, a slice at a time, until the rest finds room
    damaged, deleted, replaced   set aside under a new name; a fresh one with what memory and the old one hold
    read-only, failing           tried again every `RETRY_S`; alarms that waited `UNSTORED_S` go out unrecorded
    silent (a call never returns)   the same; the main thread does it, by `watch`
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_agent import pipeline, salvage
from edge_agent.config import StorageConfig
from edge_agent.errors import DamagedStoreError, FullStoreError, StoreError, UnwritableStoreError
from edge_agent.pipeline import Measured, PipelineState
from edge_agent.store import RESERVE_BYTES, EventRow, OutboxRow, Record, ShadowRow, Store
from edge_agent.transport import Token, Transport

log = logging.getLogger(__name__)

COMMIT_S = 5.0
#: Score rows kept in memory while the disk stalls, over all sensors.
MAX_ROWS = 20_000
#: Events on their way to the broker at a time.
MAX_IN_FLIGHT = 20
#: An event that goes out this long after it was made says so.
LATE_S = 10.0
RETRY_S = 2.0
#: The first look for old rows comes this long after the start, the next ones this long after one another.
PRUNE_FIRST_S, PRUNE_EVERY_S = 60.0, 3600.0
#: Between two slices: events go first.
PRUNE_PAUSE_S = 0.05
#: An alarm that cannot be put on record for so long goes out all the same, and again once it is on record.
UNSTORED_S = 10.0
#: Trouble that was overcome stays in health for so long, that somebody may see it.
TOLD_S = 120.0
#: Slices deleted on a full disk until a commit must have succeeded.
TRIMS = 20
#: An event that the broker refused (no rights, no subscriber where one is required) is tried again after this.
REFUSED_S = 30.0
#: What a row of `scores` takes with its index entry, and an event beside twice its text.
ROW_BYTES, EVENT_BYTES = 150, 400
RATE_S, ROOM_EVERY_S = 3600.0, 10.0
#: Unacknowledged events that memory knows beside the database.
MAX_REMEMBERED = 5000

#: (topic, payload)
Answer = tuple[str, bytes]


@dataclass
class _Pending:
    """What one sensor has waiting for the next commit."""

    measured: deque[Measured] = field(default_factory=deque)
    events: list[EventRow] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    announce: Answer | None = None
    t: float = 0.0
    event_t: float | None = None


@dataclass(frozen=True)
class Stats:
    """What health tells of the store."""

    outbox_rows: int = 0
    outbox_oldest_t: float | None = None
    shed_scores: int = 0
    trouble: str | None = None
    trimmed_scores: int = 0
    set_aside: str | None = None
    checked: str | None = None
    buffer_hours: float | None = None


class Keeper:
    """Owns the `Store` from `start` to `stop`. All methods may be called from any thread."""

    def __init__(
        self,
        begun: salvage.Begun,
        path: Path,
        base: str,
        transport: Transport,
        states: Mapping[str, PipelineState],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        storage: StorageConfig,
        one_each: bool = False,
    ) -> None:
        """begun    : the database as the start found it; where it could not be written it is tried again
        one_each : hand over one event of a topic at a time (where an acknowledgement may be a refusal)
        """
        self._store, self._path, self._base, self._transport = begun.store, path, base, transport
        self._clock, self._monotonic, self._storage = clock, monotonic, storage
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._pending: dict[str, _Pending] = {}
        self._states: dict[str, PipelineState] = dict(states)
        self._announced: dict[str, Answer] = {}
        self._acks: deque[tuple[Token, bool]] = deque()
        self._requests: deque[tuple[Callable[[Store], tuple[bool, str]], Callable[[bool, str], Answer]]] = deque()
        self._urgent = self._reconnected = self._lost = self._stopping = False
        self._shed = 0
        self._shadow: deque[ShadowRow] = deque(maxlen=MAX_ROWS)
        # Only the keeper's own thread touches what follows, but for `stats`, which is replaced whole.
        self._in_flight: dict[Token, OutboxRow] = {}
        self._held: dict[str, float] = {}  # topics that wait until then
        self._one_each = one_each
        self._outbox_open = True
        self._fresh: dict[str, float] = {}  # events of this run that have not gone out, and since when (monotonic)
        self._remembered: OrderedDict[str, OutboxRow] = OrderedDict()  # unacknowledged, as far as memory holds
        self._unstored: set[str] = set()  # went out before they were on record
        self._deadline = 0.0
        self._trouble = begun.trouble
        self._told_until = self._monotonic() + TOLD_S if begun.set_aside else float("-inf")
        now = self._monotonic()
        self._failing, self._since = begun.store is None, now
        self._retry_at, self._committed_at = now if begun.store else now + RETRY_S, now
        self._prune_at = now + PRUNE_FIRST_S
        self._full = False
        self._trims = self._trimmed = 0
        self._rate, self._room, self._room_at = _Rate(now), 0.0, now
        self._checked: str | None = None
        self._batch_states: dict[str, PipelineState] = {}
        self._writing: dict[str, _Pending] = {}
        self._busy_since: float | None = None  # while the store thread waits for the disk
        self._silent = False
        self._set_aside = None if begun.set_aside is None else begun.set_aside.name
        if self._store is not None:
            self._opened(self._store)
        elif begun.trouble is not None:
            log.error("%s; scoring goes on without the database, which is tried again", begun.trouble)
        self.stats = Stats(trouble=self._trouble, set_aside=self._set_aside)
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)

    # ---------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Begin; what waits in the outbox now is from an earlier run and goes out as late."""
        self._thread.start()

    def put(
        self,
        sensor: str,
        state: PipelineState,
        t: float,
        *,
        measured: tuple[Measured, ...] = (),
        events: tuple[EventRow, ...] = (),
        announce: Answer | None = None,
        answers: tuple[Answer, ...] = (),
    ) -> None:
        """Hand over what is true together: rows, events, the state after them (t: receipt clock).

        announce : the retained state message; answers : to commands; both leave after the commit
        """
        with self._wake:
            pending = self._pending.setdefault(sensor, _Pending())
            pending.measured.extend(measured)
            pending.events.extend(events)
            pending.answers.extend(answers)
            pending.announce = announce or pending.announce
            pending.t = t
            if events and pending.event_t is None:
                pending.event_t = t
            if len(self._fresh) > 1000:  # nobody listens: these are late by now
                self._fresh.clear()
            self._fresh.update((event.transition.event_id, self._monotonic()) for event in events)
            self._states[sensor] = state
            self._shed_over_limit()
            if events or answers:
                self._urgent = True
                self._wake.notify()

    def put_shadow(self, rows: Iterable[ShadowRow]) -> None:
        """Rows of bundles that are scored beside: written with the next commit, the oldest lost where the disk stalls."""
        with self._lock:
            self._shadow.extend(rows)

    def announce(self, sensor: str, message: Answer) -> None:
        """A state that is on record already (at start): publish it on every connect."""
        with self._lock:
            self._announced[sensor] = message

    def forget(self, sensor: str) -> None:
        """A sensor that the configuration no longer has; its rows stay."""
        with self._lock:
            self._announced.pop(sensor, None)

    def acknowledged(self, token: Token, ok: bool) -> None:
        """The broker has answered a publish."""
        with self._wake:
            self._acks.append((token, ok))
            self._wake.notify()

    def connected(self) -> None:
        """A new connection: send states and what waits."""
        with self._wake:
            self._reconnected = self._lost = True
            self._wake.notify()

    def disconnected(self) -> None:
        """The connection is gone, and with it what was in flight."""
        with self._wake:
            self._lost = True
            self._wake.notify()

    def resend(self, which: dict[str, Any], answer: Callable[[bool, str], Answer]) -> None:
        """Send events again: `which` as `Store.requeue` takes it."""
        with self._wake:
            self._requests.append((lambda store: self._requeued(store, which), answer))
            self._wake.notify()

    def judge(self, alarm_id: str, true: bool, by: str | None, why: str | None, answer: Callable[[bool, str], Answer]) -> None:
        """Put a person's verdict on an alarm on record."""
        with self._wake:
            self._requests.append((lambda store: self._judged(store, alarm_id, true, by, why), answer))
            self._wake.notify()

    def watch(self) -> None:
        """For the main thread's round. Where the disk has not answered for `UNSTORED_S` the store thread cannot say so: alarms
        that wait go out unrecorded, and health tells."""
        now, busy = self._monotonic(), self._busy_since
        if busy is None or now - busy < UNSTORED_S:
            return
        trouble = f"{self._path}: the disk has not answered for {now - busy:.0f} s"
        if not self._silent:
            self._silent = True
            log.error("%s; scoring goes on, rows are kept in memory", trouble)
        self.stats = replace(self.stats, trouble=trouble, shed_scores=self._shed)
        self._publish_unstored(stored=False)

    def alive(self) -> bool:
        """False after a bug ended the thread."""
        return self._thread.is_alive()

    def stop(self, states: Mapping[str, PipelineState], flush_s: float = 3.0) -> None:
        """Commit all with window tails, give the broker `flush_s` for the outbox, close the database."""
        with self._wake:
            self._states.update(states)
            for sensor in states:
                self._pending.setdefault(sensor, _Pending(t=self._clock()))
            self._stopping = True
            self._deadline = self._monotonic() + flush_s
            self._wake.notify()
        self._thread.join(flush_s + 15.0)

    # ---------------------------------------------------------------- the store thread

    def _run(self) -> None:
        self._committed_at = self._monotonic()
        while True:
            with self._wake:
                now = self._monotonic()
                if (due := self._due(now)) > now:
                    self._wake.wait(0.02 if self._stopping else due - now)
                now = self._monotonic()
                lost, reconnected, stopping = self._lost, self._reconnected, self._stopping
                self._lost = self._reconnected = False
                due_now = now >= self._retry_at and (self._urgent or now >= self._committed_at + COMMIT_S)
                wanted = bool(self._pending) and (stopping or due_now)
            if lost:
                self._in_flight.clear()
                self._held.clear()
                self._outbox_open = True
            if reconnected:
                for topic, payload in list(self._announced.values()):
                    self._transport.publish(topic, payload, qos=1, retain=True)
            # While there is trouble nothing but the next attempt touches the disk.
            if now >= self._retry_at or stopping:
                self._busy_since = now
                try:
                    self._round(now, wanted, stopping)
                except StoreError as error:
                    self._retry_at = now + RETRY_S
                    self._mend(error, now)
                self._busy_since = None
                if self._silent:
                    self._answered(self._monotonic() - now)
            waiting = self._in_flight or (self._outbox_open and self._transport.connected)
            # What can be tried again at once, since room was made or a new database begun, is.
            given_up = self._failing and self._retry_at > now
            again = self._failing and bool(self._pending)
            if stopping and (given_up or now >= self._deadline or not (waiting or again)):
                self._close()
                return

    def _due(self, now: float) -> float:
        """When there is something to do next."""
        if self._lost:
            return now
        if self._retry_at > now:
            return self._retry_at
        if self._acks or self._requests or self._urgent:
            return now
        committing = self._committed_at + COMMIT_S if self._pending else now + COMMIT_S
        return min(committing, self._prune_at, *self._held.values())

    def _round(self, now: float, wanted: bool, stopping: bool) -> None:
        store = self._store
        if store is None:
            store = Store.open(self._path)
            with self._lock:  # memory is newer than whatever the file holds
                for sensor in self._states:
                    self._pending.setdefault(sensor, _Pending(t=self._clock()))
            self._store, wanted = store, True
            self._opened(store)
        if wanted:
            self._commit(store, tail=stopping)
            self._committed_at = now
            self._commit_shadow(store)
            self._recovered(store, now)
        self._settle(store, now)
        self._answer_requests(store)
        self._send(store, now)
        if now >= self._prune_at and not stopping:
            n = store.prune_slice(self._clock(), self._storage.scores_days, self._storage.max_bytes)
            self._prune_at = now + (PRUNE_PAUSE_S if n else PRUNE_EVERY_S)
        self._note_stats(store, now)

    def _commit(self, store: Store, tail: bool) -> None:
        batch = self._take()
        try:
            store.write(self._records(batch, tail))
        except StoreError:
            with self._lock:
                self._put_back(batch)
            raise
        self._let_out(batch)

    def _take(self) -> dict[str, _Pending]:
        with self._lock:
            batch, self._pending = self._pending, {}
            self._writing = batch
            self._batch_states = {sensor: self._states[sensor] for sensor in batch}
            self._urgent = False
        return batch

    def _records(self, batch: dict[str, _Pending], tail: bool) -> list[Record]:
        return [
            Record(
                sensor,
                tuple(pending.measured),
                tuple(pending.events),
                self._batch_states[sensor].alarm,
                pipeline.dump(self._batch_states[sensor], tail=tail),
                pending.t if pending.event_t is None else pending.event_t,
            )
            for sensor, pending in batch.items()
        ]

    def _let_out(self, batch: dict[str, _Pending]) -> None:
        """What waited for the commit: events go by the outbox, answers and states at once."""
        self._writing = {}
        for sensor, pending in batch.items():
            self._rate.add(len(pending.measured), sum(len(event.payload) for event in pending.events), len(pending.events))
            if pending.events:
                self._outbox_open = True
                self._remember(_outbox_rows(pending))
            for topic, payload in pending.answers:
                self._transport.publish(topic, payload, qos=1)
            if pending.announce is not None:
                with self._lock:
                    self._announced[sensor] = pending.announce
                self._transport.publish(*pending.announce, qos=1, retain=True)

    def _commit_shadow(self, store: Store) -> None:
        with self._lock:
            rows = list(self._shadow)
        if not rows:
            return
        store.write_shadow(rows)
        with self._lock:
            # What came meanwhile stays; where that filled the buffer, its oldest rows are gone already.
            for row in rows:
                if self._shadow and self._shadow[0] is row:
                    self._shadow.popleft()

    def _remember(self, rows: Iterable[OutboxRow]) -> None:
        for row in rows:
            self._remembered[row.event_id] = row
        while len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)

    def _put_back(self, batch: dict[str, _Pending]) -> None:
        self._writing = {}
        for sensor, old in batch.items():
            new = self._pending.get(sensor)
            if new is not None:
                old.measured.extend(new.measured)
                old.events.extend(new.events)
                old.answers.extend(new.answers)
                old.announce = new.announce or old.announce
                old.t = new.t
                old.event_t = new.event_t if old.event_t is None else old.event_t
            self._pending[sensor] = old
            self._urgent = self._urgent or bool(old.events or old.answers)
        self._shed_over_limit()

    def _shed_over_limit(self) -> None:
        limit = max(100, MAX_ROWS // max(1, len(self._pending)))
        for pending in self._pending.values():
            while len(pending.measured) > limit:
                pending.measured.popleft()
                self._shed += 1

    # ---------------------------------------------------------------- to the broker

    def _settle(self, store: Store, now: float) -> None:
        with self._lock:
            acks = list(self._acks)
            self._acks.clear()
        sent = []
        for token, ok in acks:
            row = self._in_flight.pop(token, None)
            if row is None:
                continue
            self._outbox_open = True
            if ok:
                sent.append(row)
            else:
                self._held[row.topic] = now + REFUSED_S
        if sent:
            try:
                store.mark_sent([row.id for row in sent], self._clock())
            except StoreError:
                # Not marked is sent again: twice is allowed, never is not.
                self._held.update((row.topic, now + RETRY_S) for row in sent)
                raise
            for row in sent:
                self._remembered.pop(row.event_id, None)
                self._unstored.discard(row.event_id)

    def _send(self, store: Store, now: float) -> None:
        """Hand the oldest waiting events to the broker, in the order they were made.

        A topic on which an event was refused waits, so that none overtakes it. Where a subscriber is
        required one event of a topic is under way at a time, for the same reason.
        """
        for topic in [topic for topic, until in self._held.items() if until <= now]:
            del self._held[topic]
            self._outbox_open = True
        if not self._outbox_open or not self._transport.connected:
            return
        room = MAX_IN_FLIGHT - len(self._in_flight)
        if room <= 0:
            return
        busy = {row.id for row in self._in_flight.values()}
        taken = set(self._held)
        if self._one_each:
            taken |= {row.topic for row in self._in_flight.values()}
        rows = [row for row in store.unsent(room + len(busy), without=sorted(taken)) if row.id not in busy][:room]
        self._outbox_open = bool(rows)
        for row in rows:
            if self._one_each and row.topic in taken:
                continue
            taken.add(row.topic)
            token = self._transport.publish(row.topic, self._payload(row), qos=row.qos, retain=row.retain)
            if token is None:
                return  # the link was lost this instant; it waits for the next one
            self._in_flight[token] = row

    def _payload(self, row: OutboxRow) -> bytes:
        late = self._waited(row) > LATE_S or row.event_id in self._unstored
        self._fresh.pop(row.event_id, None)
        return _late(row.payload) if late else row.payload.encode()

    def _waited(self, row: OutboxRow) -> float:
        """Seconds since the event was made; infinite where it has gone out before, or is of an earlier run.

        By the monotonic clock: the other one may be set back meanwhile.
        """
        made = self._fresh.get(row.event_id)
        return float("inf") if made is None else self._monotonic() - made

    def _answer_requests(self, store: Store) -> None:
        for _ in range(len(self._requests)):
            with self._lock:
                carry_out, answer = self._requests.popleft()
            # Where one fails those behind it wait for the next attempt.
            try:
                said = carry_out(store)
            except StoreError as error:
                self._transport.publish(*answer(False, str(error)), qos=1)
                raise
            self._transport.publish(*answer(*said), qos=1)

    def _requeued(self, store: Store, which: dict[str, Any]) -> tuple[bool, str]:
        n = store.requeue(**which)
        self._outbox_open = True
        self._held.clear()
        return True, f"{n} event{'s' if n != 1 else ''} to be sent again"

    def _judged(
        self, store: Store, alarm_id: str, true: bool, by: str | None, why: str | None
    ) -> tuple[bool, str]:
        sensor = store.judge(alarm_id, true, by, why, self._clock())
        if sensor is None:
            return False, f"no machine alarm {alarm_id!r}; `edge-agent alarms` lists those there are"
        return True, f"{sensor}: {alarm_id} was a {'true' if true else 'false'} alarm"

    # ---------------------------------------------------------------- trouble

    def _opened(self, store: Store) -> None:
        """A database was opened: by the start, or after trouble."""
        self._checked = store.checked
        self._in_flight.clear()
        self._outbox_open = True
        self._remember(store.unsent(MAX_REMEMBERED))
        log.info("%s: checked: %s", store.path, store.checked)
        if not store.reserve():
            log.warning(
                "%s: less than %d MiB are free on its disk: free some space", store.path, 2 * RESERVE_BYTES >> 20
            )

    def _mend(self, error: StoreError, now: float) -> None:
        """Do what can be done about it, and say so."""
        self._failed(error, now)
        try:
            if isinstance(error, DamagedStoreError):
                self._replace(error, now)
                self._retry_at = now
            elif isinstance(error, FullStoreError) and self._store is not None:
                self._full = True
                if self._trims < TRIMS:
                    self._trims += 1
                    n = self._store.make_room()
                    self._trimmed += n
                    # The first time the reserve has made room, whether or not there were scores to delete.
                    self._retry_at = now if n or self._trims == 1 else self._retry_at
            elif isinstance(error, UnwritableStoreError) and self._store is not None:
                # Opened again it is looked at again: the disk may come back otherwise than it went.
                store, self._store = self._store, None
                store.close()
        except StoreError as again:
            self._failed(again, now)
        self._tell_unstored(now)

    def _answered(self, after_s: float) -> None:
        self._silent = False
        self._trouble = f"{self._path}: the disk did not answer for {after_s:.0f} s"
        self._told_until = self._monotonic() + TOLD_S
        log.warning("%s; it works again", self._trouble)
        self.stats = replace(self.stats, trouble=self._trouble)

    def _replace(self, error: StoreError, now: float) -> None:
        old, self._store = self._store, None
        with self._lock:
            for sensor in self._states:
                self._pending.setdefault(sensor, _Pending(t=self._clock()))
        batch = self._take()
        try:
            records = self._records(batch, tail=False)
            aside = salvage.replace(
                self._path, self._base, old, records, tuple(self._remembered.values()), self._clock()
            )
        except StoreError:
            with self._lock:
                self._put_back(batch)
            raise
        self._set_aside = None if aside is None else aside.name
        self._trouble = f"{error}; a new database was begun" + ("" if aside is None else f", the old one is {aside}")
        self._told_until = now + TOLD_S
        self._in_flight.clear()
        self._let_out(batch)

    def _tell_unstored(self, now: float) -> None:
        """Alarms that could not be put on record for a while: heard without a record is better than not heard."""
        if now - self._since >= UNSTORED_S:
            self._publish_unstored(stored=self._store is not None)

    def _publish_unstored(self, *, stored: bool) -> None:
        """stored: whether what is on record already can be sent from there."""
        if not self._transport.connected:
            return
        with self._lock:
            batches = (self._writing, self._pending)
            waiting = [(row, p.announce) for batch in batches for p in batch.values() for row in _outbox_rows(p)]
            if not stored:
                under_way = {row.event_id for row in list(self._in_flight.values())}
                known = [(row, None) for row in list(self._remembered.values()) if row.event_id not in under_way]
                waiting = [*known, *waiting]
        for row, announce in waiting:
            if row.event_id in self._unstored:
                continue
            late = self._waited(row) > 2 * UNSTORED_S
            payload = _late(row.payload) if late else row.payload.encode()
            if self._transport.publish(row.topic, payload, qos=1) is None:
                return
            self._unstored.add(row.event_id)
            if announce is not None:
                self._transport.publish(*announce, qos=1, retain=True)

    def _note_stats(self, store: Store, now: float) -> None:
        rows, oldest = store.outbox_stats()
        if now >= self._room_at:
            self._room_at = now + ROOM_EVERY_S
            self._room = store.room_bytes(self._storage.max_bytes)
        self.stats = Stats(
            rows, oldest, self._shed, self._trouble, self._trimmed, self._set_aside, self._checked,
            self._rate.hours(self._room, now),
        )  # fmt: skip

    def _failed(self, error: StoreError, now: float) -> None:
        text = str(error)
        if not self._failing:
            log.error("%s; scoring goes on, rows are kept in memory and written once it works again", text)
            self._since, self._failing = now, True
        self._trouble = text
        with self._lock:
            held = sum(len(pending.measured) for pending in self._pending.values())
        hours = self._rate.hours_of_rows(MAX_ROWS - held, now)
        self.stats = replace(
            self.stats, shed_scores=self._shed, trouble=text, trimmed_scores=self._trimmed, buffer_hours=hours
        )

    def _recovered(self, store: Store, now: float) -> None:
        self._trims = 0
        if self._failing:
            log.warning("%s: works again; %d scores were shed meanwhile", store.path, self._shed)
            self._failing = False
        if self._full and not store.reserve():
            self._trouble = (
                f"{store.path}: the disk is full; {self._trimmed} of the oldest scores were deleted to make room: "
                "free some space"
            )
            return
        self._full = False
        if self._trouble is not None and now >= self._told_until:
            self._trouble = None

    def _close(self) -> None:
        with self._lock:
            rows = sum(len(pending.measured) for pending in self._pending.values())
            events = sum(len(pending.events) for pending in self._pending.values())
        if rows or events:
            log.error("%s: %d scores and %d events could not be put on record", self._path, rows, events)
        if self._store is None:
            return
        try:
            self._store.close()
        except StoreError as error:
            log.error("%s", error)


class _Rate:
    """How fast the database grows now: over the last `RATE_S` at most, two halves of it."""

    def __init__(self, now: float) -> None:
        self._before = self._this = (now, 0, 0)  # since, rows, bytes

    def add(self, rows: int, event_chars: int, events: int) -> None:
        """Rows of scores and events that were written."""
        since, had, size = self._this
        size += rows * ROW_BYTES + 2 * event_chars + events * EVENT_BYTES
        self._this = since, had + rows, size

    def _per_hour(self, now: float) -> tuple[float, float]:
        """(rows, bytes) an hour."""
        if now - self._this[0] >= RATE_S / 2:
            self._before, self._this = self._this, (now, 0, 0)
        hours = max(now - self._before[0], 1.0) / 3600.0
        same = self._before[0] == self._this[0]
        rows, size = (self._this[i] + (0 if same else self._before[i]) for i in (1, 2))
        return rows / hours, size / hours

    def hours(self, room: float, now: float) -> float | None:
        """How long this many bytes last; None where nothing is written."""
        size = self._per_hour(now)[1]
        return round(room / size, 1) if size else None

    def hours_of_rows(self, rows: int, now: float) -> float | None:
        """How long memory for this many rows lasts; None where nothing is written."""
        per_hour = self._per_hour(now)[0]
        return round(max(0, rows) / per_hour, 1) if per_hour else None


def _outbox_rows(pending: _Pending) -> list[OutboxRow]:
    """The events of a sensor as they would stand in the outbox."""
    created = pending.t if pending.event_t is None else pending.event_t
    return [
        OutboxRow(0, event.transition.event_id, event.topic, event.payload, 1, False, created)
        for event in pending.events
    ]


def _late(payload: str) -> bytes:
    # msgspec writes without blanks, and a quote inside a text is escaped: this is the field itself.
    return payload.replace('"late":false', '"late":true', 1).encode()
