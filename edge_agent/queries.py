"""Questions to the database for people: status, alarms, history, export. It only reads, beside a running agent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import sqlite_utils
from sqlite_utils.db import Database

from edge_agent import packing, trouble
from edge_agent.episodes import Spell
from edge_agent.errors import StoreError
from edge_agent.signals import parse_time, rfc3339
from edge_agent.store import SCHEMA_VERSION
from edge_agent.trouble import Trouble

#: Alarm states in which somebody should look: not quiet, not silenced.
ACTIVE = ("UNACK", "ACKED", "RTNUN", "LATCHED")

#: Newest rows among which a sensor's last window is looked for by when it was judged: its clock may have been set back.
_RECENT = 20_000

_SCORES = "SELECT sensor, ts, start, seq, score, threshold, ratio, quality, reasons, regime FROM scores"


@contextmanager
def reading(path: Path) -> Iterator[Database]:
    """The database, opened to read; StoreError with the mend where that fails."""
    import sqlite3

    if not path.is_file():
        raise StoreError(
            f"{path}: no such database; the agent makes it when it runs: check `database` in the configuration"
        )
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10.0)
        try:
            version = connection.execute("SELECT version FROM schema_version").fetchone()
            if version is None or version[0] != SCHEMA_VERSION:
                found = None if version is None else version[0]
                raise StoreError(
                    f"{path}: schema version {found}, this version reads {SCHEMA_VERSION}: use the agent's own version"
                )
            yield sqlite_utils.Database(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"{path}: cannot be read ({error}): is this the agent's database?") from error


def status(path: Path, sensors: Sequence[str]) -> list[dict[str, Any]]:
    """One entry a sensor: its alarm and its last window; `active` says whether somebody should look.

    What only the stored state tells (`quality_alarm`, `quality_counts`, `heard`: when its last message came, `commissioning`) is missing
    where that is damaged.
    """
    with reading(path) as db:
        known = {row["sensor"]: row for row in db.query("SELECT * FROM alarm_state")}
        rows = db.query("SELECT sensor, state FROM pipeline_state WHERE state IS NOT NULL")
        states = {row["sensor"]: found for row in rows if (found := _state(row["state"])) is not None}
        answer = []
        for sensor in sensors:
            last = _last_window(db, sensor)
            alarm, state = known.get(sensor, {}), states.get(sensor, _State())
            answer.append(
                {
                    "sensor": sensor,
                    "state": alarm.get("state", "NORM"),
                    "active": alarm.get("state") in ACTIVE,
                    "severity": alarm.get("severity"),
                    "since": alarm.get("since"),
                    "alarm_id": alarm.get("alarm_id"),
                    "shelved_until": alarm.get("shelved_until"),
                    "acked_by": alarm.get("acked_by"),
                    "ts": last.get("ts"),
                    "score": last.get("score"),
                    "threshold": last.get("threshold"),
                    "ratio": last.get("ratio"),
                    "quality": last.get("quality"),
                    "reasons": last.get("reasons"),
                    "regime": last.get("regime"),
                    "quality_alarm": trouble.fields(state.trouble),
                    "quality_counts": state.trouble.counts,
                    "heard": None if state.windower.received is None else rfc3339(state.windower.received + state.windower.stepped),
                    "commissioning": asdict(state.commissioning),
                }
            )
        return answer


def _last_window(db: Database, sensor: str) -> dict[str, Any]:
    recent = f"{_SCORES} WHERE sensor = ? AND id > (SELECT max(id) FROM scores) - {_RECENT} ORDER BY id DESC LIMIT 1"
    for query in (recent, f"{_SCORES} WHERE sensor = ? ORDER BY ts DESC, id DESC LIMIT 1"):
        for row in db.query(query, [sensor]):
            return row
    return {}


@dataclass(frozen=True)
class _Windower:
    received: float | None = None
    stepped: float = 0.0


@dataclass(frozen=True)
class _Commissioning:
    phase: str = "idle"
    percent: int = 0
    reason: str = ""


@dataclass(frozen=True)
class _State:
    """What people are told of a stored state; what a version did not know is as in a new one."""

    trouble: Trouble = field(default_factory=Trouble)
    windower: _Windower = _Windower()
    commissioning: _Commissioning = _Commissioning()


def _state(blob: bytes) -> _State | None:
    """Of a stored state; None where it cannot be read."""
    try:
        return msgspec.convert(msgspec.msgpack.decode(packing.unpack(blob))["state"], _State)
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        return None


def alarms(
    path: Path, sensor: str | None = None, limit: int = 100, since: str | None = None
) -> list[dict[str, Any]]:
    """Alarms of machines, newest first: when each began and ended, its present state, its gravest severity.

    since : those that stand or ended then or later (RFC 3339 UTC), whenever they began
    Events of type `quality` and `notice` stand beside them (`beside`). A shelving over which no alarm was told is not listed.
    """
    with reading(path) as db:
        rows = db.query(
            """
            SELECT alarm_id, first.sensor, first.ts AS since, ended, a.severity, last.state, events,
                   (SELECT verdict FROM verdicts AS v WHERE v.alarm_id = a.alarm_id ORDER BY id DESC LIMIT 1) AS verdict
            FROM (SELECT alarm_id, min(rowid) AS first_id, max(rowid) AS last_id, count(*) AS events,
                         max(CASE WHEN type = 'end' THEN ts END) AS ended,
                         CASE WHEN sum(severity = 'alarm') THEN 'alarm' ELSE 'warning' END AS severity
                  FROM events WHERE (:sensor IS NULL OR sensor = :sensor) AND type IN ('new', 'update', 'end')
                  GROUP BY alarm_id
                  HAVING sum(type = 'new')) AS a
            JOIN events AS first USING (alarm_id) JOIN events AS last USING (alarm_id)
            WHERE first.rowid = first_id AND last.rowid = last_id AND (last.type != 'end' OR last.ts >= :since)
            ORDER BY first_id DESC LIMIT :limit
            """,
            {"sensor": sensor, "limit": limit, "since": since or ""},
        )
        return list(rows)


def beside(
    path: Path, sensor: str | None = None, limit: int = 100, since: str | None = None
) -> list[dict[str, Any]]:
    """What was told beside the machine alarms, newest first: sensor trouble (`quality`) and notices, with its words.

    since : told then or later (RFC 3339 UTC)
    """
    with reading(path) as db:
        rows = db.query(
            "SELECT sensor, ts, type, payload FROM events WHERE type IN ('quality', 'notice') AND ts >= :since"
            " AND (:sensor IS NULL OR sensor = :sensor) ORDER BY rowid DESC LIMIT :limit",
            {"sensor": sensor, "limit": limit, "since": since or ""},
        )
        return [{"sensor": r["sensor"], "ts": r["ts"], "type": r["type"], **_words(r["payload"])} for r in rows]


def _words(payload: str) -> dict[str, Any]:
    event = msgspec.json.decode(payload)
    if notice := event.get("notice"):
        return {"kind": notice["kind"], "text": notice["text"]}
    found = event["quality_alarm"]
    return {"kind": "begins" if found["active"] else "ends", "text": ", ".join(found["reasons"])}


def stood(db: Database, sensor: str, until: str | None = None) -> list[Spell]:
    """When the sensor's alarm stood, by the events that were sent.

    Over a shelving an alarm that stood before and after it stood; one that came meanwhile begins with its end.
    """
    out: list[Spell] = []
    now: Spell | None = None
    rows = db.conn.execute(
        "SELECT type, state, severity, ts FROM events WHERE sensor = ? AND ts <= ? AND type IN ('new', 'update', 'end')"
        " ORDER BY rowid",
        (sensor, until or "~"),
    )
    for kind, state, severity, ts in rows:
        t = parse_time(ts)
        if kind == "end" or state in ("RTNUN", "LATCHED"):
            out += [] if now is None else [replace(now, end=t)]
            now = None
        elif state == "UNACK" and now is None:
            now = Spell(t, None)
        if now is not None and severity == "alarm":
            now = replace(now, severity=severity)
    return out if now is None else [*out, now]


def shelvings(db: Database, sensor: str, until: str | None = None) -> list[tuple[float, float | None]]:
    """From when to when (None: still) the sensor was silenced, s, in order."""
    out: list[tuple[float, float | None]] = []
    begun: float | None = None
    rows = db.conn.execute(
        "SELECT state, ts FROM events WHERE sensor = ? AND ts <= ? AND type IN ('new', 'update', 'end') ORDER BY rowid",
        (sensor, until or "~"),
    )
    for state, ts in rows:
        if state == "SHLVD":
            begun = parse_time(ts) if begun is None else begun
        elif begun is not None:
            out.append((begun, parse_time(ts)))
            begun = None
    return out if begun is None else [*out, (begun, None)]


def labels(path: Path, sensor: str | None = None) -> list[dict[str, Any]]:
    """What people said of alarms, as labels to learn from: sensor, t_start, t_end, label (anomaly, normal), by time.

    One span for each time that the machine was abnormal within the alarm (a latched one may be raised again days later): from
    the start of the window that raised it to the end of the last one at or above its limit, so that neither the delay nor the
    votes of the return are taken for a fault.
    """
    with reading(path) as db:
        judged = db.query(
            """
            SELECT alarm_id, sensor, verdict FROM verdicts AS v
            WHERE id = (SELECT max(id) FROM verdicts AS w WHERE w.alarm_id = v.alarm_id)
              AND (:sensor IS NULL OR sensor = :sensor)
            """,
            {"sensor": sensor},
        )
        found = []
        for row in list(judged):
            label = "anomaly" if row["verdict"] == "true" else "normal"
            for start, raised, returned in _raised(db, row["alarm_id"]):
                (last,) = db.conn.execute(
                    "SELECT max(ts) FROM scores WHERE sensor = ? AND ts >= ? AND ts <= ? AND ratio >= 1",
                    (row["sensor"], raised, returned),
                ).fetchone()
                found.append({"sensor": row["sensor"], "t_start": start, "t_end": last or raised, "label": label})
        return sorted(found, key=lambda span: (span["t_start"], span["sensor"]))


def _raised(db: Database, alarm_id: str) -> list[tuple[str, str, str]]:
    """(start of the window that raised it, when it was raised, when it returned; "~": not yet) for each time."""
    out: list[tuple[str, str, str]] = []
    on: tuple[str, str] | None = None
    rows = db.conn.execute(
        "SELECT state, ts, payload FROM events WHERE alarm_id = ? AND type IN ('new', 'update', 'end') ORDER BY rowid", (alarm_id,)
    )
    for state, ts, payload in rows:
        if state == "UNACK" and on is None:
            window = msgspec.json.decode(payload).get("window") or {}
            on = window.get("start") or ts, ts
        elif state in ("RTNUN", "LATCHED", "NORM") and on is not None:
            out.append((*on, ts))
            on = None
    return out if on is None else [*out, (*on, "~")]


def history(
    path: Path,
    sensor: str | None = None,
    since: str | None = None,
    until: str | None = None,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of `scores`, oldest first; with a limit the newest of them.

    since, until : RFC 3339 UTC with milliseconds, as the rows have it
    """
    where = "WHERE (:sensor IS NULL OR sensor = :sensor) AND ts >= :since AND ts <= :until"
    values = {"sensor": sensor, "since": since or "", "until": until or "~", "limit": limit}
    query = f"{_SCORES} {where} ORDER BY ts, id"
    if limit is not None:
        query = (
            f"SELECT * FROM ({_SCORES} {where} ORDER BY ts DESC, id DESC LIMIT :limit) ORDER BY ts, sensor"
        )
    with reading(path) as db:
        yield from db.query(query, values)


def alarm(path: Path, alarm_id: str) -> dict[str, Any]:
    """One alarm whole: its events as they were sent, and the scores from its first window to its end."""
    with reading(path) as db:
        events = list(
            db.query("SELECT sensor, ts, payload FROM events WHERE alarm_id = ? ORDER BY rowid", [alarm_id])
        )
        if not events:
            raise StoreError(f"{path}: no alarm {alarm_id!r}; `edge-agent alarms` lists those there are")
        sensor, last = events[0]["sensor"], _last(db, alarm_id)
        payload = msgspec.json.decode(events[-1]["payload"])
        going_on = last["type"] in ("new", "update") or payload.get("quality_alarm", {}).get("active", False)
        # A person's command has the receipt clock's time, which may lie before the sensor's.
        end = "~" if going_on else max(event["ts"] for event in events)
        scores = list(
            db.query(
                f"{_SCORES} WHERE sensor = ? AND ts >= ? AND ts <= ? ORDER BY ts, id",
                [sensor, events[0]["ts"], end],
            )
        )
    return {
        "schema": 1,
        "alarm_id": alarm_id,
        "sensor": sensor,
        "state": last["state"],
        "events": [msgspec.json.decode(event["payload"]) for event in events],
        "scores": scores,
    }


def _last(db: Database, alarm_id: str) -> dict[str, Any]:
    query = "SELECT type, state, ts FROM events WHERE alarm_id = ? ORDER BY rowid DESC LIMIT 1"
    row: dict[str, Any] = next(db.query(query, [alarm_id]))
    return row


def shadow_runs(path: Path, bundle: str) -> list[dict[str, Any]]:
    """One entry a sensor beside which `bundle` (NAME/VERSION) was scored, over the time of that run.

    windows, live_windows         : scored by it, and by the live bundle
    shadow_over, live_over        : of these at or above the limit; ..._max_ratio: the largest ratio
    shadow_alarms, live_alarms    : alarms that each began (those of the other bundle were told to nobody)
    compared, agree               : windows that both have scored, and of them on the same side of the limit
    """
    with reading(path) as db:
        return list(
            db.query(
                """
                WITH run AS (
                    SELECT sensor, min(ts) AS since, max(ts) AS until, count(ratio) AS windows, total(ratio >= 1) AS over,
                           max(ratio) AS max_ratio, total(event = 'new') AS alarms
                    FROM shadow_scores WHERE bundle = :bundle GROUP BY sensor),
                live AS (
                    SELECT run.sensor, count(ratio) AS windows, total(ratio >= 1) AS over, max(ratio) AS max_ratio
                    FROM run JOIN scores ON scores.sensor = run.sensor AND ts BETWEEN since AND until GROUP BY run.sensor),
                both AS (
                    SELECT b.sensor, count(*) AS compared, total((a.ratio >= 1) = (b.ratio >= 1)) AS agree
                    FROM shadow_scores AS b JOIN scores AS a ON a.sensor = b.sensor AND a.ts = b.ts
                    WHERE b.bundle = :bundle AND a.ratio IS NOT NULL AND b.ratio IS NOT NULL GROUP BY b.sensor)
                SELECT run.sensor, since, until, run.windows AS windows, ifnull(live.windows, 0) AS live_windows,
                       CAST(run.over AS INTEGER) AS shadow_over, CAST(ifnull(live.over, 0) AS INTEGER) AS live_over,
                       run.max_ratio AS shadow_max_ratio, live.max_ratio AS live_max_ratio,
                       CAST(run.alarms AS INTEGER) AS shadow_alarms,
                       (SELECT count(*) FROM events AS e WHERE e.sensor = run.sensor AND e.type = 'new'
                         AND e.ts BETWEEN since AND until) AS live_alarms,
                       ifnull(compared, 0) AS compared, CAST(ifnull(agree, 0) AS INTEGER) AS agree
                FROM run LEFT JOIN live USING (sensor) LEFT JOIN both USING (sensor) ORDER BY run.sensor
                """,
                {"bundle": bundle},
            )
        )
