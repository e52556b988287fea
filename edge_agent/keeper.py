"""The store thread: puts on record what the worker hands over, and only then lets it out.

    worker ─put()─► buffer ─commit─► SQLite ─┬─► outbox rows ─► broker ─PUBACK─► mark sent
                    (bounded)                ├─► retained `state`
                                             └─► answers to commands

Nothing of an alarm leaves the device before the transaction that holds it, so a kill at any moment
leaves either a transition that nobody has seen and that is computed anew, or one that is on record and
is sent again under the same event_id. A commit happens at an event at once, else every `COMMIT_S`.
A stalled or broken disk stops neither the scoring nor the watchdog: the buffer keeps every event and
state, and sheds the oldest scores.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_agent import pipeline
from edge_agent.errors import StoreError
from edge_agent.pipeline import Measured, PipelineState
from edge_agent.store import EventRow, OutboxRow, Record, ShadowRow, Store
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
PRUNE_EVERY_S = 3600.0

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


class Keeper:
    """Owns the `Store` from `start` to `stop`. All methods may be called from any thread."""

    def __init__(
        self,
        store: Store,
        transport: Transport,
        states: Mapping[str, PipelineState],
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._store, self._transport = store, transport
        self._clock, self._monotonic = clock, monotonic
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._pending: dict[str, _Pending] = {}
        self._states: dict[str, PipelineState] = dict(states)
        self._announced: dict[str, Answer] = {}
        self._acks: deque[tuple[Token, bool]] = deque()
        self._requests: deque[tuple[dict[str, Any], Callable[[bool, str], Answer]]] = deque()
        self._urgent = self._reconnected = self._lost = self._stopping = False
        self._shed = 0
        self._shadow: deque[ShadowRow] = deque(maxlen=MAX_ROWS)
        self.stats = Stats()
        # Only the keeper's own thread touches what follows.
        self._in_flight: dict[Token, int] = {}
        self._rejected: set[int] = set()
        self._outbox_open = True
        self._fresh: set[str] = set()  # events of this run that may still go out on time
        self._deadline = 0.0
        self._trouble: str | None = None
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
            self._requests.append((which, answer))
            self._wake.notify()

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
        committed = pruned = self._monotonic()
        retry_at = 0.0
        while True:
            with self._wake:
                now = self._monotonic()
                due = max(committed + COMMIT_S, retry_at) if self._pending else now + COMMIT_S
                if self._urgent:
                    due = retry_at
                if not (self._acks or self._requests or self._lost) and due > now:
                    self._wake.wait(0.02 if self._stopping else due - now)
                now = self._monotonic()
                lost, reconnected, stopping = self._lost, self._reconnected, self._stopping
                self._lost = self._reconnected = False
                acks = list(self._acks)
                self._acks.clear()
                requests = list(self._requests)
                self._requests.clear()
                due_now = now >= retry_at and (self._urgent or now >= committed + COMMIT_S)
                wanted = self._pending and (stopping or due_now)
            if lost:
                self._in_flight.clear()
                self._rejected.clear()
                self._outbox_open = True
            if reconnected:
                for topic, payload in list(self._announced.values()):
                    self._transport.publish(topic, payload, qos=1, retain=True)
            try:
                if wanted:
                    self._commit(tail=stopping)
                    committed = now
                    self._recovered()
                self._settle(acks)
                for which, answer in requests:
                    self._requeue(which, answer)
                self._send()
                if now - pruned > PRUNE_EVERY_S:
                    pruned = now
                    self._store.prune(self._clock())
                self._note_stats()
            except StoreError as error:
                retry_at = now + RETRY_S
                self._failed(error)
            waiting = self._in_flight or (self._outbox_open and self._transport.connected)
            if stopping and (not waiting or now >= self._deadline or self._trouble):
                self._close()
                return

    def _commit(self, tail: bool) -> None:
        with self._lock:
            batch, self._pending = self._pending, {}
            states = {sensor: self._states[sensor] for sensor in batch}
            self._urgent = False
        records = [
            Record(
                sensor,
                tuple(pending.measured),
                tuple(pending.events),
                states[sensor].alarm,
                pipeline.dump(states[sensor], tail=tail),
                pending.t if pending.event_t is None else pending.event_t,
            )
            for sensor, pending in batch.items()
        ]
        try:
            self._store.write(records)
        except StoreError:
            with self._lock:
                self._put_back(batch)
            raise
        for sensor, pending in batch.items():
            if pending.events:
                self._outbox_open = True
                if len(self._fresh) > 1000:  # nobody listens: these are late by now
                    self._fresh.clear()
                self._fresh.update(event.transition.event_id for event in pending.events)
            for topic, payload in pending.answers:
                self._transport.publish(topic, payload, qos=1)
            if pending.announce is not None:
                with self._lock:
                    self._announced[sensor] = pending.announce
                self._transport.publish(*pending.announce, qos=1, retain=True)
        self._commit_shadow()

    def _commit_shadow(self) -> None:
        with self._lock:
            rows = list(self._shadow)
        if not rows:
            return
        self._store.write_shadow(rows)
        with self._lock:
            # What came meanwhile stays; where that filled the buffer, its oldest rows are gone already.
            for row in rows:
                if self._shadow and self._shadow[0] is row:
                    self._shadow.popleft()

    def _put_back(self, batch: dict[str, _Pending]) -> None:
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

    def _settle(self, acks: list[tuple[Token, bool]]) -> None:
        sent = []
        for token, ok in acks:
            row_id = self._in_flight.pop(token, None)
            if row_id is None:
                continue
            if ok:
                sent.append(row_id)
            else:
                self._rejected.add(row_id)
        if sent:
            self._outbox_open = True
            try:
                self._store.mark_sent(sent, self._clock())
            except StoreError:
                # Not marked is sent again: twice is allowed, never is not.
                self._rejected.update(sent)
                raise

    def _send(self) -> None:
        """Hand the oldest waiting events to the broker, in the order they were made."""
        if not self._outbox_open or not self._transport.connected:
            return
        room = MAX_IN_FLIGHT - len(self._in_flight)
        if room <= 0:
            return
        busy = {*self._in_flight.values(), *self._rejected}
        rows = [row for row in self._store.unsent(room + len(busy)) if row.id not in busy][:room]
        self._outbox_open = bool(rows)
        for row in rows:
            token = self._transport.publish(row.topic, self._payload(row), qos=row.qos, retain=row.retain)
            if token is None:
                return  # the link was lost this instant; it waits for the next one
            self._in_flight[token] = row.id

    def _payload(self, row: OutboxRow) -> bytes:
        first = row.event_id in self._fresh
        self._fresh.discard(row.event_id)
        late = not first or self._clock() - row.created > LATE_S
        # msgspec writes without blanks, and a quote inside a text is escaped: this is the field itself.
        return (row.payload.replace('"late":false', '"late":true', 1) if late else row.payload).encode()

    def _requeue(self, which: dict[str, Any], answer: Callable[[bool, str], Answer]) -> None:
        try:
            n = self._store.requeue(**which)
        except StoreError as error:
            self._transport.publish(*answer(False, str(error)), qos=1)
            raise
        self._outbox_open = True
        with self._lock:
            self._rejected.clear()
        self._transport.publish(*answer(True, f"{n} event{'s' if n != 1 else ''} to be sent again"), qos=1)

    def _note_stats(self) -> None:
        rows, oldest = self._store.outbox_stats()
        self.stats = Stats(rows, oldest, self._shed, self._trouble)

    def _failed(self, error: StoreError) -> None:
        text = str(error)
        if self._trouble is None:
            log.error("%s; scoring goes on, rows are kept in memory and written once it works again", text)
        self._trouble = text
        self.stats = Stats(self.stats.outbox_rows, self.stats.outbox_oldest_t, self._shed, text)

    def _recovered(self) -> None:
        if self._trouble is not None:
            log.warning("%s: works again; %d scores were shed meanwhile", self._store.path, self._shed)
            self._trouble = None
            self.stats = Stats(self.stats.outbox_rows, self.stats.outbox_oldest_t, self._shed, None)

    def _close(self) -> None:
        try:
            self._store.close()
        except StoreError as error:
            log.error("%s", error)
