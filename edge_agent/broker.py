"""An MQTT broker inside this process, for the demo and for tests where there is no mosquitto: amqtt.

amqtt is pure Python, starts in a fifth of a second and speaks MQTT 3.1.1. It is imported only here.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from edge_agent.errors import TransportError


class EmbeddedBroker:
    """Listens on the loopback until `stop`; anonymous, nothing is kept."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="broker", daemon=True)
        self._broker: Any = None

    def start(self) -> None:
        """Returns once it listens. Raises TransportError where amqtt is absent or the port is taken."""
        try:
            from amqtt.broker import Broker
        except ImportError as error:
            raise TransportError(
                f"the embedded broker needs amqtt ({error}): pip install 'edge-condition-monitor[demo]', "
                "in a clone pip install '.[demo]'"
            ) from error
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self.port}", "max_connections": 50}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }

        async def begin() -> None:
            self._broker = Broker(config)
            await self._broker.start()

        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(begin(), self._loop).result(15.0)
        except Exception as error:
            self._loop.call_soon_threadsafe(self._loop.stop)
            raise TransportError(
                f"the embedded broker cannot listen on 127.0.0.1:{self.port} ({error}): choose another --port"
            ) from error

    def stop(self) -> None:
        """Close every connection and end the thread."""
        asyncio.run_coroutine_threadsafe(self._broker.shutdown(), self._loop).result(10.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
