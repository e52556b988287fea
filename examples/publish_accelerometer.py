"""Publishes an accelerometer. Its sensor's configuration: payload {format: f32le, header: ts_seq}, fs_hz 10240."""

import argparse
import struct
import time

import numpy as np
import paho.mqtt.client as mqtt

FS_HZ, N = 10240, 8192  # samples per second; samples per message, 0.8 s


def read_samples():
    """(N,) samples in g. Here a shaft at 29 Hz in noise: put your driver's blocking read in its place."""
    time.sleep(N / FS_HZ)  # a driver waits by itself until its buffer is full
    return 0.04 * np.cos(2 * np.pi * 29 / FS_HZ * np.arange(N)) + 0.05 * np.random.standard_normal(N)


args = argparse.ArgumentParser(description=__doc__)
args.add_argument("--host", default="localhost")
args.add_argument("--port", type=int, default=1883)
args.add_argument("--topic", default="plant/demo/waveform")
args = args.parse_args()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect(args.host, args.port)
client.loop_start()  # from here on paho sends, and reconnects, in a thread of its own
seq = 0
while True:
    samples = read_samples()
    first = time.time() - N / FS_HZ  # when the first sample was taken
    header = struct.pack("<qI", round(first * 1e9), seq & 0xFFFFFFFF)  # int64 ns UTC, uint32 number
    client.publish(args.topic, header + samples.astype("<f4").tobytes())
    seq += 1  # counts on even where a message is lost: so the agent sees the gap
