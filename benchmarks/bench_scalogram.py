"""Time-frequency pictures beside PyWavelets: the transform in full, the pooled picture, a window with a small network.

The judged rival is pywt.cwt on the record as Python and numpy read it, in float64; the same in float32, which is
twice as fast there, is printed beside it. Of the usual ways from 128 x 8192 magnitudes to a picture each size has
the fastest one tried: scipy.ndimage.zoom(order=1) for 64, numpy means for 224. skimage.transform.resize, which
tutorials use, was not at hand. Times are processor times: on a machine that others use too, no call of 100 ms runs
without being interrupted, and by the wall clock the rival then looked three times as slow as it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pywt
from scipy import ndimage

from benchmarks._timing import quiet_ms, row
from benchmarks.bench_features import FS, N, vibration
from edge_agent.features import build
from edge_agent.features.scalogram import cwt, pooling
from edge_agent.inference import TFLiteModel

CWT, SCALOGRAM, WINDOW = "cwt", "scalogram", "scalogram_window"
SCALES = np.arange(1, 129)
SIZE = 64
_PYWT = 'pywt.cwt(x, np.arange(1, 129), "morl")'
_WINDOWS, _EPOCHS = 160, 4


def pictures(magnitude: Any, size: int) -> Any:
    """(128, 8192) -> (size, size) by the faster of the usual ways: interpolation for 64, means of columns for 224."""
    if size == SIZE:
        return ndimage.zoom(magnitude, (size / 128, size / N), order=1)
    edges = (np.arange(size) * N / size).astype(int)
    columns = np.add.reduceat(magnitude, edges, axis=1) / np.diff(np.append(edges, N))
    return columns[np.arange(size) * 128 // size]


_RESIZE = {
    64: "scipy.ndimage.zoom(abs(c), (64 / 128, 64 / 8192), order=1)",
    224: "np.add.reduceat(abs(c), 224 columns) / their widths, rows repeated",
}


def usual_picture(x: Any, size: int) -> Any:
    """z-score, pywt, magnitude, resize, min-max; time by ascending frequency."""
    z = (x - x.mean()) / x.std()
    image = pictures(np.abs(pywt.cwt(z, SCALES, "morl")[0]), size).T[:, ::-1]
    return (image - image.min()) / (image.max() - image.min())


def pooled_picture(x: Any, size: int) -> Any:
    """The reference for agreement: exact means of all 128 x 8192 magnitudes."""
    z = (x - x.mean()) / x.std()
    c = np.abs(pywt.cwt(z, SCALES, "morl")[0])
    return (pooling(128, size) @ c @ pooling(N, size).T).T[:, ::-1]


def difference(a: Any, b: Any) -> float:
    """1 - correlation of two pictures."""
    return 1.0 - float(np.corrcoef(np.ravel(a), np.ravel(b))[0, 1])


def rows(
    vibration_ms: tuple[
        Callable[[], float], Callable[[], None], int, Callable[[], float], Callable[[], None]
    ],
    rounds: int = 12,
) -> list[dict[str, Any]]:
    """One row a pair. vibration_ms: ours to a score, our rows and how many, the rival's score, its row."""
    single = vibration(10_000)
    double = single.astype(np.float64)
    made = {size: build("scalogram", FS, N, {"size": size}) for size in (64, 224)}
    flatbuffers = small_network([made[SIZE](vibration(seed)) for seed in range(_WINDOWS)])
    ours_int8 = TFLiteModel(flatbuffers["int8"], 1, (SIZE, SIZE))
    float32 = TFLiteModel(flatbuffers["float32"], 1, (SIZE, SIZE))

    def score(model: Callable[[Any], Any], image: Any) -> float:
        return float(np.mean(np.square(image - np.reshape(model(image[np.newaxis])[0], image.shape))))

    def our_picture() -> float:
        return score(ours_int8, made[SIZE](single))

    def usual(x: Any) -> float:
        return score(float32, usual_picture(x, SIZE).astype(np.float32))

    light, light_rows, per_commit, usual_light, usual_row = vibration_ms
    (ms, cwt_ms, ms_64, ms_224, light_ms, row_ms, usual_light_ms, usual_row_ms, double_ms, single_ms) = (
        quiet_ms(
            [
                (our_picture, 1),
                (lambda: cwt(single, SCALES), 1),
                (lambda: made[64](single), 1),
                (lambda: made[224](single), 1),
                (light, 1),
                (light_rows, per_commit),
                (usual_light, 1),
                (usual_row, 1),
                (lambda: pywt.cwt(double, SCALES, "morl"), 1),
                (lambda: pywt.cwt(single, SCALES, "morl"), 1),
            ],
            rounds=rounds,
            repeats=5,
            clock=time.process_time,
        )
    )
    found = []
    wanted = pywt.cwt(double, SCALES, "morl")[0]
    exact = float(np.abs(cwt(single, SCALES) - wanted).max() / np.abs(wanted).max())
    for kind, rival_ms, judged in (("float64", double_ms, True), ("float32", single_ms, False)):
        found.append(
            row(
                CWT,
                "Morlet transform, 8192 x 128 scales",
                cwt_ms,
                f"{_PYWT}, x {kind}",
                rival_ms,
                exact,
                judged,
            )
        )
    for size, ours_ms in ((64, ms_64), (224, ms_224)):
        agree = difference(made[size](single), pooled_picture(double, size))
        slow_ms, fast_ms = quiet_ms(
            [(lambda s=size: usual_picture(double, s), 1), (lambda s=size: usual_picture(single, s), 1)],
            rounds=max(2, rounds // 3),
            repeats=3,
            clock=time.process_time,
        )
        for kind, rival_ms, judged in (("float64", slow_ms, True), ("float32", fast_ms, False)):
            rival = f"z-score; c = {_PYWT}, x {kind}; {_RESIZE[size]}; min-max"
            found.append(
                row(SCALOGRAM, f"scalogram {size} x {size} of 8192", ours_ms, rival, rival_ms, agree, judged)
            )
    reference = score(float32, made[SIZE](single))
    agree = abs(our_picture() / reference - 1.0)
    for kind, x, judged in (("float64", double, True), ("float32", single, False)):
        (rival_ms,) = quiet_ms(
            [(lambda x=x: usual(x), 1)], rounds=max(2, rounds // 3), repeats=3, clock=time.process_time
        )
        found.append(
            row(
                WINDOW,
                "window of 8192: the vibration window above with its row, scalogram 64 x 64, small int8 CNN",
                light_ms + row_ms + ms,
                f"the vibration window's rival; z-score; c = {_PYWT}, x {kind}; {_RESIZE[SIZE]}; min-max; "
                "the same CNN in float32 TFLite",
                usual_light_ms + usual_row_ms + rival_ms,
                agree,
                judged,
            )
        )
    return found


def small_network(images: list[Any]) -> dict[str, bytes]:
    """A convolutional autoencoder of 64 x 64 pictures, shortly trained, as int8 and as float32 TFLite file."""
    import keras
    import tensorflow as tf

    data = np.stack(images)[..., np.newaxis].astype(np.float32)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((SIZE, SIZE, 1), batch_size=1)
    v = inputs
    for filters in (8, 16, 32):
        v = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(v)
    v = keras.layers.Dense(32, activation="relu")(keras.layers.Flatten()(v))
    v = keras.layers.Dense(8 * 8 * 32, activation="relu")(v)
    v = keras.layers.Reshape((8, 8, 32))(v)
    for filters in (16, 8, 1):
        v = keras.layers.UpSampling2D(2)(v)
        v = keras.layers.Conv2D(filters, 3, padding="same", activation="relu" if filters > 1 else None)(v)
    network = keras.Model(inputs, v)
    network.compile("adam", "mse")
    network.fit(data, data, batch_size=1, epochs=_EPOCHS, verbose=0)
    files = {}
    for kind in ("int8", "float32"):
        converter = tf.lite.TFLiteConverter.from_keras_model(network)
        if kind == "int8":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.representative_dataset = lambda: ([image[np.newaxis]] for image in data[:100])
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.int8
        files[kind] = converter.convert()
    return files
