"""The broker: what the agent needs of one, and MQTT on paho.

    MqttTransport ── one thread that connects, waits, connects again ── one paho client a connection
        on_message ──► handler(topic, payload, retained)   only enqueues
        PUBACK     ──► on_acknowledged(token, ok)           the outbox marks its row
        CONNACK 0  ──► subscribe all, status "online", on_connected()

paho keeps what it could not send in memory and sends it again by itself after a reconnect. The outbox in
SQLite is the one place that knows what is to be sent again, so every connection gets a fresh client, and
a message handed over while there is no connection is refused instead of queued.
"""

from __future__ import annotations

import logging
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from edge_agent.config import MqttConfig
from edge_agent.errors import TransportError

log = logging.getLogger(__name__)

ONLINE, STOPPED, OFFLINE = "online", "stopped", "offline"
#: How long the broker keeps our subscriptions and QoS 1 messages while we are away.
SESSION_S = 86400
KEEPALIVE_S = 30
#: Shortest and longest wait between two attempts to connect.
BACKOFF_S = (1.0, 60.0)
#: A broker that takes the TCP connection but not the CONNECT is given up on after this. Some 3.1.1
#: brokers (amqtt) meet a CONNECT of MQTT 5 with silence.
CONNACK_S = 4.0
#: Messages handed to paho but not yet written: beyond this the link is stalled and QoS 0 is shed.
MAX_UNWRITTEN = 1000
#: MQTT 5 reason codes (3.1.1 codes are translated to them by paho) that blame the protocol version.
_WRONG_VERSION = (0x84, 0x01)
#: Reason code of a PUBACK: taken, but no subscriber matched.
_NO_SUBSCRIBER = 0x10
#: QoS 1 messages that the broker may have under way to us: beyond this it waits (MQTT 5). The bounded queue
#: of each sensor bounds what was taken.
RECEIVE_MAXIMUM = 64

#: (number of the connection, message id in it): what an acknowledgement refers to.
Token = tuple[int, int]
#: (topic, payload, retained)
Handler = Callable[[str, bytes, bool], None]


class Transport(Protocol):
    """What the agent needs of a broker connection; every method may be called from any thread."""

    def start(self) -> None:
        """Begin to connect; returns at once, whether or not there is a broker."""

    def stop(self, farewell_s: float = 2.0) -> None:
        """Say `stopped`, disconnect, end all threads."""

    def pause(self) -> None:
        """Take no more messages: what arrives is left unacknowledged for the next start."""

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us."""

    def subscribe(self, topics: Iterable[str]) -> None:
        """The literal topics to listen to, instead of those so far."""

    def unsubscribe(self, topic: str) -> None:
        """End a subscription that only the broker remembers, from before a change of configuration."""

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expires_s: int | None = None
    ) -> Token | None:
        """Hand a message over; None where there is no connection and nothing will be sent."""


class _Client(paho.Client):
    """A paho client for one connection, which says when its network thread ends, whatever ended it."""

    def __init__(self, number: int, client_id: str, protocol: MQTTProtocolVersion, clean: bool) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id,
            clean_session=clean if protocol != MQTTProtocolVersion.MQTTv5 else None,
            protocol=protocol,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        self.number = number
        self.answered = threading.Event()
        self.ended = threading.Event()
        self.refusal: ReasonCode | None = None
        self.accepted = False
        self._count = threading.Lock()
        self._unwritten = 0

    def loop_forever(self, timeout: float = 1.0, retry_first_connection: bool = False) -> MQTTErrorCode:
        try:
            return super().loop_forever(timeout, retry_first_connection)
        except Exception as error:  # noqa: BLE001 - whatever it is, it must be told
            # Without this the thread would end in silence and the agent would believe itself connected.
            log.warning("network thread ended by %s: %s; connecting again", type(error).__name__, error)
            return MQTTErrorCode.MQTT_ERR_UNKNOWN
        finally:
            self.ended.set()
            self.answered.set()

    def count(self, change: int) -> int:
        """Messages handed over but not yet written (QoS 0) or acknowledged (QoS 1)."""
        with self._count:
            self._unwritten += change
            return self._unwritten


class MqttTransport:
    """MQTT 5, or 3.1.1 where the broker does not speak 5 (one log line).

    status_topic : retained QoS 1 `online` / `stopped`, and `offline` as the last will; None: no status
    clean        : begin without the broker's memory of us (tools); the agent keeps its session
    chance       : numbers from 0 to 1 that spread the waits between attempts
    old          : have retained messages sent on subscribing, where the broker can be asked not to (MQTT 5)
    Hooks run in paho's thread: they must return at once. Whatever they raise is logged.
    """

    def __init__(
        self,
        mqtt: MqttConfig,
        client_id: str,
        *,
        on_message: Handler,
        on_connected: Callable[[], None] | None = None,
        on_disconnected: Callable[[], None] | None = None,
        on_acknowledged: Callable[[Token, bool], None] | None = None,
        status_topic: str | None = None,
        clean: bool = False,
        old: bool = False,
        keepalive_s: int = KEEPALIVE_S,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._chance = chance
        self._mqtt, self._client_id = mqtt, client_id
        self._handler = on_message
        self._hooks = (on_connected, on_disconnected, on_acknowledged)
        self._status_topic, self._clean, self._keepalive = status_topic, clean, keepalive_s
        self._old = old
        self._topics: frozenset[str] = frozenset()
        self._lock = threading.Lock()  # guards _topics and _live; never held while paho is called
        self._live: _Client | None = None
        self._current: _Client | None = None
        self._accepting = True
        self._stopping = threading.Event()
        self._settled = threading.Event()  # connected, or a problem is known
        self._subscribing: dict[int, tuple[str, ...]] = {}
        self._asking = threading.Lock()  # an answer may come before its number is known here
        self._denied: set[str] = set()
        self._v5 = mqtt.protocol == "5"
        self._proven = False  # whether this protocol version has been accepted once
        self._other_version = False  # try the other one at once
        self._guessed = False  # 3.1.1 because of a silence: the next connection asks again
        self._number = 0
        self._problem: str | None = None
        self._refusing = False
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)

    # ---------------------------------------------------------------- for the agent

    def start(self) -> None:
        """Begin to connect; returns at once, whether or not there is a broker."""
        self._thread.start()

    def stop(self, farewell_s: float = 2.0) -> None:
        """Say `stopped`, disconnect, end all threads; safe to call twice."""
        self._accepting = False
        client = self._live
        if client is not None and self._status_topic and not self._stopping.is_set():
            try:
                info = client.publish(self._status_topic, STOPPED, qos=1, retain=True)
                info.wait_for_publish(farewell_s)
            except (RuntimeError, ValueError):
                log.info("could not say %r to the broker: the connection was lost meanwhile", STOPPED)
        self._stopping.set()
        if (current := self._current) is not None:
            current.disconnect()
            current.ended.wait(farewell_s)
            current.ended.set()
            current.answered.set()
        if self._thread.ident is not None:
            self._thread.join(farewell_s + 1.0)

    def pause(self) -> None:
        """Take no more messages: what arrives is left unacknowledged, and QoS 1 comes again next time."""
        self._accepting = False

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us (reason code 0) and the link was not lost since."""
        return self._live is not None

    @property
    def listening(self) -> bool:
        """Whether, moreover, the broker has answered every subscription: what is published from now on is heard."""
        return self.connected and not self._subscribing

    def wait_connected(self, timeout_s: float) -> None:
        """Block until connected and every subscription is answered; raises TransportError with what is in the way once that is
        known. A broker that answers no subscription is waited for as long, and then gone on with."""
        end = time.monotonic() + timeout_s
        self._settled.wait(timeout_s)
        while self.connected and not self.listening and time.monotonic() < end:
            time.sleep(0.005)
        if not self.connected:
            problem = self._problem or f"no answer within {timeout_s:g} s: is it an MQTT broker?"
            raise TransportError(f"broker {self._where}: {problem}")

    def subscribe(self, topics: Iterable[str]) -> None:
        """The topic filters to listen to, instead of those so far."""
        wanted = frozenset(topics)
        with self._lock:
            old, self._topics, client = self._topics, wanted, self._live
        if client is not None:
            if gone := sorted(old - wanted):
                client.unsubscribe(gone)
            self._subscribe(client, wanted - old)

    def unsubscribe(self, topic: str) -> None:
        """End a subscription that only the broker remembers, from before a change of configuration."""
        if (client := self._live) is not None:
            client.unsubscribe(topic)

    def publish(
        self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, expires_s: int | None = None
    ) -> Token | None:
        """Hand a message over; None where there is no connection (or the link is stalled, QoS 0).

        expires_s : after so many seconds the broker drops it where it has not been delivered (MQTT 5)
        """
        client = self._live
        if client is None:
            return None
        if client.count(+1) > MAX_UNWRITTEN and qos == 0:
            client.count(-1)
            return None
        properties = None
        if expires_s is not None and client.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
            properties.MessageExpiryInterval = expires_s
        info = client.publish(topic, payload, qos=qos, retain=retain, properties=properties)
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            return None
        return client.number, info.mid

    # ---------------------------------------------------------------- the connecting thread

    @property
    def _where(self) -> str:
        return f"{self._mqtt.host}:{self._mqtt.port}"

    def _run(self) -> None:
        delay = BACKOFF_S[0]
        while not self._stopping.is_set():
            try:
                accepted = self._connection()
            except Exception as error:
                log.exception("connecting to %s failed in an unforeseen way", self._where)
                self._lost(str(error))
                accepted = False
            if self._stopping.is_set():
                return
            if accepted:
                delay = BACKOFF_S[0]
            elif self._other_version:
                self._other_version = False
                continue
            self._stopping.wait(spread(delay, self._chance()))
            delay = min(BACKOFF_S[1], delay * 2.0)

    def _connection(self) -> bool:
        """One connection from CONNECT to its end; whether it was accepted."""
        self._number += 1
        version = MQTTProtocolVersion.MQTTv5 if self._v5 else MQTTProtocolVersion.MQTTv311
        client = _Client(self._number, self._client_id, version, self._clean)
        try:
            self._prepare(client)
            client.connect(self._mqtt.host, self._mqtt.port, self._keepalive, **self._connect_options())
        except (OSError, ValueError) as error:
            self._lost(_explain(error, self._mqtt))
            return False
        self._current = client
        client.loop_start()
        client.answered.wait(CONNACK_S)
        if not client.accepted:
            self._refused(client)
            client.disconnect()
            client.loop_stop()
            return False
        client.ended.wait()
        with self._lock:
            self._live = None
        self._settled.clear()
        client.loop_stop()
        if self._guessed:
            # A broker that was killed in the middle of our CONNECT is as silent as one that does not know MQTT 5.
            self._guessed, self._v5, self._proven = False, True, False
        if not self._stopping.is_set():
            self._lost("the connection was lost: is the broker running? Connecting again every 1 to 60 s")
        self._call(self._hooks[1])
        return True

    def _prepare(self, client: _Client) -> None:
        mqtt = self._mqtt
        if mqtt.username is not None:
            client.username_pw_set(mqtt.username, mqtt.password)
        if mqtt.tls is not None:
            client.tls_set(
                ca_certs=str(mqtt.tls.ca) if mqtt.tls.ca else None,
                certfile=str(mqtt.tls.cert) if mqtt.tls.cert else None,
                keyfile=str(mqtt.tls.key) if mqtt.tls.key else None,
            )
        if self._status_topic:
            client.will_set(self._status_topic, OFFLINE, qos=1, retain=True)
        client.connect_timeout = 5.0
        client.on_connect = self._on_connect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe

    def _connect_options(self) -> dict[str, Any]:
        if not self._v5:
            return {}
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
        properties.ReceiveMaximum = RECEIVE_MAXIMUM
        if not self._clean:
            properties.SessionExpiryInterval = SESSION_S
        return {"clean_start": self._clean, "properties": properties}

    def _refused(self, client: _Client) -> None:
        code = client.refusal
        wrong_version = code is None or code.value in _WRONG_VERSION
        if self._mqtt.protocol == "5" and wrong_version and not self._proven:
            # A broker that does not know MQTT 5 may say so or merely hang up: try the other version next.
            self._v5 = not self._v5
            self._guessed = not self._v5 and code is None
            self._other_version = not self._v5
        if self._other_version:
            return
        if code is None:
            ours = self._mqtt.tls is not None
            self._lost(
                "it closed the connection without an answer: is it an MQTT broker, with or without TLS?"
                + (" Does it want a client certificate, or refuse ours (mqtt.tls.cert)?" if ours else "")
            )
        else:
            self._lost(f"it refuses us: {code}; {_refusal_hint(code.value)}", refused=True)

    def _lost(self, problem: str, refused: bool = False) -> None:
        """Said once until it is back; once more where an absent broker returns and then refuses us.

        A tool's first connection is waited for: `wait_connected` tells its problem, once.
        """
        told_elsewhere = self._clean and not self._proven
        news = self._problem is None or refused != self._refusing
        if news and not told_elsewhere and not self._stopping.is_set():
            log.error("broker %s: %s", self._where, problem)
        self._problem, self._refusing = problem, refused
        self._settled.set()

    # ---------------------------------------------------------------- paho's thread

    def _on_connect(self, client: paho.Client, _u: Any, _f: Any, code: ReasonCode, _p: Any) -> None:
        assert isinstance(client, _Client)
        try:
            if code.value != 0:
                client.refusal = code
                return
            client.accepted = True
            with self._lock:
                topics = self._topics
            self._subscribing.clear()
            self._subscribe(client, topics)
            with self._lock:
                self._live, meanwhile = client, self._topics - topics
            self._subscribe(client, meanwhile)
            if not self._proven and self._mqtt.protocol == "5" and not self._v5 and "version" not in self._denied:
                self._denied.add("version")
                log.warning("broker %s does not speak MQTT 5: using 3.1.1", self._where)
            self._proven = True
            log.info("connected to broker %s (MQTT %s)", self._where, "5" if self._v5 else "3.1.1")
            self._problem = None
            if self._status_topic and not self._stopping.is_set():
                client.publish(self._status_topic, ONLINE, qos=1, retain=True)
            self._settled.set()
            self._call(self._hooks[0])
        except Exception:
            log.exception("after connecting to %s", self._where)
        finally:
            client.answered.set()

    def _on_message(self, client: paho.Client, _u: Any, message: paho.MQTTMessage) -> None:
        if not self._accepting:
            return
        try:
            self._handler(message.topic, bytes(message.payload), message.retain)
        except Exception:
            log.exception("a message on %s", message.topic)
        finally:
            if message.qos:
                client.ack(message.mid, message.qos)

    def _on_publish(self, client: paho.Client, _u: Any, mid: int, code: ReasonCode, _p: Any) -> None:
        assert isinstance(client, _Client)
        client.count(-1)
        unheard = self._mqtt.require_subscriber and code is not None and code.value == _NO_SUBSCRIBER
        ok = not unheard and (code is None or code.value < 0x80)
        if unheard:
            self._once("unheard", "nobody subscribes to messages of ours; events wait for somebody (mqtt.require_subscriber)")
        elif not ok:
            self._once(f"publish {code}", f"the broker rejects messages of ours: {code}; check its access rules")
        self._call(self._hooks[2], (client.number, mid), ok)

    def _on_subscribe(self, _c: paho.Client, _u: Any, mid: int, codes: list[ReasonCode], _p: Any) -> None:
        with self._asking:
            topics = self._subscribing.pop(mid, ())
        for topic, code in zip(topics, codes, strict=False):
            if code.value >= 0x80:
                self._once(topic, f"the broker refuses the subscription to {topic}: {code}; check its access rules")

    def _once(self, key: str, text: str) -> None:
        if key not in self._denied:
            self._denied.add(key)
            log.error("broker %s: %s", self._where, text)

    def _subscribe(self, client: _Client, topics: frozenset[str]) -> None:
        if not topics:
            return
        ordered = tuple(sorted(topics))
        # MQTT 3.1.1 knows no expiry: a command that nobody answered must not wait at the broker, which keeps QoS 1 only.
        request: Any = [(topic, 0 if topic == f"{self._mqtt.base}/cmd/+" else 1) for topic in ordered]
        if self._v5:
            handling = (
                SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE if self._old else SubscribeOptions.RETAIN_DO_NOT_SEND
            )
            options = SubscribeOptions(qos=1, retainHandling=handling)
            request = [(topic, options) for topic in ordered]
        with self._asking:
            _, mid = client.subscribe(request)
            if mid is not None:
                self._subscribing[mid] = ordered

    def _call(self, hook: Callable[..., None] | None, *args: Any) -> None:
        if hook is None:
            return
        try:
            hook(*args)
        except Exception:
            log.exception("in a hook of the transport")


def spread(delay_s: float, chance: float) -> float:
    """Half to the whole of the delay: a hundred agents do not return to a restarted broker in one second."""
    return delay_s * (0.5 + 0.5 * chance)


def probe(mqtt: MqttConfig, timeout_s: float = 10.0) -> None:
    """Connect once and leave again; raises TransportError with what is wrong and how to mend it."""
    transport = tool(mqtt, "check", lambda _t, _p, _r: None)
    try:
        transport.start()
        transport.wait_connected(timeout_s)
    finally:
        transport.stop()


def tool(mqtt: MqttConfig, name: str, on_message: Handler, **hooks: Any) -> MqttTransport:
    """A transport for a command of a person: its own client id, no status, no memory at the broker."""
    client_id = f"edge-{name}-{random.SystemRandom().randrange(36**6):x}"
    return MqttTransport(mqtt, client_id, on_message=on_message, clean=True, **hooks)


_ISSUER = "is signed by an authority that is not trusted", "mqtt.tls.ca must name the authority that signed it"
_SELF_SIGNED = "is self-signed", "have it signed by the authority in mqtt.tls.ca, or name the broker's own authority there"
_HOST = "is for another host", "mqtt.host must be a name or address that the certificate was made for"
#: What OpenSSL's verification codes (X509_V_ERR_...) mean for a person: what is wrong, how to mend it.
_CERTIFICATE = {
    9: ("is not valid yet", "is this device's clock right? A board without a battery starts in the past"),
    10: ("has expired", "renew the broker's certificate; or this device's clock is wrong"),
    18: _SELF_SIGNED,
    19: _SELF_SIGNED,
    20: _ISSUER,
    21: _ISSUER,
    62: _HOST,
    64: _HOST,
}


def _explain(error: Exception, mqtt: MqttConfig) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        what, mend = _CERTIFICATE.get(error.verify_code, ("is not trusted", "check mqtt.tls.ca and mqtt.host"))
        return f"its certificate {what} ({error.verify_message}): {mend}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or error}): check mqtt.port and mqtt.tls"
    if isinstance(error, socket.gaierror):
        return f"the host name is unknown ({error.strerror}): correct mqtt.host, or mend the name service"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there: start the broker, or correct mqtt.host and mqtt.port"
    if isinstance(error, ConnectionResetError):
        return "it closed the connection at once: does it want TLS, or want none? Check mqtt.port and mqtt.tls"
    if isinstance(error, TimeoutError):
        return "it does not answer: check the network, mqtt.host and mqtt.port"
    if isinstance(error, FileNotFoundError) and mqtt.tls is not None:
        return f"a file of mqtt.tls is missing ({error.filename or 'ca, cert or key'}): correct its path"
    return f"{error}: check mqtt.host and mqtt.port"


def _refusal_hint(code: int) -> str:
    return {
        0x84: "set mqtt.protocol to the version that it speaks",
        0x85: "choose another mqtt.client_id",
        0x86: "correct mqtt.username and mqtt.password",
        0x87: "correct mqtt.username and mqtt.password, or allow this user in the broker's access rules",
        0x88: "it is unavailable; trying again",
        0x89: "it is busy; trying again",
    }.get(code, "see the broker's log")
