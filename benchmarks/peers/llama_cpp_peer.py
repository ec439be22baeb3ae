"""llama.cpp, by llama-cpp-python: a GGUF is written from the same weights (BF16, Q8_0, Q4_0)."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import gguf
import llama_cpp as lib
import numpy as np
from serve import Stand, config, serve, tensors, theta

KINDS = {
    "bfloat16": gguf.GGMLQuantizationType.BF16,
    "int8": gguf.GGMLQuantizationType.Q8_0,
    "int4": gguf.GGMLQuantizationType.Q4_0,
}
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def _turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's rotary embedding takes them: pairs side by side."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write(folder: Path, weights: str, path: Path) -> None:
    made = config(folder)
    out = gguf.GGUFWriter(str(path), "llama")
    out.add_context_length(made["max_position_embeddings"])
    out.add_embedding_length(made["hidden_size"])
    out.add_block_count(made["num_hidden_layers"])
    out.add_feed_forward_length(made["intermediate_size"])
    out.add_head_count(made["num_attention_heads"])
    out.add_head_count_kv(made["num_key_value_heads"])
    out.add_layer_norm_rms_eps(made["rms_norm_eps"])
    out.add_rope_freq_base(theta(made))
    out.add_rope_dimension_count(made["hidden_size"] // made["num_attention_heads"])
    out.add_vocab_size(made["vocab_size"])
    out.add_tokenizer_model("none")
    kind = KINDS[weights]
    for name, array in tensors(folder).items():
        parts = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if parts[0] == "layers":
            to = f"blk.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            to = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[
                parts[0]
            ] + ".weight"
        if "attn_q." in to:
            array = _turned(array, made["num_attention_heads"])
        if "attn_k." in to:
            array = _turned(array, made["num_key_value_heads"])
        if array.ndim == 1:
            out.add_tensor(to, np.ascontiguousarray(array))
        else:
            packed = gguf.quants.quantize(np.ascontiguousarray(array), kind)
            out.add_tensor(to, packed, raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


class LlamaCpp:
    def __init__(self, folder: Path, weights: str, threads: int, length: int, batch: int) -> None:
        path = folder / f"{weights}.gguf"
        if not path.exists():
            write(folder, weights, path)
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self._model = lib.llama_load_model_from_file(str(path).encode(), options)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {path.name}")
        inner = lib.llama_context_default_params()
        inner.n_ctx, inner.n_batch, inner.n_ubatch = length * batch, 512, 512
        inner.n_seq_max = batch
        inner.n_threads = inner.n_threads_batch = threads
        self._context = lib.llama_new_context_with_model(self._model, inner)
        self._memory = lib.llama_get_memory(self._context)
        self._words = config(folder)["vocab_size"]
        self._batch = lib.llama_batch_init(512, 0, 1)
        self.facts = {"version": lib.__version__, "weights": KINDS[weights].name}

    def _run(self, items: list[tuple[int, int, int]]) -> None:
        """Tokens as (id, position, row)."""
        self._batch.n_tokens = len(items)
        for k, (token, at, row) in enumerate(items):
            self._batch.token[k], self._batch.pos[k] = token, at
            self._batch.n_seq_id[k], self._batch.seq_id[k][0] = 1, row
            self._batch.logits[k] = k + 1 == len(items) or at == items[-1][1]
        if lib.llama_decode(self._context, self._batch):
            raise SystemExit("llama_decode failed")

    def _fill(self, ids: list[int], row: int) -> None:
        for k in range(0, len(ids), 512):
            self._run([(t, k + j, row) for j, t in enumerate(ids[k : k + 512])])

    def stand(self, batch: int, position: int) -> Stand:
        lib.llama_memory_clear(self._memory, True)
        for row in range(batch):
            self._fill([0] * position, row)
        items = [(0, position, row) for row in range(batch)]

        def back() -> None:
            for row in range(batch):
                lib.llama_memory_seq_rm(self._memory, row, position, -1)

        def step() -> None:
            self._run(items)
            lib.llama_get_logits(self._context)

        return back, step

    def logits(self, ids: list[int]) -> Any:
        lib.llama_memory_clear(self._memory, True)
        self._fill(ids, 0)
        at = lib.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(
            ctypes.cast(at, ctypes.POINTER(ctypes.c_float)), (self._words,)
        ).copy()


if __name__ == "__main__":
    serve(LlamaCpp)
