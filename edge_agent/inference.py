"""The only file that imports a TFLite runtime: a flatbuffer in, a callable model out."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from edge_agent.errors import BundleError
from edge_agent.signals import F32

_RUNTIMES = ("ai_edge_litert.interpreter", "tflite_runtime.interpreter")


def _interpreter_class() -> tuple[Any, str]:
    failures = []
    for name in _RUNTIMES:
        try:
            return importlib.import_module(name).Interpreter, name.split(".")[0]
        except Exception as error:  # noqa: BLE001 - a runtime built for another numpy fails with any type
            failures.append(f"{name}: {error}")
    raise BundleError(
        "no TFLite runtime can be imported; run `pip install ai-edge-litert` "
        f"(armv7l: `pip install .[tflite-runtime]`). Tried {'; '.join(failures)}"
    )


#: What the runtime's C++ code says on stderr of every model, whatever log level it is given.
_CHATTER = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU."


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Keep the runtime's one line about its delegate off stderr: it precedes every answer of every command.

    The line is written by C++ to file descriptor 2 itself, so that is turned into a file meanwhile. All
    else that was written, by whichever thread, follows at the end, so a refused model still says why.
    """
    with ExitStack() as stack:
        try:
            stderr = os.dup(2)
            stack.callback(os.close, stderr)
            said = stack.enter_context(tempfile.TemporaryFile())
        except OSError:
            # stderr is closed, or there is no folder for temporary files: the line may stand.
            yield
            return
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(stderr, 2)
            said.seek(0)
            rest = b"".join(line for line in said if line.rstrip() != _CHATTER)
            if rest:
                os.write(2, rest)


def operators(flatbuffer: bytes) -> tuple[str, ...]:
    """Names of the model's operators, as the runtime lists them; for export checks and cards."""
    interpreter = _load(flatbuffer)
    return tuple(op["op_name"] for op in interpreter._get_ops_details() if op["op_name"] != "DELEGATE")


def _load(flatbuffer: bytes) -> Any:
    if flatbuffer[4:8] != b"TFL3":
        raise BundleError(
            f"model.tflite is not a TFLite flatbuffer (first bytes {flatbuffer[:8]!r}): export it again"
        )
    if b"Flex" in flatbuffer:
        raise BundleError(
            "model.tflite uses Flex (Select TensorFlow) operators, which no edge runtime loads: export it "
            "with builtin operators only"
        )
    cls, _ = _interpreter_class()
    try:
        with _without_chatter():
            return cls(model_content=flatbuffer, num_threads=1)
    except Exception as error:
        raise BundleError(f"the TFLite runtime refuses model.tflite: {error}") from error


class TFLiteModel:
    """A model that serves one thread.

    Called with x (n_patches, width, F) it returns every output as float32, patches first. Where the
    batch of the model is free, all patches go in one invoke; where it is 1, one invoke each. Variables
    (the state of an LSTM) are reset before every invoke: the op keeps them otherwise.
    """

    def __init__(self, flatbuffer: bytes, n_patches: int, patch_shape: tuple[int, ...]) -> None:
        """n_patches: patches a window; patch_shape: (width, F) of one patch."""
        self._interpreter = _load(flatbuffer)
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1:
            raise BundleError(f"model.tflite has {len(inputs)} inputs; expected 1")
        signature = [int(n) for n in inputs[0].get("shape_signature", inputs[0]["shape"])]
        per_patch, wanted = int(np.prod(signature[1:])), int(np.prod(patch_shape))
        if per_patch != wanted:
            raise BundleError(
                f"model.tflite takes {signature[1:]} = {per_patch} values a patch; the feature spec gives "
                f"{patch_shape} = {wanted}: model and bundle.json do not belong together"
            )
        self._batch = n_patches if signature[0] == -1 or signature[0] == n_patches else 1
        if signature[0] not in (-1, 1, self._batch):
            raise BundleError(
                f"model.tflite has a fixed batch of {signature[0]}; a window gives {n_patches} patches"
            )
        try:
            with _without_chatter():
                if signature[0] == -1 and self._batch != int(inputs[0]["shape"][0]):
                    self._interpreter.resize_tensor_input(inputs[0]["index"], [self._batch, *signature[1:]])
                self._interpreter.allocate_tensors()
        except Exception as error:
            raise BundleError(f"the TFLite runtime cannot prepare model.tflite: {error}") from error
        self._input = self._interpreter.get_input_details()[0]
        self._shape = tuple(int(n) for n in self._input["shape"])
        # The runtime lists outputs as the converter laid them out; their names count them as the network did.
        self._outputs = sorted(self._interpreter.get_output_details(), key=_number)
        # One work buffer for life: 0.8 MB a clip allocated anew, with two more such arrays, cost more than the model.
        self._work = np.empty(self._shape, np.float32)
        self.n_patches, self.patch_shape = n_patches, patch_shape
        #: Size of one step of each output where it is quantised, else 0.
        self.output_steps = tuple(float(o["quantization"][0]) for o in self._outputs)

    def __call__(self, x: F32) -> Sequence[F32]:
        """(n_patches, width, F) float32 -> outputs, each (n_patches, ...) float32."""
        if x.shape[0] == self._batch:
            return self._invoke(x)
        parts = [self._invoke(x[i : i + self._batch]) for i in range(0, x.shape[0], self._batch)]
        return tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    def _invoke(self, x: F32) -> tuple[F32, ...]:
        interpreter = self._interpreter
        interpreter.reset_all_variables()
        interpreter.set_tensor(self._input["index"], _quantize(x.reshape(self._shape), self._input, self._work))
        interpreter.invoke()
        return tuple(_dequantize(interpreter.get_tensor(o["index"]), o) for o in self._outputs)


def _number(detail: Any) -> int:
    """k of a tensor named "StatefulPartitionedCall_1:k"; 0 for names without a number."""
    _, _, k = str(detail["name"]).rpartition(":")
    return int(k) if k.isdecimal() else 0


def _quantize(x: F32, detail: Any, work: F32) -> Any:
    if detail["dtype"] == np.float32:
        return np.ascontiguousarray(x)
    scale, zero = detail["quantization"]
    info = np.iinfo(detail["dtype"])
    q = np.multiply(x, np.float32(1.0 / scale), out=work)
    np.rint(q, out=q)
    q += np.float32(zero)
    np.minimum(q, np.float32(info.max), out=q)
    np.maximum(q, np.float32(info.min), out=q)
    return q.astype(detail["dtype"])


def _dequantize(y: Any, detail: Any) -> F32:
    if detail["dtype"] == np.float32:
        result: F32 = y
        return result
    scale, zero = detail["quantization"]
    result = y.astype(np.float32)
    result -= np.float32(zero)
    result *= np.float32(scale)
    return result
