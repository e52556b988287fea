"""Recordings to a sensor's topic, and a sensor's topic to a recording.

    recording ─► chunks ─► pieces of at most a message ─encode─► broker (QoS 1) ─► agent
                                   ▲                                                  │
                                   └────── at most so many unscored ◄── score topic ──┘

The agent drops the oldest messages when they come faster than it scores, so `replay` at full speed
watches the sensor's `score` topic and keeps only a bounded number of messages unscored. It waits for an
agent that is just starting. Where none is online nobody can lose anything: it sends as fast as the broker
takes it. Where one is online but does not score it goes on at the speed of the recording, pauses cut short.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_agent import bundle as bundles
from edge_agent import installed, payloads
from edge_agent.config import Config, SensorConfig
from edge_agent.errors import BundleError, RecordingError, TransportError
from edge_agent.inbox import MAX_MESSAGES
from edge_agent.recordings import Ask, Recording, open_recordings
from edge_agent.recordings.capture import header_line, message_line
from edge_agent.signals import Chunk, parse_time, rfc3339
from edge_agent.transport import MqttTransport, Token, tool

#: Messages on their way to the broker, unacknowledged.
MAX_IN_FLIGHT = 16
#: A message this size travels best; larger ones cost more than in proportion.
MESSAGE_BYTES = 1 << 16
#: How long an agent may take to come online, and then from one score to the next.
ONLINE_S, PATIENCE_S = 10.0, 15.0
#: Between snapshots, real time is cut to this.
PAUSE_S = 1.0
#: Recordings without times are laid so far apart, in times of a window and in seconds: the agent takes them for what they are, several
#: recordings, and not for a stream in which something is missing (`trouble.PAUSE`).
APART, APART_S = 11.0, 11.0
#: After the last message: over once no score has come for so long, and at the latest after so long.
LAST_QUIET_S, LAST_WAIT_S = 0.5, 3.0
#: Bytes that one sample takes in a message, at most.
_BYTES = {"f32le": 4, "i16le": 2, "wav": 4}
_TEXT_BYTES = 26

Progress = Callable[[str], None]


def replay(
    config: Config,
    sensor_id: str,
    path: Path,
    channel: int | None = None,
    speed: float | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Publish every recording under `path` to the sensor's topic, in its payload format.

    channel : which channel of the recording goes into a one-channel message; None: the recording has
              just as many channels as the message
    speed   : times real time; None as fast as the agent scores
    Times are those of the recording. Recordings without any follow each other: at a given speed the first
    begins now; at full speed the last ends now, since hours of signal sent in seconds would otherwise lie
    in the future. (Where the payload format carries no times the agent counts on from the receipt by
    itself, so there it begins now in any case.) Sequence numbers run on, with a jump between recordings
    so that no window crosses them, and begin with the clock, so that the same recording can be replayed
    again.

    Returns sensor, recordings, messages, samples, signal_s, from and to (of the signal's times, RFC 3339,
    None where nothing was sent), seconds, scores, paced ("scores", "speed", "clock" or "broker": see above).
    """
    sensor = config.sensors[sensor_id]
    sender = _Sender(config, sensor, speed, progress)
    before_s = 0.0
    if speed is None and sender.tells_time:
        before_s = _untimed_s(open_recordings(path, Ask(sensor.fs_hz)), sender.apart_s)
    sender.open(before_s)
    try:
        for recording in open_recordings(path, Ask(sensor.fs_hz)):
            sender.send(recording, channel)
        sender.finish()
    finally:
        sender.close()
    return sender.summary()


class _Sender:
    """One replay: what was sent, what is unacknowledged, what is unscored."""

    def __init__(
        self, config: Config, sensor: SensorConfig, speed: float | None, progress: Progress | None
    ) -> None:
        self._sensor, self._speed, self._progress = sensor, speed, progress
        base = config.mqtt.base
        self._score_topic, self._status_topic = f"{base}/s/{sensor.id}/score", f"{base}/status"
        self._state_topic = f"{base}/s/{sensor.id}/state"
        self._known_t: float | None = None  # end of the last window that the agent has of this sensor
        self._online = False
        self._changed = threading.Condition()
        self._unacknowledged: set[Token] = set()
        self._early: set[Token] = set()
        self._rejected = 0
        self._scored_t = -math.inf
        self._scores = 0
        self._transport: MqttTransport = tool(
            config.mqtt,
            "replay",
            self._on_message,
            old=True,
            on_acknowledged=self._on_acknowledged,
            on_disconnected=self._on_disconnected,
        )
        self._lost = False
        self._unscored: deque[float] = deque()  # end of each message sent and not yet known as scored
        self._window_s = window_s(sensor)
        self.apart_s = max(APART_S, APART * self._window_s)
        trial = Chunk(np.zeros((sensor.layout.n_channels, 1), np.float32), 1.0, sensor.fs_hz, 0, sensor.id)
        #: Whether this payload format carries times.
        self.tells_time = payloads.decode(payloads.encode(trial, sensor.layout), sensor.layout).t is not None
        self._paced = "speed" if speed is not None else "scores"
        # Milliseconds of the clock: ahead of every earlier replay's numbers unless that sent over 1000/s.
        self._seq = int(time.time() * 1000.0) & 0xFFFFFFFF
        self._next_t = 0.0
        self._from_t, self._to_t = math.inf, -math.inf
        self._began = self._clock_from = time.monotonic()
        self._clock_t: float | None = None
        self.recordings = self.messages = self.samples = 0

    def open(self, before_s: float) -> None:
        """Connect, wait for an agent; recordings without times will begin so many seconds before now."""
        self._connect()
        self._next_t = time.time() - before_s
        if self._speed is None and not self.tells_time:
            self._say(
                f"the messages of {self._sensor.id} carry no times (see payload.header): the agent counts on from "
                "now, so at full speed its times run ahead of the clock\n"
            )

    def _connect(self) -> None:
        self._transport.subscribe([self._score_topic, self._status_topic, self._state_topic])
        self._transport.start()
        self._transport.wait_connected(15.0)
        if self._paced != "scores":
            return
        with self._changed:
            self._changed.wait_for(lambda: self._online or self._lost, ONLINE_S)
        if not self._online:
            self._paced = "broker"
            self._say(f"no agent is online ({self._status_topic}): sending as fast as the broker takes it")

    def close(self) -> None:
        self._transport.stop()

    def send(self, recording: Recording, channel: int | None) -> None:
        """All of one recording."""
        self._settle()
        self.recordings += 1
        with self._changed:
            self._unscored.clear()
            self._scored_t = -math.inf
        self._seq += 1
        self._clock_t = None
        t, fs_hz, untimed = self._next_t, recording.fs_hz, True
        for chunk in recording.chunks():
            if chunk.t is not None:
                t, untimed = chunk.t, False
            samples = _select(recording, chunk, self._sensor, channel)
            n_piece = self._piece(samples.shape[0])
            for first in range(0, samples.shape[1], n_piece):
                piece = samples[:, first : first + n_piece]
                self._send_piece(Chunk(piece, t + first / fs_hz, fs_hz, self._seq & 0xFFFFFFFF, self._sensor.id))
                self._seq += 1
            t += samples.shape[1] / fs_hz
            self._say(
                f"{recording.name}: {self.messages} messages, {self.samples / fs_hz:.0f} s of signal, "
                f"at {rfc3339(t)}"
            )
        if untimed:
            self._next_t = t + self.apart_s

    def finish(self) -> None:
        """Wait until the broker has taken everything, and for the scores of what the agent still has."""
        self._wait(lambda: not self._unacknowledged, 30.0, "the broker does not acknowledge")
        self._settle()
        if self._paced == "scores":
            self._await_last()
        if self._rejected:
            raise TransportError(
                f"the broker rejected {self._rejected} of {self.messages} messages on {self._sensor.topic}: "
                "check its access rules and limits"
            )

    def summary(self) -> dict[str, Any]:
        """What was done."""
        return {
            "sensor": self._sensor.id,
            "recordings": self.recordings,
            "messages": self.messages,
            "samples": self.samples,
            "signal_s": round(self.samples / self._sensor.fs_hz, 3),
            "from": rfc3339(self._from_t) if self.messages else None,
            "to": rfc3339(self._to_t) if self.messages else None,
            "seconds": round(time.monotonic() - self._began, 3),
            "scores": self._scores,
            "paced": self._paced,
        }

    # ---------------------------------------------------------------- pacing

    def _piece(self, n_channels: int) -> int:
        """Samples a message: near MESSAGE_BYTES, and few enough messages a window to be paced by scores."""
        room = self._sensor.max_payload_bytes - 1024
        each = _BYTES.get(self._sensor.layout.format, _TEXT_BYTES) * n_channels
        wanted = max(MESSAGE_BYTES // each, math.ceil(self._window_s * self._sensor.fs_hz / 60.0))
        return max(1, min(wanted, room // each))

    def _send_piece(self, chunk: Chunk) -> None:
        assert chunk.t is not None
        n = chunk.samples.shape[1]
        duration = n / self._sensor.fs_hz
        if self._paced == "scores":
            # Two windows' worth may lie in the agent without having led to a score.
            allowed = min(MAX_MESSAGES - 56, max(32, 2 * math.ceil(self._window_s / duration) + 8))
            self._await_scores(allowed)
        if self._paced in ("speed", "clock"):
            self._await_clock(chunk.t)
        self._wait(lambda: len(self._unacknowledged) < MAX_IN_FLIGHT, 30.0, "the broker does not acknowledge")
        with self._changed:
            self._from_t, self._to_t = min(self._from_t, chunk.t), max(self._to_t, chunk.t + duration)
        if self._known_t is not None and not self.messages and self.tells_time and chunk.t < self._known_t - 0.001:
            self._say(
                f"the agent has windows of {self._sensor.id} up to {rfc3339(self._known_t)}, later than this recording begins "
                f"({rfc3339(chunk.t)}): it takes that for a clock set back, and their times will overlap in its tables. A fresh database keeps "
                "them apart\n"
            )
        token = self._transport.publish(self._sensor.topic, payloads.encode(chunk, self._sensor.layout), qos=1)
        if token is None:
            raise self._broken()
        with self._changed:
            if token in self._early:
                self._early.discard(token)
            else:
                self._unacknowledged.add(token)
            self._unscored.append(chunk.t + duration)
        self.messages += 1
        self.samples += n

    def _await_scores(self, allowed: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not self._lost:
                while self._unscored and self._unscored[0] <= self._scored_t + 0.001:
                    self._unscored.popleft()
                if len(self._unscored) < allowed:
                    return
                heard = self._scores
                self._changed.wait(deadline - time.monotonic())
                if self._scores != heard:
                    deadline = time.monotonic() + PATIENCE_S
                elif time.monotonic() >= deadline:
                    break
        if self._lost:
            raise self._broken()
        self._paced = "clock"
        self._say(
            f"no score on {self._score_topic} for {PATIENCE_S:g} s: does the agent drop these messages (see its "
            "health topic)? Going on in real time\n"
        )

    def _say(self, text: str) -> None:
        if self._progress is not None:
            self._progress(text)

    def _await_clock(self, t: float) -> None:
        now = time.monotonic()
        if self._clock_t is None or t < self._clock_t:
            self._clock_t, self._clock_from = t, now
        wait = self._clock_from + (t - self._clock_t) / (self._speed or 1.0) - now
        if self._speed is None and wait > PAUSE_S:
            self._clock_from -= wait - PAUSE_S
            wait = PAUSE_S
        if wait > 0:
            time.sleep(wait)

    def _settle(self) -> None:
        """Between recordings: let the agent come down to what can give no more score."""
        if self._paced == "scores" and self._scores:
            self._quiet()

    def _quiet(self) -> None:
        deadline = time.monotonic() + 1.0
        with self._changed:
            while self._unscored and self._unscored[-1] - self._window_s > self._scored_t + 0.001:
                heard = self._scores
                self._changed.wait(max(0.0, deadline - time.monotonic()))
                if self._scores != heard:
                    deadline = time.monotonic() + 1.0
                elif time.monotonic() >= deadline or self._lost:
                    return

    def _await_last(self) -> None:
        end = time.monotonic() + LAST_WAIT_S
        with self._changed:
            heard = -1
            while heard != self._scores and not self._lost:
                heard = self._scores
                self._changed.wait_for(
                    lambda: self._scores != heard or self._lost,  # noqa: B023 - called in this round
                    min(LAST_QUIET_S, end - time.monotonic()),
                )

    def _wait(self, ready: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: ready() or self._lost, timeout_s):
                raise TransportError(f"{what} (within {timeout_s:g} s) after {self.messages} messages")
        if self._lost:
            raise self._broken()

    def _broken(self) -> TransportError:
        return TransportError(f"the connection to the broker was lost after {self.messages} messages: start again")

    # ---------------------------------------------------------------- paho's thread

    def _on_message(self, topic: str, payload: bytes, retained: bool) -> None:
        if topic == self._status_topic:
            with self._changed:
                self._online = payload == b"online"
                self._changed.notify_all()
            return
        if topic == self._state_topic:
            state = msgspec.json.decode(payload)
            with self._changed:
                if state.get("window") is not None and not self.messages:
                    self._known_t = parse_time(state["ts"])
            return
        ts = parse_time(msgspec.json.decode(payload)["ts"])
        with self._changed:
            if retained or not self.messages or (self.tells_time and not self._from_t < ts <= self._to_t + 0.001):
                return  # of a window that is not ours
            self._scores += 1
            if self._unscored and ts <= self._unscored[-1] + 0.001:
                self._scored_t = max(self._scored_t, ts)
            self._changed.notify_all()

    def _on_acknowledged(self, token: Token, ok: bool) -> None:
        with self._changed:
            if token in self._unacknowledged:
                self._unacknowledged.discard(token)
            else:
                self._early.add(token)  # faster than `publish` returned
            self._rejected += not ok
            self._changed.notify_all()

    def _on_disconnected(self) -> None:
        with self._changed:
            self._lost = True
            self._changed.notify_all()


def _untimed_s(recordings: Iterator[Recording], apart_s: float) -> float:
    """Seconds that the recordings without times take, with what lies between them; the files are read once."""
    total = 0.0
    for recording in recordings:
        n = 0
        for chunk in recording.chunks():
            if chunk.t is not None:
                break
            n += chunk.samples.shape[1]
        else:
            total += n / recording.fs_hz + apart_s
    return max(0.0, total - apart_s)


def window_s(sensor: SensorConfig) -> float:
    """Seconds from one score to the next at most: the window and its hop."""
    try:
        spec = bundles.read_manifest(installed.model_of(sensor)).features
    except BundleError:
        return 10.0  # replay needs no bundle: it may run on another computer than the agent
    given = sensor.window
    hop_s = spec.hop_samples / spec.fs_hz
    if given is not None and given.hop_s is not None:
        hop_s = given.hop_s
    elif given is not None and given.hop_samples is not None:
        hop_s = given.hop_samples / spec.fs_hz
    return spec.n_samples / spec.fs_hz + hop_s


def _select(recording: Recording, chunk: Chunk, sensor: SensorConfig, channel: int | None) -> Any:
    n, wanted = chunk.samples.shape[0], sensor.layout.n_channels
    if channel is not None:
        if not 0 <= channel < n:
            raise RecordingError(f"{recording.path}: channel {channel} is asked for; expected 0 to {n - 1}")
        if wanted != 1:
            raise RecordingError(
                f"sensor {sensor.id}: its messages hold {wanted} channels (payload.n_channels), so one channel of "
                "a recording cannot fill them: leave --channel out"
            )
        return np.ascontiguousarray(chunk.samples[channel : channel + 1])
    if n != wanted:
        raise RecordingError(
            f"{recording.path} has {n} channel{'s' if n != 1 else ''}, the messages of {sensor.id} hold {wanted} "
            f"(payload.n_channels): {'choose one with --channel N' if wanted == 1 else 'correct one of the two'}"
        )
    return chunk.samples


def capture(config: Config, sensor_id: str, out: Path, for_s: float | None = None) -> int:
    """Write the sensor's messages, as they come, to `out` (suffix .capture); returns how many.

    Ends after `for_s` seconds, or at Ctrl-C where it is None. Retained messages are passed over.
    """
    sensor = config.sensors[sensor_id]
    if out.suffix.lower() != ".capture":
        raise RecordingError(f"{out}: a capture's name ends in .capture, by which replay and fit know it")
    waiting: deque[tuple[float, bytes]] = deque()
    came = threading.Event()

    def on_message(_topic: str, payload: bytes, retained: bool) -> None:
        if not retained:
            waiting.append((time.time(), payload))
            came.set()

    transport = tool(config.mqtt, "capture", on_message)
    transport.subscribe([sensor.topic])
    transport.start()
    n = 0
    try:
        transport.wait_connected(15.0)
        with out.open("wb") as file:
            file.write(header_line(sensor=sensor.id, topic=sensor.topic, layout=sensor.layout, fs_hz=sensor.fs_hz))
            deadline = math.inf if for_s is None else time.monotonic() + for_s
            for received, payload in _until(deadline, waiting, came):
                file.write(message_line(received, payload))
                file.flush()
                n += 1
    except OSError as error:
        raise RecordingError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        transport.stop()
    return n


def _until(
    deadline: float, waiting: deque[tuple[float, bytes]], came: threading.Event
) -> Iterator[tuple[float, bytes]]:
    try:
        while True:
            left = deadline - time.monotonic()
            came.wait(min(1.0, max(0.0, left)))
            came.clear()
            while waiting:
                yield waiting.popleft()
            if left <= 0:
                return
    except KeyboardInterrupt:
        while waiting:
            yield waiting.popleft()


