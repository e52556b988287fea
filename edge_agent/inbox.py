"""Messages on their way from the network thread to the worker.

    put(sensor, …) ──► one bounded queue per sensor ──┐
    put(…)         ──► …                              ├─ served in turn ──► take()
    call(function) ──► first of all ──────────────────┘

A flood of one sensor evicts its own oldest messages, never another's.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

#: Messages and bytes that one sensor may have waiting; one message is always taken, however large.
MAX_MESSAGES = 256
MAX_BYTES = 8 << 20
#: Bytes that all of them together may have waiting, in equal shares, however many flood at once.
ALL_BYTES = 64 << 20
#: Commands waiting; a person does not send that many.
MAX_CALLS = 64

#: What passes a sensor's `max_messages_per_s` at once: so many seconds' worth, at least so many messages.
BURST_S, MIN_BURST = 10.0, 10.0


class OperatingValue(bytes):
    """A payload of a sensor's regime topic: it waits in the sensor's own queue, so that it keeps its place there."""


#: (sensor, payload, receipt time in s)
Item = tuple[str, bytes, float]
Call = Callable[[], None]


class Bucket:
    """A token bucket: `rate` messages a second pass for ever, and bursts of `BURST_S` worth of them.

    take(now) takes one token where there is one. now: any clock in s; one that goes back gives nothing and takes
    nothing.
    """

    def __init__(self, rate: float) -> None:
        self.rate, self.size = rate, max(MIN_BURST, rate * BURST_S)
        self._tokens = self.size
        self._at: float | None = None

    def take(self, now: float) -> bool:
        """Whether a message that comes now may pass."""
        since = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._tokens = min(self.size, self._tokens + since * self.rate)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class _Queue:
    __slots__ = ("items", "n_bytes")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.n_bytes = 0


class Inbox:
    """Thread-safe; `put` and `call` never block, `take` waits."""

    def __init__(
        self, sensors: Iterable[str] = (), max_messages: int = MAX_MESSAGES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._lock = threading.Lock()
        self._filled, self._freed = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queues: dict[str, _Queue] = {}
        self._turn: deque[str] = deque()  # sensors that have something, next first
        self._calls: deque[Call] = deque()
        self.watch(sensors)

    def watch(self, sensors: Iterable[str]) -> None:
        """The sensors to keep queues for; what waits for others is forgotten."""
        with self._lock:
            self._queues = {name: self._queues.get(name) or _Queue() for name in sensors}
            self._share = min(self._max_bytes, ALL_BYTES // max(1, len(self._queues)))
            self._turn = deque(name for name in self._turn if name in self._queues)
            self._freed.notify_all()

    def put(self, sensor: str, payload: bytes, received: float) -> int:
        """Enqueue; returns how many older messages of this sensor had to go."""
        with self._filled:
            queue = self._queues.get(sensor)
            if queue is None:
                return 0
            if not queue.items:
                self._turn.append(sensor)
            queue.items.append((sensor, payload, received))
            queue.n_bytes += len(payload)
            evicted = 0
            while len(queue.items) > 1 and (
                len(queue.items) > self._max_messages or queue.n_bytes > self._share
            ):
                queue.n_bytes -= len(queue.items.popleft()[1])
                evicted += 1
            self._filled.notify()
            return evicted

    def call(self, function: Call) -> bool:
        """Have the worker call this before it takes more messages; False where too many wait already."""
        with self._filled:
            if len(self._calls) >= MAX_CALLS:
                return False
            self._calls.append(function)
            self._filled.notify()
            return True

    def take(self, timeout_s: float) -> Item | Call | None:
        """The next call or message; None where nothing came within the time."""
        with self._filled:
            if not self._calls and not self._turn:
                self._filled.wait(timeout_s)
            if self._calls:
                return self._calls.popleft()
            if not self._turn:
                return None
            sensor = self._turn.popleft()
            queue = self._queues[sensor]
            item = queue.items.popleft()
            queue.n_bytes -= len(item[1])
            if queue.items:
                self._turn.append(sensor)
            self._freed.notify_all()
            return item

    def wait_for_room(self, sensor: str, timeout_s: float) -> None:
        """Return once fewer than half of the messages (and bytes) that the sensor may have waiting do wait, or after the time."""

        def room() -> bool:
            queue = self._queues.get(sensor)
            return queue is None or (2 * len(queue.items) < self._max_messages and 2 * queue.n_bytes < self._share)

        with self._freed:
            self._freed.wait_for(room, timeout_s)

    def depths(self) -> dict[str, int]:
        """Messages waiting, by sensor."""
        with self._lock:
            return {name: len(queue.items) for name, queue in self._queues.items()}

    def empty(self) -> bool:
        """Whether nothing waits at all."""
        with self._lock:
            return not self._turn and not self._calls
