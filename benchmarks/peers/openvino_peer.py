"""OpenVINO on the same ONNX file; bfloat16 by its own inference precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_decoder
import openvino as ov
from serve import serve


class OpenVino:
    def __init__(self, folder: Path, weights: str, threads: int, length: int, batch: int) -> None:
        core = ov.Core()
        model = core.read_model(onnx_decoder.file(folder, weights, length))
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if weights == "bfloat16":
            options["INFERENCE_PRECISION_HINT"] = "bf16"
        self._compiled = core.compile_model(model, "CPU", options)
        self._folder, self._length = folder, length
        self.facts = {"version": ov.__version__, "weights": weights}

    def _bound(self, batch: int) -> Callable[[int, np.ndarray], np.ndarray]:
        request = self._compiled.create_infer_request()
        shape = onnx_decoder.cache_shape(self._folder, batch, self._length)
        for k in range(onnx_decoder.layers(self._folder)):
            for which in ("key", "value"):
                cache = ov.Tensor(np.zeros(shape, np.float32))
                request.set_tensor(f"past{k}.{which}", cache)
                request.set_tensor(f"present{k}.{which}", cache)

        def run(position: int, ids: np.ndarray) -> np.ndarray:
            request.set_tensor("ids", ov.Tensor(ids))
            request.set_tensor("seqlens", ov.Tensor(np.full(batch, position, np.int32)))
            request.set_tensor("total", ov.Tensor(np.array(position + 1, np.int32)))
            request.infer()
            return request.get_tensor("logits").data

        return run

    def stand(self, batch: int, position: int) -> Callable[[], Any]:
        run, ids = self._bound(batch), np.zeros((batch, 1), np.int64)
        return lambda: run(position, ids)

    def logits(self, ids: list[int]) -> Any:
        run = self._bound(1)
        for position, token in enumerate(ids):
            out = run(position, np.full((1, 1), token, np.int64))
        return out


if __name__ == "__main__":
    serve(OpenVino)
