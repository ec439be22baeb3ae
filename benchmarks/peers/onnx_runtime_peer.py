"""ONNX Runtime. Its CPU kernels have no bfloat16: those weights are held as float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_decoder
import onnxruntime as ort
from serve import Stand, serve


class OnnxRuntime:
    def __init__(self, folder: Path, weights: str, threads: int, length: int, batch: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        path = onnx_decoder.file(folder, weights, length)
        self._session = ort.InferenceSession(str(path), options, ["CPUExecutionProvider"])
        self._folder, self._length = folder, length
        held = "float32" if weights == "bfloat16" else weights
        self.facts = {"version": ort.__version__, "weights": held}

    def _bound(self, batch: int) -> tuple[Any, np.ndarray, Callable[[int, np.ndarray], np.ndarray]]:
        """A binding whose caches are written in place."""
        binding = self._session.io_binding()
        shape = onnx_decoder.cache_shape(self._folder, batch, self._length)
        kept = []
        for k in range(onnx_decoder.layers(self._folder)):
            for which in ("key", "value"):
                cache = ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32))
                kept.append(cache)
                binding.bind_ortvalue_input(f"past{k}.{which}", cache)
                binding.bind_ortvalue_output(f"present{k}.{which}", cache)
        binding.bind_output("logits")

        def run(position: int, ids: np.ndarray) -> np.ndarray:
            binding.bind_cpu_input("ids", ids)
            binding.bind_cpu_input("seqlens", np.full(batch, position, np.int32))
            binding.bind_cpu_input("total", np.array(position + 1, np.int32))
            self._session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()[-1]

        return kept, np.zeros((batch, 1), np.int64), run

    def stand(self, batch: int, position: int) -> Stand:
        kept, ids, run = self._bound(batch)
        return lambda: None, lambda: (run(position, ids), kept)[0]

    def logits(self, ids: list[int]) -> Any:
        _kept, one, run = self._bound(1)
        for position, token in enumerate(ids):
            one[:] = token
            out = run(position, one)
        return out


if __name__ == "__main__":
    serve(OnnxRuntime)
