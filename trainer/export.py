"""A Keras model in, a TFLite flatbuffer with builtin operators out.

Conversions run in one long-lived process beside this one (`python -m trainer.export`): some recipes end in a
segmentation fault, which must not take the training run with it, and TensorFlow is then imported once, not
once a model. A request is an npz (architecture, shape, parameters, weights, representative patches), the
answer a flatbuffer or the text of an error; both preceded by their length.
"""

from __future__ import annotations

import atexit
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from edge_agent import inference
from edge_agent.errors import EdgeAgentError
from edge_agent.signals import F32

_worker: subprocess.Popen[bytes] | None = None
#: What the process says; TensorFlow says much, so it is shown only where the process ends.
_messages: IO[bytes] | None = None


class ExportError(EdgeAgentError):
    """The converter refused, crashed, or made a model that no edge runtime would run rightly."""


def tflite(
    model: str,
    shape: tuple[int, int],
    n_classes: int,
    params: Mapping[str, Any],
    weights: list[F32],
    quantize: str,
    representative: F32,
) -> bytes:
    """The flatbuffer of one architecture with these weights.

    quantize       : "int8" (weights, activations, input and output), "float16" (weights) or "float32"
    representative : (k, width, F) standardised patches that set the int8 ranges
    Raises ExportError.
    """
    head = {
        "model": model,
        "shape": shape,
        "n_classes": n_classes,
        "params": dict(params),
        "quantize": quantize,
    }
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {f"w{i}": w for i, w in enumerate(weights)}
    arrays |= {"head": np.array(json.dumps(head)), "representative": representative}
    np.savez(buffer, **arrays)
    worker = _start()
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        _send(worker.stdin, buffer.getvalue())
        answer = _receive(worker.stdout)
    except (OSError, EOFError) as error:
        code, said = worker.wait(), _said()
        stop()
        raise ExportError(
            f"the converter's process ended with code {code} on {model} as {quantize}; its last words: {said}"
        ) from error
    if answer[:1] != b"+":
        raise ExportError(f"{model} as {quantize}: {answer[1:].decode(errors='replace')}")
    flatbuffer = answer[1:]
    ops = inference.operators(flatbuffer)
    if bad := [op for op in ops if "Flex" in op or op == "CUSTOM"]:
        raise ExportError(
            f"{model} as {quantize}: operators {bad} are not builtin; no edge runtime loads them"
        )
    if model == "lstm_ae" and "UNIDIRECTIONAL_SEQUENCE_LSTM" not in ops:
        raise ExportError(
            f"{model} as {quantize}: the LSTMs were not fused; operators: {', '.join(sorted(set(ops)))}"
        )
    return flatbuffer


def stop() -> None:
    """End the converter's process, if there is one."""
    global _worker
    if _worker is not None:
        for pipe in (_worker.stdin, _worker.stdout, _messages):
            if pipe is not None:
                pipe.close()
        _worker.wait()
        _worker = None


def _said() -> str:
    """The end of the process's messages."""
    assert _messages is not None
    _messages.seek(0)
    return " ".join(_messages.read().decode(errors="replace").split())[-500:]


def _start() -> subprocess.Popen[bytes]:
    global _worker, _messages
    if _worker is None or _worker.poll() is not None:
        stop()
        root = str(Path(__file__).parent.parent)
        path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "CUDA_VISIBLE_DEVICES": "",
        }
        _messages = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        _worker = subprocess.Popen(
            [sys.executable, "-m", "trainer.export"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=_messages,
            env=environment,
        )
        atexit.register(stop)
    return _worker


def _send(pipe: IO[bytes], data: bytes) -> None:
    pipe.write(struct.pack("<Q", len(data)))
    pipe.write(data)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> bytes:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError
    (n,) = struct.unpack("<Q", head)
    data = pipe.read(n)
    if len(data) < n:
        raise EOFError
    return data


# ------------------------------------------------------------------------------- in the other process


def _convert(request: bytes) -> bytes:
    from trainer import architectures, fit

    tf = fit.tensorflow()
    # Layers are numbered on through the process; the numbers stand in the file, which is to be the same each time.
    tf.keras.utils.clear_session()
    with np.load(io.BytesIO(request), allow_pickle=False) as data:
        head = json.loads(str(data["head"]))
        representative = data["representative"]
        weights = [data[f"w{i}"] for i in range(len(data.files) - 2)]
    keras_model = architectures.build(head["model"], tuple(head["shape"]), head["n_classes"], head["params"])
    keras_model.set_weights(weights)
    model = architectures.for_export(head["model"], keras_model)
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    if head["quantize"] != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if head["quantize"] == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if head["quantize"] == "int8":
        shape = (-1, *model.input_shape[1:])

        def patches() -> Any:
            for patch in representative:
                yield [patch.reshape(1, *shape[1:]).astype(np.float32)]

        converter.representative_dataset = patches
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    return bytes(converter.convert())


def _serve() -> None:
    # TensorFlow prints where it likes; the pipe is kept for answers only.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            answer = b"+" + _convert(request)
        except Exception as error:  # noqa: BLE001 - the converter raises any type; the text goes to who asked
            answer = b"-" + f"{type(error).__name__}: {error}".encode()
        _send(answers, answer)


if __name__ == "__main__":
    _serve()
