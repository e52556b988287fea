"""Commands of people over MQTT: `{base}/cmd/{name}` in, `{base}/cmd/{name}/result` out. Pure.

    {"request_id": "42", "sensor": "pump-1-de", "by": "anna", "why": "seen", "for_s": 3600}
    {"request_id": "42", "ok": true, "message": "pump-1-de: ACKED"}
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from edge_agent.alarms import COMMANDS
from edge_agent.signals import parse_time

#: Longer than any machine stands; a whole number of any size fits in JSON.
MAX_FOR_S = 1e12
NAMES = (*COMMANDS, "commission", "verdict", "reload", "resend")


@dataclass(frozen=True)
class Command:
    """One command, checked. since_t, event_id, alarm_id: of resend; t in s of event time. action, windows, healthy: of
    commission. alarm_id, true: of verdict."""

    name: str
    request_id: str | int | None = None
    sensor: str | None = None
    by: str | None = None
    why: str | None = None
    for_s: float | None = None
    since_t: float | None = None
    event_id: str | None = None
    alarm_id: str | None = None
    action: str | None = None
    windows: int | None = None
    healthy: bool = False
    true: bool = False


class Unusable(Exception):  # noqa: N818 - becomes an answer
    """A command that cannot be carried out; `request_id` is that of the message where it has one."""

    def __init__(self, message: str, request_id: str | int | None = None) -> None:
        super().__init__(message)
        self.request_id = request_id


def parse(name: str, payload: bytes) -> Command:
    """Raises Unusable with what came and what was expected; unknown fields are ignored."""
    if len(payload) > 65536:
        raise Unusable(f"command {name} has {len(payload)} bytes; expected at most 65536")
    try:
        fields = msgspec.json.decode(payload) if payload.strip() else {}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"command {name} is not JSON ({error}); expected an object") from None
    if not isinstance(fields, dict):
        raise Unusable(f"command {name} is a JSON {type(fields).__name__}; expected an object")
    request_id = fields.get("request_id")
    if isinstance(request_id, bool) or not isinstance(request_id, (str, int, type(None))):
        raise Unusable(f"request_id is a {type(request_id).__name__}; expected text or a whole number")
    if isinstance(request_id, int) and not abs(request_id) < 2**63:
        raise Unusable("request_id has more than 63 bits, which no answer can carry; expected text or a smaller number")
    if name not in NAMES:
        raise Unusable(f"unknown command {name!r}; known: {', '.join(NAMES)}", request_id)
    for key in ("sensor", "by", "why", "event_id", "alarm_id", "action"):
        if not isinstance(fields.get(key), (str, type(None))):
            raise Unusable(f"{key} is {str(fields[key])[:60]}; expected text", request_id)
        if len(fields.get(key) or "") > 1000:
            raise Unusable(f"{key} has {len(fields[key])} characters; expected at most 1000", request_id)
    for_s = fields.get("for_s")
    if for_s is not None and (
        isinstance(for_s, bool) or not isinstance(for_s, (int, float)) or not abs(for_s) < MAX_FOR_S
    ):
        raise Unusable(f"for_s is {str(for_s)[:60]!r}; expected seconds", request_id)
    windows = fields.get("windows")
    if windows is not None and (isinstance(windows, bool) or not isinstance(windows, int) or not 0 < windows < 10**9):
        raise Unusable(f"windows is {str(windows)[:60]}; expected a whole number above 0", request_id)
    if not isinstance(fields.get("healthy"), (bool, type(None))):
        raise Unusable(f"healthy is {str(fields['healthy'])[:60]}; expected true or false", request_id)
    since = fields.get("since")
    try:
        since_t = None if since is None else parse_time(since)
    except ValueError as error:
        raise Unusable(f"since: {error}", request_id) from None
    if name in (*COMMANDS, "commission") and fields.get("sensor") is None:
        raise Unusable(f"{name} needs a sensor: add \"sensor\": \"...\"", request_id)
    verdict = {"true": True, "false": False}.get(str(fields.get("verdict")).lower())
    if name == "verdict" and (verdict is None or not fields.get("alarm_id")):
        came = f"alarm_id {fields.get('alarm_id')!r}, verdict {str(fields.get('verdict'))[:60]!r}"
        raise Unusable(f"verdict needs an alarm and what it was: got {came}; expected an alarm_id, and true or false", request_id)
    return Command(
        name,
        request_id,
        fields.get("sensor"),
        fields.get("by"),
        fields.get("why"),
        None if for_s is None else float(for_s),
        since_t,
        fields.get("event_id"),
        fields.get("alarm_id"),
        fields.get("action"),
        windows,
        bool(fields.get("healthy")),
        bool(verdict),
    )


def result(request_id: str | int | None, ok: bool, message: str) -> bytes:
    """The answer's payload."""
    return msgspec.json.encode({"schema": 1, "request_id": request_id, "ok": ok, "message": message})
