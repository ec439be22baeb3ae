"""ONNX files as one function, against ONNX's own reference."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import quire
from quire.errors import CaptureError

WIDTH, HEADS, KV, ROOM = 32, 4, 2, 24
RANDOM = np.random.default_rng(0)


def block():
    """A decoder block in opset 23, with shapes worked out in the graph as exporters do."""
    head = WIDTH // HEADS
    sizes = {
        "norm": (WIDTH,), "wq": (WIDTH, WIDTH), "wk": (WIDTH, KV * head), "wv": (WIDTH, KV * head),
        "wo": (WIDTH, WIDTH), "up": (WIDTH, 48), "down": (48, WIDTH), "cos": (ROOM, head // 2),
        "sin": (ROOM, head // 2), "embed": (50, WIDTH),
    }  # fmt: skip
    weights = {k: RANDOM.normal(size=s).astype(np.float32) for k, s in sizes.items()}
    weights |= {"one": np.array(1), "zero": np.array(0), "last": np.array([-1])}
    weights["heads"] = np.array([HEADS, head])

    def node(op, ins, outs, **attributes):
        return helper.make_node(op, ins.split(), outs.split(), **attributes)

    nodes = [
        node("Gather", "embed ids", "x"),
        node("RMSNormalization", "x norm", "n", epsilon=1e-6),
        *(node("MatMul", f"n w{k}", k) for k in "qkv"),
        node("Shape", "ids", "shape"),
        node("Gather", "shape one", "length"),
        node("Range", "zero length one", "places"),
        node("Unsqueeze", "places axes", "row"),
        node("Expand", "row shape", "at"),
        node("RotaryEmbedding", "q cos sin at", "qr", num_heads=HEADS),
        node("RotaryEmbedding", "k cos sin at", "kr", num_heads=KV),
        node("Attention", "qr kr v", "a", q_num_heads=HEADS, kv_num_heads=KV, is_causal=1),
        node("Concat", "shape heads", "split", axis=0),
        node("Reshape", "a split", "parts"),
        node("Concat", "shape last", "whole", axis=0),
        node("Reshape", "parts whole", "joined"),
        node("MatMul", "joined wo", "o"),
        node("Add", "x o", "y"),
        node("MatMul", "y up", "u"),
        node("Gelu", "u", "g"),
        node("MatMul", "g down", "d"),
        node("Add", "y d", "out"),
    ]
    weights["axes"] = np.array([0])
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "block",
        [value("ids", TensorProto.INT64, ["rows", "tokens"])],
        [value("out", TensorProto.FLOAT, ["rows", "tokens", WIDTH])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def test_one_kernel_for_every_size(tmp_path):
    model = block()
    onnx.checker.check_model(model)
    onnx.save(model, tmp_path / "block.onnx")
    fast = quire.fuse(tmp_path / "block.onnx", dims={"rows": 3, "tokens": ROOM})
    reference = ReferenceEvaluator(model)
    for rows, tokens in ((1, 1), (2, 7), (3, ROOM)):
        ids = RANDOM.integers(0, 50, (rows, tokens))
        (want,) = reference.run(None, {"ids": ids})
        got = fast(torch.from_numpy(ids)).numpy()
        assert np.abs(got - want).max() <= 2e-5 * np.abs(want).max()


def test_dims_without_a_size_are_asked_for(tmp_path):
    onnx.save(block(), tmp_path / "block.onnx")
    with pytest.raises(CaptureError, match=r"dim 1 of input ids has no size \(tokens\)"):
        quire.fuse(tmp_path / "block.onnx", dims={"rows": 3})


def single(op, inputs, **attributes):
    """A file of one node over float vectors of 4."""
    value = helper.make_tensor_value_info
    infos = [value(n, k, s) for n, (k, s) in inputs.items()]
    graph = helper.make_graph(
        [helper.make_node(op, list(inputs), ["y"], name="the_node", **attributes)],
        "single",
        infos,
        [onnx.ValueInfoProto(name="y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


@pytest.mark.parametrize(
    "op, inputs, found",
    [
        ("Det", {"x": (TensorProto.FLOAT, [3, 3])}, "no rule for the ONNX op Det"),
        (
            "Reshape",
            {"x": (TensorProto.FLOAT, [4]), "to": (TensorProto.INT64, [2])},
            "needs the values of 'to'",
        ),
    ],
)
def test_what_cannot_be_imported_names_its_node(tmp_path, op, inputs, found):
    onnx.save(single(op, inputs), tmp_path / "single.onnx")
    with pytest.raises(CaptureError, match=found) as caught:
        quire.fuse(tmp_path / "single.onnx")
    assert "the_node" in caught.value.where


def test_functions_of_the_standard_stand_in_for_rules(tmp_path):
    """Ops without a rule run by the body that ONNX gives them."""
    inputs = {"x": (TensorProto.FLOAT, [3, 5]), "labels": (TensorProto.INT64, [3])}
    model = single("SoftmaxCrossEntropyLoss", inputs, ignore_index=2)
    onnx.save(model, tmp_path / "loss.onnx")
    x, labels = RANDOM.normal(size=(3, 5)).astype(np.float32), np.array([4, 2, 0])
    (want,) = ReferenceEvaluator(model).run(None, {"x": x, "labels": labels})
    got = quire.fuse(tmp_path / "loss.onnx")(torch.from_numpy(x), torch.from_numpy(labels))
    assert np.abs(got.numpy() - want).max() < 1e-5


def test_axes_given_as_one_number(tmp_path):
    inputs = {"x": (TensorProto.FLOAT, [3, 5])}
    model = single("Unsqueeze", inputs)
    model.graph.node[0].input.append("axes")
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "axes"))
    onnx.save(model, tmp_path / "axes.onnx")
    x = torch.arange(15.0).reshape(3, 5)
    assert torch.equal(quire.fuse(tmp_path / "axes.onnx")(x), x[:, None])


def test_space_to_depth_by_columns(tmp_path):
    """The mode of opset 28: undone by DepthToSpace of that mode, which is pixel_shuffle."""
    x = torch.randn(2, 3, 4, 6)
    model = single(
        "SpaceToDepth", {"x": (TensorProto.FLOAT, [2, 3, 4, 6])}, blocksize=2, mode="CRD"
    )
    onnx.save(model, tmp_path / "deep.onnx")
    got = quire.fuse(tmp_path / "deep.onnx")(x)
    assert torch.equal(got, torch.nn.functional.pixel_unshuffle(x, 2))


def test_graphs_without_inputs(tmp_path):
    values = [numpy_helper.from_array(np.array(v, np.float32), k) for k, v in
              (("start", 1.0), ("limit", 9.0), ("by", 2.5))]  # fmt: skip
    nodes = [
        helper.make_node("Range", ["start", "limit", "by"], ["steps"]),
        helper.make_node("Shape", ["steps"], ["count"]),
    ]
    outs = [
        helper.make_tensor_value_info("steps", TensorProto.FLOAT, [4]),
        helper.make_tensor_value_info("count", TensorProto.INT64, [1]),
    ]
    graph = helper.make_graph(nodes, "constant", [], outs, values)
    onnx.save(helper.make_model(graph), tmp_path / "constant.onnx")
    steps, count = quire.fuse(tmp_path / "constant.onnx")()
    assert steps.tolist() == [1.0, 3.5, 6.0, 8.5]
    assert count.tolist() == [4]


def test_a_remainder_by_infinity(tmp_path):
    node = helper.make_node("Mod", ["x", "y"], ["z"])
    value = [helper.make_tensor_value_info(k, TensorProto.FLOAT, [6]) for k in "xyz"]
    graph = helper.make_graph([node], "mod", value[:2], value[2:])
    onnx.save(helper.make_model(graph), tmp_path / "mod.onnx")
    x = np.array([3, -1, 3, -1, 7, np.inf], np.float32)
    y = np.array([np.inf, -np.inf, -np.inf, np.inf, 4, np.inf], np.float32)
    got = quire.fuse(tmp_path / "mod.onnx")(torch.from_numpy(x), torch.from_numpy(y))
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(got.numpy(), np.mod(x, y))
