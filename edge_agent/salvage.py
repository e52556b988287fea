"""What is done where the database cannot be gone on with: read what is readable, set it aside, begin anew.

    agent.db (damaged) ─► agent.db.damaged-20261126T110320Z      nothing of it is deleted
         │ rows that can still be read
         ▼
    agent.db.fresh ◄─ states and events of memory                 one rename away from being the database
         └──────────► agent.db

The fresh database is whole before the old one is moved: a kill at any moment leaves one of the two.
"""

from __future__ import annotations

import json
import logging
import mmap
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_agent import host, packing
from edge_agent.errors import DamagedStoreError, FullStoreError, StoreError, UnwritableStoreError
from edge_agent.signals import parse_time, rfc3339
from edge_agent.store import OutboxRow, Record, Store

log = logging.getLogger(__name__)

#: Rowids in a row that cannot be read until a table is given up; a damaged page of 2 KiB holds far fewer.
MAX_MISSES = 4096
_COLUMNS = {
    "events": ("event_id", "alarm_id", "sensor", "type", "state", "severity", "ts", "payload"),
    "outbox": ("event_id", "topic", "payload", "qos", "retain", "created", "sent"),
    "alarm_state": (
        "sensor", "alarm_id", "state", "severity", "since", "shelved_until", "acked_by", "ack_why",
    ),
    "pipeline_state": ("sensor", "ts", "state"),
    "verdicts": ("id", "alarm_id", "sensor", "verdict", '"by"', "why", "ts"),
}  # fmt: skip

#: Beside the tables: events that no readable row holds.
_CARVED = "carved"

_Row = tuple[Any, ...]
#: Place in the order that is known, before (-1) or behind (1) it, beginning and identity of the alarm, place in it, time.
_Key = tuple[int, int, str, str, int, str]

#: What every event's text begins with, and the most that one has.
_BEGINNING, MAX_EVENT_BYTES = b'{"schema":1,"type":"', 16384
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Begun:
    """What a start found. store: None where the disk cannot be written; trouble: why, or what was set aside."""

    store: Store | None
    trouble: str | None = None
    set_aside: Path | None = None


def begin(path: Path, base: str, t: float) -> Begun:
    """Open the database for an agent that starts at t (receipt clock, s).

    A damaged one is set aside. Where the disk may only be read, or is full, the agent starts without: see
    `peek`. Raises StoreError where a person has to act: another program's file, a newer version's, no folder.
    """
    fresh = _fresh(path)
    try:
        if fresh.exists() and not path.exists():
            fresh.rename(path)  # killed between the two renames of an earlier `replace`
        return Begun(Store.open(path))
    except DamagedStoreError as error:
        aside = replace(path, base, None, (), (), t)
        return Begun(Store.open(path), f"{error}; set aside as {aside.name if aside else None}", aside)
    except UnwritableStoreError as error:
        if not isinstance(error, FullStoreError) and not path.is_file():
            raise
        return Begun(None, str(error))


def peek(path: Path, live: bool = False) -> Store | None:
    """A store that only reads, of a database on a disk that cannot be written, or beside who writes it (`live`); None where that
    fails too."""
    # Without a journal the file is whole by itself, and a disk that may only be read takes no lock files.
    journal = path.with_name(path.name + "-wal")
    whole = not journal.exists() or journal.stat().st_size == 0
    for options in ("mode=ro",) if live else ("mode=ro&immutable=1",) if whole else ("mode=ro", "mode=ro&immutable=1"):
        db = None
        try:
            db = sqlite3.connect(
                f"{path.absolute().as_uri()}?{options}", uri=True, isolation_level=None, check_same_thread=False
            )
            db.execute("SELECT count(*) FROM pipeline_state").fetchone()
        except sqlite3.Error as error:
            log.warning("%s: cannot be read with %s (%s)", path, options, error)
            if db is not None:
                db.close()
        else:
            return Store(db, path)
    return None


def replace(
    path: Path, base: str, old: Store | None, records: Sequence[Record], unsent: Sequence[OutboxRow], t: float
) -> Path | None:
    """Set the database aside and put a fresh one in its place; returns the old one's new name, None where it is gone.

    base    : the topic above the agent's own, under which events are published
    old     : the open store; closed here. None: the file is read as far as it can be
    records : rows, events and states of memory, written into the fresh one
    unsent  : events that memory knows to be unacknowledged; queued where the old database no longer tells
    Raises StoreError where that fails; the old file is in its place then, or nothing is.
    """
    fresh = _fresh(path)
    try:
        _remove(fresh)
        if not (old is not None and old.gone() and _copied(old, fresh)):
            found = _read(path) if old is None or not old.gone() else {}
            with closing(Store.open(fresh)) as store:
                _adopt(store, found, base)
        with closing(Store.open(fresh)) as store:
            store.write(records)
            store.adopt("events", _COLUMNS["events"], [_event_row(row.payload) for row in unsent])
            store.queue_again(unsent)
        if old is not None:
            # Before the renames: closing deletes the journal by its name.
            try:
                old.close()
            except StoreError as error:
                log.warning("%s", error)
        aside = _set_aside(path, t)
        fresh.rename(path)
        host.sync_folder(path.parent)
    except OSError as error:
        raise StoreError(f"{path}: cannot be replaced ({error.strerror}): check its folder and the disk") from error
    log.error(
        "%s: a new database was begun with the states of memory%s",
        path,
        "" if aside is None else f"; the old one is kept as {aside}: `sqlite3 {aside} .recover` yields what is left",
    )
    return aside


def _fresh(path: Path) -> Path:
    return path.with_name(path.name + ".fresh")


def _beside(path: Path) -> tuple[Path, ...]:
    return tuple(path.with_name(path.name + end) for end in ("", "-wal", "-shm"))


def _remove(path: Path) -> None:
    for name in _beside(path):
        name.unlink(missing_ok=True)


def _set_aside(path: Path, t: float) -> Path | None:
    stamp = rfc3339(t)[:19].replace("-", "").replace(":", "") + "Z"
    aside = path.with_name(f"{path.name}.damaged-{stamp}")
    n = 1
    while aside.exists():
        n += 1
        aside = path.with_name(f"{path.name}.damaged-{stamp}-{n}")
    there = path.exists()
    for name, new in zip(_beside(path), _beside(aside), strict=True):
        if name.exists():
            name.rename(new)
    return aside if there else None


def _copied(old: Store, fresh: Path) -> bool:
    try:
        old.copy_to(fresh)
        # A copy of what is damaged is damaged.
        Store.open(fresh).close()
    except StoreError as error:
        log.warning("the old database cannot be copied whole: %s", error)
        _remove(fresh)
        return False
    return True


def _read(path: Path) -> dict[str, tuple[list[_Row], bool]]:
    """Table -> the rows that can still be read, in the order they were written, and whether those are all.

    Those of `_CARVED` are in no order.
    """
    if not path.is_file():
        return {}
    found: dict[str, tuple[list[_Row], bool]] = dict.fromkeys(_COLUMNS, ([], False))
    try:
        with closing(sqlite3.connect(path, timeout=10.0, isolation_level=None)) as db:
            found = {table: _rows(db, table, columns) for table, columns in _COLUMNS.items()}
    except sqlite3.Error as error:
        log.warning("%s: its tables cannot be read (%s)", path, error)
    if not (found["events"][1] and found["outbox"][1]):
        known = {row[0] for row in found["events"][0]}
        carved = [row for file in _beside(path)[:2] for row in _carve(file) if row[0] not in known]
        found[_CARVED] = [*{row[0]: row for row in carved}.values()], False
    return found


def _carve(path: Path) -> Iterator[_Row]:
    """Events whose text stands whole in the bytes of the file, whatever has become of the tree above them."""
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = data.find(_BEGINNING)
        while at >= 0:
            try:
                text = data[at : at + MAX_EVENT_BYTES].decode("utf-8", "replace")
                payload = text[: _DECODER.raw_decode(text)[1]]
                row = _event_row(payload)
                if _sound("events", row):
                    yield row
            except (json.JSONDecodeError, AttributeError):
                log.debug("%s: the event at byte %d is cut off", path, at)
            at = data.find(_BEGINNING, at + 1)


def _rows(db: sqlite3.Connection, table: str, columns: Sequence[str]) -> tuple[list[_Row], bool]:
    # By rowid and past what fails: a damaged page takes its own rows with it, not those behind it.
    query = f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED WHERE rowid > ? ORDER BY rowid"
    found: list[_Row] = []
    after = misses = 0
    whole = True
    while misses <= MAX_MISSES:
        try:
            for row in db.execute(query, (after,)):
                found.append(tuple(row[1:]))
                after, misses = row[0], 0
        except sqlite3.Error:
            whole = False
            misses += 1
            after += 1
        else:
            return found, whole
    return found, False


def _adopt(store: Store, found: dict[str, tuple[list[_Row], bool]], base: str) -> None:
    sound = {table: [row for row in rows if _sound(table, row)] for table, (rows, _) in found.items()}
    outbox, carved = sound.get("outbox", []), sound.pop(_CARVED, [])
    queued = {row[0] for row in outbox}
    # Whatever one of the two tables has lost is in the other.
    sent = [row for row in (_event_row(row[2]) for row in outbox) if _sound("events", row)]
    events = _in_order(sound.get("events", []), sent, carved)
    for table, rows in {**sound, "events": events}.items():
        store.adopt(table, _COLUMNS[table], rows)
    if "outbox" in found and not found["outbox"][1]:
        # Whether these were sent was written where nothing can be read: twice is allowed, never is not.
        store.queue_again(
            [
                OutboxRow(0, row[0], f"{base}/s/{row[2]}/event", row[7], 1, False, parse_time(row[6]))
                for row in events
                if row[0] not in queued
            ]
        )


def _in_order(events: Sequence[_Row], sent: Sequence[_Row], carved: Sequence[_Row]) -> list[_Row]:
    """All events, each once, as they came one after another; all arguments are rows of `events`.

    events, sent : of the tables `events` and `outbox`, each in the order it was written
    carved       : in no order; each is put where its alarm stands
    Times tell no order: a person's command has the receipt clock's, a window its sensor's, and one of them may be hours off.
    """
    known, apart = _merged(events, sent)
    there = {row[0] for row in known}
    loose = {row[0]: row for row in (*carved, *apart) if row[0] not in there}
    if not loose:
        return known
    keys: dict[str, _Key] = {row[0]: (n, 0, "", "", 0, "") for n, row in enumerate(known)}
    own, lost = _by(1, known), _by(1, loose.values())
    beginnings = _by(2, (row for row in known if row[3] not in ("update", "end")))
    for alarm_id, group in lost.items():
        begun = min((_rank(row), row[6]) for row in group)[1]
        if alarm_id in own:
            places: list[tuple[_Row | None, int]] = [_place(row, own[alarm_id]) for row in group]
        else:
            later = next((row for row in beginnings.get(group[0][2], ()) if row[6] > begun), None)
            places = [(later, -1)] * len(group)
        for row, (at, side) in zip(group, places, strict=True):
            n = len(known) if at is None else keys[at[0]][0]
            keys[row[0]] = n, side, begun, str(alarm_id), _rank(row), row[6]
    return sorted((*known, *loose.values()), key=lambda row: keys[row[0]])


def _merged(events: Sequence[_Row], sent: Sequence[_Row]) -> tuple[list[_Row], list[_Row]]:
    """The events, with those that only `sent` has behind the one that they follow there; and those without any place, which are
    all of them where the two have no event in common."""
    there = {row[0] for row in events}
    missing: dict[str | None, list[_Row]] = {}
    anchors = [row[0] for row in sent if row[0] in there]
    anchor, seen = None, set(there)
    for row in sent:
        anchor = row[0] if row[0] in there else anchor
        if row[0] not in seen:  # sent again it stands in the outbox twice
            missing.setdefault(anchor, []).append(row)
            seen.add(row[0])
    first = missing.pop(None, [])
    if not events:
        return first, []
    out: list[_Row] = []
    for row in events:
        out += first if anchors and row[0] == anchors[0] else []
        out += [row, *missing.get(row[0], [])]
    return out, [] if anchors else first


def _place(row: _Row, own: Sequence[_Row]) -> tuple[_Row | None, int]:
    """Where a lost event of an alarm belongs among those it has (`own`, in order): one of them, and -1 for before it, 1 for behind."""
    if row[3] == "new":
        return own[0], -1
    later = next((other for other in own if other[3] == "end" or (other[3] != "new" and other[6] > row[6])), None)
    return (own[-1], 1) if later is None or row[3] == "end" else (later, -1)


def _rank(row: _Row) -> int:
    """An alarm begins with its `new` and ends with its `end`, whatever their times say."""
    return {"new": 0, "end": 2}.get(row[3], 1)


def _by(column: int, rows: Iterable[_Row]) -> dict[str, list[_Row]]:
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups


def _event_row(payload: str) -> _Row:
    fields = msgspec.json.decode(payload)
    return (*(fields.get(name) for name in _COLUMNS["events"][:-1]), payload)


def _sound(table: str, row: _Row) -> bool:
    """Whether a row of a damaged file says what such a row says."""
    try:
        if table == "pipeline_state":
            packing.unpack(row[2])
            parse_time(row[1])
            return isinstance(row[0], str) and isinstance(row[2], bytes)
        if table == "verdicts":
            return row[3] in ("true", "false") and all(isinstance(row[i], str) for i in (1, 2, 6))
        if table == "alarm_state":
            return isinstance(row[0], str) and isinstance(row[2], str)
        text, t = (row[7], row[6]) if table in ("events", _CARVED) else (row[2], row[5])
        parse_time(t)
        return bool(msgspec.json.decode(text)["event_id"] == row[0])
    except (msgspec.DecodeError, TypeError, KeyError, ValueError):
        return False
