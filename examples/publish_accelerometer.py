"""Publishes an accelerometer as `f32le` with a `ts_seq` header: python examples/publish_accelerometer.py [HOST [TOPIC]]

Configuration of the sensor: payload: {format: f32le, header: ts_seq}, fs_hz: 10240
"""

import struct
import sys
import time

import numpy as np
import paho.mqtt.client as mqtt

FS_HZ, N = 10240, 8192  # samples per second, samples per message


def read_samples(t):
    """(N,) samples in g, the first taken at t. Here a shaft at 29 Hz in noise: put your driver's read in its place."""
    time.sleep(N / FS_HZ)  # a driver waits by itself until its buffer is full
    turns = 2 * np.pi * 29 * (t % 1000 + np.arange(N) / FS_HZ)
    return 0.04 * np.cos(turns) + 0.05 * np.random.standard_normal(N)


host, topic = (sys.argv[1:] + ["localhost", "plant/demo/waveform"][len(sys.argv) - 1 :])[:2]
address, _, port = host.partition(":")
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect(address, int(port or 1883))
client.loop_start()

t, seq = time.time(), 0  # from here on the sensor's own sample clock counts: no gap, whatever the scheduler does
while True:
    samples = read_samples(t)
    header = struct.pack("<qI", round(t * 1e9), seq & 0xFFFFFFFF)  # int64 ns UTC of the first sample, uint32
    client.publish(topic, header + samples.astype("<f4").tobytes())
    t, seq = t + N / FS_HZ, seq + 1
