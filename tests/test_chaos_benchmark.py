"""What `make chaos` and `make bytes` break, count and judge by."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from conftest import until

from benchmarks import chaos
from benchmarks._faulty import Ear, Link, Watch
from benchmarks.bounds import BYTES, CHAOS
from benchmarks.bytes_written import counted

WELL: dict[str, Any] = {
    "lost": 0, "invented": 0, "doubled_rows": 0, "missing": 10, "missing_at_most": 100, "engine": 4000, "events_while_down": 300,
}  # fmt: skip


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve(near: socket.socket) -> None:
        while data := near.recv(100):
            near.sendall(data)
        near.close()

    def accept() -> None:
        while True:
            try:
                near, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(near,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


def test_a_deaf_link_passes_nothing_and_loses_its_connections(echo: int) -> None:
    """Cut deaf, a connection stays and hears nothing; mended, it ends without what was sent meanwhile, and a new one passes."""
    link = Link(echo)
    with socket.create_connection(("127.0.0.1", link.port), 5) as near:
        near.sendall(b"one")
        assert near.recv(10) == b"one"
        link.cut(silent=True)
        near.sendall(b"two")
        near.settimeout(0.3)
        with pytest.raises(TimeoutError):
            near.recv(10)
        link.mend()
        near.settimeout(5)
        assert near.recv(10) == b""
    with socket.create_connection(("127.0.0.1", link.port), 5) as near:
        near.sendall(b"three")
        assert near.recv(10) == b"three"
    link.close()


def test_a_refusing_link_ends_what_there_is_and_takes_nothing_new(echo: int) -> None:
    """Cut, the connection ends at once, and a new one ends before it has passed a byte."""
    link = Link(echo)
    with socket.create_connection(("127.0.0.1", link.port), 5) as near:
        near.sendall(b"one")
        assert near.recv(10) == b"one"
        link.cut(silent=False)
        assert near.recv(10) == b""
    with socket.create_connection(("127.0.0.1", link.port), 5) as near:
        assert near.recv(10) == b""
    link.close()


def test_the_agent_counts_as_down_from_a_fault_to_its_next_connection(tmp_path: Path) -> None:
    """A line of before the fault does not end it; the next one does."""
    log = tmp_path / "log"
    watch = Watch(log)
    log.write_text("connected to broker\n")
    until(lambda: watch.up)
    with log.open("a") as file:
        file.write("connected to broker again, just before the fault\n")
    broke = time.time()
    watch.broke()
    time.sleep(0.2)
    assert not watch.up
    with log.open("a") as file:
        file.write("connected to broker\n")
    until(lambda: watch.up)
    watch.stop()
    begin, end = watch.down[-1]
    assert broke <= begin < end
    assert chaos.within(begin + 0.1, watch.down)
    assert not chaos.within(begin - 0.01, watch.down[1:])
    assert not chaos.within(end + 0.01, watch.down)


def test_a_seed_draws_the_same_faults() -> None:
    """200 kills of both kinds and 20 cuts of both kinds, in order of time, the same for the same seed."""
    faults = chaos.plan(Random(5), 1200.0, CHAOS["kills"], CHAOS["cuts"])
    assert faults == chaos.plan(Random(5), 1200.0, CHAOS["kills"], CHAOS["cuts"])
    kinds = [what for _, what in faults]
    assert kinds.count("agent") + kinds.count("broker") == 200
    assert kinds.count("refused") + kinds.count("deaf") == 20
    assert set(kinds) == {"agent", "broker", "refused", "deaf"}
    assert faults == sorted(faults)
    assert 0.0 < faults[0][0] < faults[-1][0] < 1200.0


def test_an_ear_holds_repetitions_to_the_first_text() -> None:
    """The same event heard twice may differ in `late` alone; any other difference is a second text of it."""
    ear = Ear()
    ear("edge/b/s/m/event", b'{"event_id": "E", "late": false, "ratio": 1}')
    ear("edge/b/s/m/event", b'{"event_id": "E", "late": true, "ratio": 1}')
    assert (ear.times, len(ear.texts["E"]), ear.late) == ({"E": 2}, 1, {"E"})
    ear("edge/b/s/m/event", b'{"event_id": "E", "late": true, "ratio": 2}')
    assert len(ear.texts["E"]) == 2


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lost": 1}, "lost is 1"),
        ({"invented": 2}, "invented is 2"),
        ({"doubled_rows": 3}, "doubled_rows is 3"),
        ({"missing": 101}, "101 windows are missing, at most 100"),
        ({"events_while_down": 199}, "199 events fell"),
        ({"engine": 0}, "nothing was tried"),
    ],
)
def test_each_bound_is_held(change: dict[str, int], says: str) -> None:
    """A figure beyond its bound is named; those of a good run miss nothing."""
    assert chaos.missed(WELL, 20.0) == []
    assert any(says in line for line in chaos.missed({**WELL, **change}, 20.0))


def test_bytes_of_interrupted_calls_are_counted_once() -> None:
    """Writes that end in one line or two count by file; what failed or was read does not."""
    trace = """\
11 pwrite64(7</d/agent.db-wal>, ""..., 1048, 4096) = 1048
12 pwrite64(7</d/agent.db>, ""..., 1024, 0 <unfinished ...>
11 write(2</d/log>, ""..., 30) = 30
12 <... pwrite64 resumed>) = 1024
11 pwrite64(7</d/agent.db-wal>, ""..., 1048, 8192) = -1 ENOSPC (No space left on device)
11 pwrite64(7</d/agent.db-wal>, ""..., 24, 8192) = 24
""".splitlines()
    assert counted(trace) == {"/d/agent.db-wal": 1072, "/d/agent.db": 1024, "/d/log": 30}


def test_the_bounds_are_those_of_the_issue() -> None:
    """20 minutes, 200 kills, 20 cuts, 200 events while down; half a KiB a window over ten thousand at 20 a second."""
    assert CHAOS == {"minutes": 20.0, "kills": 200, "cuts": 20, "s_per_kill": 5.0, "events_while_down": 200}
    assert BYTES == {"windows": 10_000, "per_s": 20.0, "per_window": 512.0}
