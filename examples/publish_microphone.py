"""Publishes a microphone, or a WAV file at its own pace, in chunks of 1 s; a microphone needs: pip install sounddevice.

Its sensor's configuration: payload {format: i16le, header: ts_seq}, fs_hz 16000."""

import argparse
import struct
import time
import wave

import paho.mqtt.client as mqtt

FS_HZ = 16000


def seconds(path):
    """One second of 16-bit mono samples after another, as bytes: from the microphone where path is None."""
    if path is None:
        import sounddevice

        with sounddevice.RawInputStream(samplerate=FS_HZ, channels=1, dtype="int16") as microphone:
            while True:
                yield bytes(microphone.read(FS_HZ)[0])
    with wave.open(path) as wav:
        if wav.getparams()[:3] != (1, 2, FS_HZ):
            raise SystemExit(f"{path}: {wav.getparams()[:3]}; expected 1 channel, 2 bytes, {FS_HZ} Hz")
        while second := wav.readframes(FS_HZ):
            time.sleep(len(second) / 2 / FS_HZ)
            yield second


args = argparse.ArgumentParser(description=__doc__)
args.add_argument("--host", default="localhost")
args.add_argument("--port", type=int, default=1883)
args.add_argument("--topic", default="plant/demo/sound")
args.add_argument("--wav", help="a 16-bit mono file at 16 kHz instead of the microphone")
args = args.parse_args()
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.connect(args.host, args.port)
client.loop_start()
for seq, second in enumerate(seconds(args.wav)):
    first = time.time() - len(second) / 2 / FS_HZ  # when the first sample was taken
    client.publish(args.topic, struct.pack("<qI", round(first * 1e9), seq & 0xFFFFFFFF) + second).wait_for_publish(5)
client.disconnect()
