"""Publishes a microphone, or a WAV file over and over, as `i16le` in chunks of 1 s.

    python examples/publish_microphone.py [HOST[:PORT] [TOPIC [FILE.wav]]]     (a microphone needs: pip install sounddevice)

Configuration of the sensor: payload: {format: i16le, header: ts_seq}, fs_hz: 16000
"""

import struct
import sys
import time
import wave

import paho.mqtt.client as mqtt

FS_HZ = 16000


def microphone():
    """One second of 16-bit mono samples after another, as bytes."""
    import sounddevice

    with sounddevice.RawInputStream(samplerate=FS_HZ, channels=1, dtype="int16") as stream:
        while True:
            yield bytes(stream.read(FS_HZ)[0])


def wav_file(path):
    """The same from a 16-bit mono file, at the pace of real time."""
    while True:
        with wave.open(path) as wav:
            assert wav.getparams()[:3] == (1, 2, FS_HZ), f"{path}: expected 16-bit mono at {FS_HZ} Hz"
            while len(second := wav.readframes(FS_HZ)) == 2 * FS_HZ:
                time.sleep(1)
                yield second


host, topic, *file = sys.argv[1:] + ["localhost", "plant/demo/sound"][len(sys.argv[1:3]) :]
address, _, port = host.partition(":")
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect(address, int(port or 1883))
client.loop_start()

start = time.time()
for seq, second in enumerate(wav_file(file[0]) if file else microphone()):
    header = struct.pack("<qI", round((start + seq) * 1e9), seq & 0xFFFFFFFF)  # int64 ns UTC, uint32
    client.publish(topic, header + second)
