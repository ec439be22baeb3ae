"""A Llama's decode step as an ONNX file from the same weights, in the ops that ONNX Runtime's own
model builder uses: GroupQueryAttention with its cache, MatMulNBits for quantised weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from serve import config, tensors, theta

GROUP = 32
BITS = {"int8": 8, "int4": 4}


def _packed(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """[N, K] → MatMulNBits' blocks [N, K/32, bytes] and scales, symmetric about 2^(bits−1)."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // GROUP, GROUP)
    half = 1 << (bits - 1)
    scale = np.abs(blocks).max(-1, keepdims=True) / (half - 1)
    whole = np.round(blocks / np.where(scale == 0, 1, scale)) + half
    whole = whole.clip(0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        whole = whole[..., 0::2] | whole[..., 1::2] << 4
    return whole, scale.reshape(rows, -1).astype(np.float32)


class _Writer:
    def __init__(self, bits: int | None) -> None:
        self.bits, self.nodes, self.held = bits, [], []

    def weight(self, name: str, array: np.ndarray) -> str:
        self.held.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def node(self, op: str, inputs: list[str], outputs: list[str], **more: Any) -> None:
        domain = more.pop("domain", "")
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **more))

    def linear(self, x: str, weight: np.ndarray, out: str) -> None:
        if self.bits is None:
            self.node("MatMul", [x, self.weight(f"{out}_w", weight.T)], [out])
            return
        whole, scale = _packed(weight, self.bits)
        names = [x, self.weight(f"{out}_w", whole), self.weight(f"{out}_s", scale)]
        self.node(
            "MatMulNBits", names, [out], domain="com.microsoft", K=weight.shape[1],
            N=weight.shape[0], bits=self.bits, block_size=GROUP, accuracy_level=4,
        )  # fmt: skip

    def norm(self, x: str, weight: np.ndarray, out: str, eps: float) -> None:
        names = [x, self.weight(f"{out}_w", weight)]
        self.node("SimplifiedLayerNormalization", names, [out], axis=-1, epsilon=eps)


def write(folder: Path, weights: str, length: int, path: Path, grows: bool) -> None:
    """With caches of `length` slots, or with caches that grow by a token a step."""
    made, held = config(folder), tensors(folder)
    heads, kv = made["num_attention_heads"], made["num_key_value_heads"]
    width, eps = made["hidden_size"] // heads, made["rms_norm_eps"]
    w = _Writer(BITS.get(weights))
    angle = np.arange(length)[:, None] / theta(made) ** (np.arange(0, width, 2) / width)
    w.weight("cos", np.cos(angle).astype(np.float32))
    w.weight("sin", np.sin(angle).astype(np.float32))
    table = w.weight("embed", held["model.embed_tokens.weight"])
    w.node("Gather", [table, "ids"], ["h0"])
    value = helper.make_tensor_value_info
    inputs = [
        value("ids", TensorProto.INT64, ["B", 1]),
        value("seqlens", TensorProto.INT32, ["B"]),
        value("total", TensorProto.INT32, []),
    ]
    outputs = [value("logits", TensorProto.FLOAT, ["B", 1, made["vocab_size"]])]
    h = "h0"
    for k in range(made["num_hidden_layers"]):
        at = f"model.layers.{k}."

        def part(name: str, at: str = at) -> np.ndarray:
            return held[f"{at}{name}.weight"]

        w.norm(h, part("input_layernorm"), f"n{k}", eps)
        for letter in "qkv":
            w.linear(f"n{k}", part(f"self_attn.{letter}_proj"), f"{letter}{k}")
        cache = [f"past{k}.key", f"past{k}.value"]
        present = [f"present{k}.key", f"present{k}.value"]
        for names, infos, slots in ((cache, inputs, "P"), (present, outputs, "T")):
            for name in names:
                size = ["B", kv, slots if grows else length, width]
                infos.append(value(name, TensorProto.FLOAT, size))
        w.node(
            "GroupQueryAttention",
            [f"q{k}", f"k{k}", f"v{k}", *cache, "seqlens", "total", "cos", "sin"],
            [f"a{k}", *present],
            domain="com.microsoft", num_heads=heads, kv_num_heads=kv, do_rotary=1,
        )  # fmt: skip
        w.linear(f"a{k}", part("self_attn.o_proj"), f"o{k}")
        w.node("Add", [h, f"o{k}"], [f"m{k}"])
        w.norm(f"m{k}", part("post_attention_layernorm"), f"p{k}", eps)
        w.linear(f"p{k}", part("mlp.gate_proj"), f"g{k}")
        w.linear(f"p{k}", part("mlp.up_proj"), f"u{k}")
        w.node("Sigmoid", [f"g{k}"], [f"s{k}"])
        w.node("Mul", [f"g{k}", f"s{k}"], [f"x{k}"])
        w.node("Mul", [f"x{k}", f"u{k}"], [f"y{k}"])
        w.linear(f"y{k}", part("mlp.down_proj"), f"d{k}")
        w.node("Add", [f"m{k}", f"d{k}"], [f"h{k + 1}"])
        h = f"h{k + 1}"
    w.norm(h, held["model.norm.weight"], "last", eps)
    head = held.get("lm_head.weight", held["model.embed_tokens.weight"])
    w.linear("last", head, "logits")
    graph = helper.make_graph(w.nodes, "decode", inputs, outputs, w.held)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.save(model, path, save_as_external_data=True, location=path.name + ".data")


def cache_shape(folder: Path, batch: int, length: int) -> tuple[int, int, int, int]:
    made = config(folder)
    width = made["hidden_size"] // made["num_attention_heads"]
    return batch, made["num_key_value_heads"], length, width


def layers(folder: Path) -> int:
    return config(folder)["num_hidden_layers"]


def file(folder: Path, weights: str, length: int, *, grows: bool = False) -> Path:
    """The ONNX file, written if it is not there yet."""
    path = folder / f"{weights}-{'grows' if grows else length}.onnx"
    if not path.exists():
        write(folder, weights, length, path, grows)
    return path
