"""An event's way to those who listen: nobody there, somebody later, two agents, a flood, a long wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, message, write_plant
from conftest import Broker, Listener, mqtt_config, needs_mosquitto, until

from edge_agent import inbox, keeper, transport
from edge_agent.inbox import Inbox

Listen = Callable[..., Listener]


def raise_alarm(ear: Listener, topic: str = "plant/a", first: int = 0) -> None:
    """Six loud windows."""
    for seq in range(first, first + 6):
        ear.publish(topic, message(seq, 1.5))


@needs_mosquitto
@pytest.mark.parametrize("required", [True, False])
def test_an_event_that_nobody_subscribes_to_waits_where_that_is_asked_for(
    tmp_path: Path, broker: Broker, listen: Listen, monkeypatch: pytest.MonkeyPatch, required: bool
) -> None:
    """With `mqtt.require_subscriber` reason code 0x10 leaves an event unsent until somebody listens; without it, it is sent."""
    monkeypatch.setattr(keeper, "REFUSED_S", 0.3)
    path = write_plant(tmp_path, broker.port, mqtt={"require_subscriber": required})
    ear = listen("edge/t/s/a/score", "edge/t/status")
    with Agent(path) as agent:
        ear.wait("edge/t/status")
        raise_alarm(ear)
        until(lambda: agent.rows("SELECT 1 FROM outbox"), what="the event in the outbox")
        unsent = "SELECT count(*) FROM outbox WHERE sent IS NULL"
        if not required:
            until(lambda: agent.rows(unsent) == [(0,)], what="the acknowledgement")
            return
        until(lambda: agent.daemon._keeper._held, what="the refusal")
        assert agent.rows(unsent) == [(1,)]
        late = listen("edge/t/s/+/event")
        (event,) = late.wait("edge/t/s/a/event")
        until(lambda: agent.rows(unsent) == [(0,)], what="the acknowledgement")
        assert json.loads(event)["late"] is True
        assert (json.loads(event)["event_id"],) == agent.rows("SELECT event_id FROM events")[0]


def test_two_agents_on_one_broker_do_not_touch_each_other(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """Two agents with the same sensor on the same topic each tell their own alarm, and one that ends disturbs no other."""
    ear = listen("edge/#")
    paths = {}
    for name in ("t", "u"):
        (folder := tmp_path / name).mkdir()
        paths[name] = write_plant(folder, broker.port, agent={"id": name})
    with Agent(paths["u"]) as other:
        with Agent(paths["t"]):
            for name in paths:
                until(lambda name=name: b"online" in ear.on(f"edge/{name}/status"))
            raise_alarm(ear)
            (mine,), (theirs,) = (ear.wait(f"edge/{name}/s/a/event") for name in ("t", "u"))
        until(lambda: b"stopped" in ear.on("edge/t/status"))
        connection = other.daemon._transport._number
        ear.publish("edge/t/cmd/ack", {"request_id": 1, "sensor": "a"})
        ear.publish("edge/u/cmd/ack", {"request_id": 2, "sensor": "a"})
        ear.wait("edge/u/cmd/ack/result")
        assert other.daemon._transport._number == connection == 1
    assert json.loads(mine)["event_id"] != json.loads(theirs)["event_id"]
    assert not ear.on("edge/t/cmd/ack/result")
    assert ear.on("edge/u/status").count(b"online") == 1


def test_health_says_how_long_the_buffer_lasts(tmp_path: Path, broker: Broker, listen: Listen) -> None:
    """`buffer_hours` is what `storage.max_mb` leaves at the present rate: a hundred times the room lasts many times as long."""
    ear = listen("edge/#")
    hours = {}
    for megabytes in (1, 100):
        (folder := tmp_path / str(megabytes)).mkdir()
        with Agent(write_plant(folder, broker.port, agent={"id": f"a{megabytes}"}, storage={"max_mb": megabytes})):
            base = f"edge/a{megabytes}"
            ear.wait(f"{base}/status")
            raise_alarm(ear)
            hours[megabytes] = until(lambda base=base: [h["buffer_hours"] for h in ear.json(f"{base}/health") if h["buffer_hours"]])[0]
    assert 0.0 < 10 * hours[1] < hours[100]


def test_hours_are_room_by_the_rate_of_the_last_hour() -> None:
    """100 rows in 36 s are 10 000 an hour: room for 10 000 rows lasts an hour, memory for 5000 half of one."""
    rate = keeper._Rate(0.0)
    assert rate.hours(1e9, 10.0) is None
    rate.add(100, 0, 0)
    assert rate.hours(10_000 * keeper.ROW_BYTES, 36.0) == 1.0
    assert rate.hours_of_rows(5000, 36.0) == 0.5


def test_waits_between_two_attempts_are_spread_and_end_at_a_minute() -> None:
    """Half to the whole of a delay that doubles up to 60 s: a hundred agents do not come back in the same second."""
    assert transport.BACKOFF_S == (1.0, 60.0)
    assert [transport.spread(60.0, chance) for chance in (0.0, 0.5, 1.0)] == [30.0, 45.0, 60.0]


def test_a_flood_takes_a_bounded_room() -> None:
    """A thousand messages of 1 MB hold at most 8 MiB, and 10 000 short ones 256; all others are counted as evicted."""
    queue = Inbox(["a", "b"])
    big = bytes(10**6)
    evicted = sum(queue.put("a", big, 0.0) for _ in range(1000))
    assert queue.depths()["a"] == 1000 - evicted == inbox.MAX_BYTES // len(big)
    assert sum(queue.put("b", b"x", 0.0) for _ in range(10_000)) == 10_000 - inbox.MAX_MESSAGES
    assert queue.depths() == {"a": 8, "b": inbox.MAX_MESSAGES}
    assert [queue.call(lambda: None) for _ in range(inbox.MAX_CALLS + 1)].count(False) == 1


def test_a_flood_of_all_sensors_takes_a_bounded_room() -> None:
    """Fifty sensors that flood at once hold at most 64 MiB together, in equal shares; one that is alone holds its 8."""
    names = [f"s{i}" for i in range(50)]
    queue = Inbox(names)
    big = bytes(10**6)
    for name in names:
        for _ in range(20):
            queue.put(name, big, 0.0)
    depths = queue.depths()
    assert set(depths.values()) == {1}
    assert sum(depths.values()) * len(big) <= inbox.ALL_BYTES
    queue.watch(names[:1])
    for _ in range(20):
        queue.put(names[0], big, 0.0)
    assert queue.depths() == {names[0]: 8}


def test_the_broker_is_asked_to_wait_for_what_is_under_way() -> None:
    """An MQTT 5 connection states how many unacknowledged messages it takes, so that a broker's backlog does not fall on it."""
    options = transport.MqttTransport(mqtt_config(1), "x", on_message=lambda *_: None)._connect_options()
    assert options["properties"].ReceiveMaximum == transport.RECEIVE_MAXIMUM == 64
    assert options["clean_start"] is False


def test_a_backlog_waits_at_the_broker_until_it_can_be_scored(tmp_path: Path, broker: Broker, listen: Callable[..., Listener]) -> None:
    """Of 1500 messages that came while the agent was off none is lost, though only 256 of a sensor fit in its queue."""
    path = write_plant(tmp_path, broker.port)
    ear = listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
    for seq in range(1500):
        ear.publish("plant/a", message(seq))
    until(lambda: not ear.transport._live._out_messages, what="the broker's acknowledgements")  # type: ignore[union-attr]
    with Agent(path) as agent:
        until(lambda: agent.daemon.worker.sensors["a"].windows == 1500, what="every window")
        assert agent.daemon._tally.counts() == {}
    assert agent.rows("SELECT seq FROM scores ORDER BY id") == [(i,) for i in range(1500)]


def test_a_flood_after_a_connect_holds_the_others_up_for_moments_only(
    tmp_path: Path, broker: Broker, listen: Callable[..., Listener], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sensor sends more than can be scored from the start on: once it has held up the connection for its time, it overflows, and the other
    one and a command come through."""
    from edge_agent import daemon, pipeline

    monkeypatch.setattr(daemon, "ROOM_ALL_S", 0.5)
    step = pipeline.step

    def slow(*args: Any) -> Any:
        time.sleep(0.02)
        return step(*args)

    monkeypatch.setattr(pipeline, "step", slow)
    path = write_plant(tmp_path, broker.port, {"flood": {}, "calm": {}})
    ear = listen("edge/#")
    with Agent(path) as agent:
        until(lambda: agent.daemon._transport.listening)
        for seq in range(600):
            ear.publish("plant/flood", message(seq))
        ear.publish("plant/calm", message(0))
        ear.publish("edge/t/cmd/shelve", {"request_id": 1, "sensor": "calm", "for_s": 60})
        until(lambda: ear.on("edge/t/cmd/shelve/result"), what="the answer")
        ear.wait("edge/t/s/calm/score")
        assert agent.daemon.worker.sensors["flood"].windows < 400
        assert agent.daemon._waited["flood"] >= 0.5
        until(lambda: agent.daemon._tally.counts().get("flood", {}).get("overflow"), what="the count")
