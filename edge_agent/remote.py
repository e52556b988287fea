"""Commands to a running agent from the command line: over MQTT, with its answer."""

from __future__ import annotations

import math
import secrets
import threading
from typing import Any

import msgspec

from edge_agent.config import Config
from edge_agent.transport import tool


def command(
    config: Config,
    name: str,
    sensor: str | None,
    by: str | None,
    why: str | None,
    for_s: float | None,
    timeout_s: float = 10.0,
    **more: Any,
) -> tuple[bool, str]:
    """Publish the command, `more` its own fields, and wait for the agent's answer: (whether it was carried out, its words).

    Raises TransportError where the broker cannot be reached.
    """
    answer = ask(config, name, {"sensor": sensor, "by": by, "why": why, "for_s": for_s, **more}, timeout_s)
    if answer is None:
        where = f"{config.mqtt.host}:{config.mqtt.port}"
        return False, (
            f"no answer within {timeout_s:g} s: is the agent {config.agent_id!r} running on the broker {where}?"
        )
    return answer


def ask(config: Config, name: str, fields: dict[str, Any], timeout_s: float) -> tuple[bool, str] | None:
    """The same with any fields; None where no answer came within the time."""
    base = config.mqtt.base
    request_id = secrets.token_hex(8)
    answers: list[dict[str, Any]] = []
    answered = threading.Event()

    def on_message(_topic: str, payload: bytes, _retained: bool) -> None:
        answer = msgspec.json.decode(payload)
        if isinstance(answer, dict) and answer.get("request_id") == request_id:
            answers.append(answer)
            answered.set()

    asked = {"request_id": request_id, **fields}
    transport = tool(config.mqtt, "command", on_message)
    transport.subscribe([f"{base}/cmd/{name}/result"])
    transport.start()
    try:
        transport.wait_connected(timeout_s)
        payload = msgspec.json.encode({k: v for k, v in asked.items() if v is not None})
        # A command that nobody answered has failed: an agent that comes back later must not carry it out. Brokers count whole
        # seconds, and the agent needs some of them to answer.
        transport.publish(f"{base}/cmd/{name}", payload, qos=1, expires_s=max(1, math.floor(timeout_s) - 2))
        if not answered.wait(timeout_s):
            return None
    finally:
        transport.stop()
    return bool(answers[0].get("ok")), str(answers[0].get("message", ""))
