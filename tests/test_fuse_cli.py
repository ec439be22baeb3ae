"""`quire fuse` and `quire run` as commands."""

import re
import string

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from typer.testing import CliRunner

from quire.cli import app
from tests.kernel.models import causal_lm


@pytest.fixture(autouse=True)
def quick(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIRE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("QUIRE_CXXFLAGS", "-O1")


def quire(*words):
    return CliRunner().invoke(app, [str(w) for w in words], env={"COLUMNS": "200"})


def product(folder):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "y"], ["z"])],
        "product",
        [value("x", TensorProto.FLOAT, ["n", 4]), value("y", TensorProto.FLOAT, [4, 3])],
        [value("z", TensorProto.FLOAT, ["n", 3])],
    )
    opset = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=10), folder / "p.onnx")
    return folder / "p.onnx"


def test_onnx_to_a_library_with_its_header(tmp_path):
    library, header, source = (tmp_path / f"product.{s}" for s in ("so", "h", "cpp"))
    run = quire(
        "fuse", product(tmp_path), "--dim", "n=7",
        "--out", library, "--header", header, "--source", source,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert "product with weights" in run.output or "sum" in run.output
    assert library.stat().st_size > 10_000
    assert "template <class Q>" in source.read_text()
    text = header.read_text()
    assert re.search(r"int product_run\(\s+product\* model,\s+int64_t \w+,", text)
    assert "const float* in0" in text and "float* out0" in text


@pytest.mark.parametrize(
    "words, said",
    [
        (["--dim", "n"], "--dim n"),
        (["--dim", "n=7", "--header", "p.h"], "a header without its library"),
        ([], "dim 0 of input x has no size (n)"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    run = quire("fuse", product(tmp_path), *words)
    assert run.exit_code == 2
    assert said in run.output


@pytest.fixture
def folder(tmp_path):
    """A model of letters, as save_pretrained writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    letters = {letter: k for k, letter in enumerate("?" + string.ascii_lowercase + " .")}
    tokens = Tokenizer(models.WordLevel(letters, unk_token="?"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokens, unk_token="?").save_pretrained(tmp_path)
    causal_lm("llama", vocab_size=len(letters)).save_pretrained(tmp_path)
    return tmp_path


def test_run_streams_tokens_and_says_how_fast(folder):
    torch.manual_seed(0)
    run = quire(
        "run", folder, "--prompt", "abc", "--max-new-tokens", 6, "--max-length", 32,
        "--dtype", "float32",
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert re.search(r"6 tokens, [\d.]+ tokens/s, .*\d+% of this machine's", run.output)
