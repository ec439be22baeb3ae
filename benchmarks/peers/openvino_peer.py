"""OpenVINO on the same ONNX graph, made stateful as its own exporters do: caches are states that
grow by a token a step. bfloat16 by its own inference precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_decoder
import openvino as ov
from openvino._offline_transformations import apply_make_stateful_transformation
from serve import Stand, serve


class OpenVino:
    def __init__(self, folder: Path, weights: str, threads: int, length: int, batch: int) -> None:
        core = ov.Core()
        model = core.read_model(onnx_decoder.file(folder, weights, length, grows=True))
        names = [
            (f"past{k}.{which}", f"present{k}.{which}")
            for k in range(onnx_decoder.layers(folder))
            for which in ("key", "value")
        ]
        apply_make_stateful_transformation(model, dict(names))
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if weights == "bfloat16":
            options["INFERENCE_PRECISION_HINT"] = "bf16"
        self._compiled = core.compile_model(model, "CPU", options)
        self._folder, self._length = folder, length
        self.facts = {"version": ov.__version__, "weights": weights}

    def _bound(self, batch: int, position: int) -> Callable[[np.ndarray], np.ndarray]:
        """Steps from `position` on, each a token further."""
        request = self._compiled.create_infer_request()
        shape = onnx_decoder.cache_shape(self._folder, batch, position)
        for state in request.query_state():
            state.state = ov.Tensor(np.zeros(shape, np.float32))
        at = position

        def run(ids: np.ndarray) -> np.ndarray:
            nonlocal at
            # All rows stand at one position: its converter takes one number for them.
            request.set_tensor("ids", ov.Tensor(ids))
            request.set_tensor("seqlens", ov.Tensor(np.full(1, at, np.int32)))
            request.set_tensor("total", ov.Tensor(np.array(at + 1, np.int32)))
            request.infer()
            at += 1
            return request.get_tensor("logits").data

        return run

    def stand(self, batch: int, position: int) -> Stand:
        run, ids = self._bound(batch, position), np.zeros((batch, 1), np.int64)
        return lambda: None, lambda: run(ids)  # a state is not cut: each step is a token further

    def logits(self, ids: list[int]) -> Any:
        run = self._bound(1, 0)
        for token in ids:
            out = run(np.full((1, 1), token, np.int64))
        return out


if __name__ == "__main__":
    serve(OpenVino)
