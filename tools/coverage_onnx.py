"""ONNX's own backend test suite through `quire.fuse` → docs/coverage-onnx.md.

    python tools/coverage_onnx.py [--transformers] [--only PART_OF_A_NAME] [--out FILE]

`--transformers` runs the tests of ops that transformers use, and no others.

Each node test of the installed `onnx` package is imported, compiled to a kernel of its own, run,
and compared with the expected outputs at the suite's tolerances. Inputs whose values decide a
shape (that of Reshape, the axes of a sum) are given as constants, as files from exporters do.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

import quire.flow.rules  # noqa: F401
from quire.capture.export import from_exported
from quire.capture.onnx_graph import import_onnx
from quire.capture.onnx_table import DTYPES, to_torch
from quire.errors import QuireError
from quire.fused import Fused
from quire.kernel.compile import compile_program
from quire.runtime import build
from quire.runtime.native import NativeKernel

PAGE = Path(__file__).parent.parent / "docs" / "coverage-onnx.md"

TRANSFORMERS = frozenset(
    """Abs Add And ArgMax Attention Cast Clip Concat Constant ConstantOfShape Conv Cos
CumSum Div Einsum Equal Erf Exp Expand Flatten Gather GatherElements GatherND Gelu Gemm Greater
GreaterOrEqual Identity LayerNormalization Less LessOrEqual Log LogSoftmax MatMul Max Min Mod Mul
Neg Not Or Pad Pow RMSNormalization Range Reciprocal ReduceMax ReduceMean ReduceSum Relu Reshape
RotaryEmbedding ScatterElements ScatterND Shape Sigmoid Sin Slice Softmax Softplus Split Sqrt
Squeeze Sub Swish Tanh Tile TopK Transpose Trilu Unsqueeze Where""".split()  # noqa: SIM905
)
"""Ops in the graphs that torch.onnx writes for the language models, encoders and vision
transformers of transformers (opsets 20 to 24)."""


class _OtherError(Exception):
    """A test that is not about one function of tensors."""


def array_of(value: Any) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    raise _OtherError("sequences or optional values")


def fixed(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    """The model with an input given as a constant."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.initializer.append(numpy_helper.from_array(value, name))
    kept = [i for i in made.graph.input if i.name != name]
    del made.graph.input[:]
    made.graph.input.extend(kept)
    return made


def run(case: Any) -> None:
    """Raises where the case does not pass."""
    model = case.model
    if model is None:
        raise _OtherError("no model")
    names = [i.name for i in model.graph.input]
    inputs, outputs = case.data_sets[0]
    given = {n: array_of(v) for n, v in zip(names, inputs, strict=False)}
    want = [array_of(v) for v in outputs]
    for item in model.graph.input:
        kind = item.type.tensor_type.shape
        for d, size in enumerate(kind.dim):
            if not size.HasField("dim_value") and item.name in given:
                size.dim_value = given[item.name].shape[d]
    while True:
        try:
            exported = import_onnx(model)
            break
        except QuireError as error:
            found = re.search(r"needs the values of", str(error))
            shapes = [
                n for n, v in given.items() if v.ndim == 0 or (v.dtype.kind in "ib" and v.ndim == 1)
            ]
            named = [n for n in shapes if f"values of '{n}'" in str(error)]
            if found is None or not shapes:
                raise
            for name in named or shapes:
                model = fixed(model, name, given.pop(name))
    program = from_exported(exported, writes=True)
    fast = Fused(program, NativeKernel(compile_program(program), threads=2))
    left = [i.name for i in model.graph.input if i.name in given]
    got = fast(*(to_torch(given[n]) for n in left))
    got = list(got) if isinstance(got, tuple | list) else [got]
    for value, expected in zip(got, want, strict=True):
        wanted = to_torch(expected)
        assert value.shape == wanted.shape, f"shape {value.shape}, not {wanted.shape}"
        assert value.dtype == wanted.dtype, f"dtype {value.dtype}, not {wanted.dtype}"
        if wanted.is_floating_point():
            # bfloat16: as onnx.backend.test.runner compares it.
            rtol = max(case.rtol, 2**-6) if wanted.dtype == torch.bfloat16 else case.rtol
            np.testing.assert_allclose(
                value.double().numpy(), wanted.double().numpy(), rtol=rtol, atol=case.atol
            )
        else:
            np.testing.assert_array_equal(value.numpy(), wanted.numpy())


def is_foreign(case: Any) -> bool:
    """Whether the test is about values that torch does not calculate with: other dtypes,
    strings, sequences, optional values."""
    known = set(DTYPES) | {0}
    try:
        infos = [*case.model.graph.input, *case.model.graph.output]
        return any(
            not i.type.HasField("tensor_type") or i.type.tensor_type.elem_type not in known
            for i in infos
        )
    except AttributeError:
        return True


def why(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    line = text[0] if text else type(error).__name__
    if isinstance(error, AssertionError) and "Not equal" in str(error):
        line = "other values"
    line = re.sub(r"t\d+|\(\d[\d, ]*\)", "…", line)
    return line[:110].replace("|", "\\|")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="")
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--out", type=Path, default=PAGE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    passed: Counter[str] = Counter()
    foreign: Counter[str] = Counter()
    failed: dict[str, list[str]] = defaultdict(list)
    started = time.perf_counter()
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        cases = [c for c in load_model_tests(kind="node") if options.only in c.name]
        os.environ["QUIRE_CACHE"] = folder
        os.environ["QUIRE_CXXFLAGS"] = build.read_once(Path(folder), "-O0")
        for k, case in enumerate(cases):
            nodes = case.model.graph.node if case.model else []
            op = nodes[0].op_type if nodes else "(no model)"
            if "_expanded" in case.name:
                op = "(functions, expanded)"
            if options.transformers and op not in TRANSFORMERS:
                continue
            if is_foreign(case):
                foreign[op] += 1
                continue
            try:
                run(case)
                passed[op] += 1
            except Exception as error:  # every way to fail is counted
                failed[op].append(why(error))
                print(f"{case.name}: {type(error).__name__}: {why(error)}", flush=True)
            for made in Path(folder).glob("*.so"):
                made.unlink()
            if k % 100 == 99:
                print(f"[{k + 1}/{len(cases)}, {time.perf_counter() - started:.0f} s]", flush=True)
    page(passed, failed, foreign, options.out)


def page(
    passed: Counter[str], failed: dict[str, list[str]], foreign: Counter[str], out: Path
) -> None:
    ops = sorted(set(passed) | set(failed) | set(foreign))
    good, bad = sum(passed.values()), sum(len(v) for v in failed.values())
    total = good + bad
    used = [op for op in ops if op in TRANSFORMERS]
    whole = sum(not failed[op] and passed[op] > 0 for op in used)
    lines = [
        "# ONNX: what runs",
        "",
        f"The node tests of onnx {onnx.__version__}, each compiled and run by `quire.fuse` "
        "(`make coverage-onnx`, which writes this page). Inputs that decide a shape are given as "
        "constants. Tests of values that torch does not calculate with (uint16 and wider, float8, "
        "int4, strings, sequences) are counted in a column of their own.",
        "",
        f"**{good} of {total} tests pass. Of {len(used)} ops that transformers use, {whole} pass "
        "every test.**",
        "",
    ]
    for title, some in (
        ("Ops that transformers use", used),
        ("Other ops", [op for op in ops if op not in used]),
    ):
        lines += [f"## {title}", ""]
        lines += ["| op | passed | of | other values | what fails |", "|---|---|---|---|---|"]
        for op in some:
            text = "; ".join(f"{n} × {r}" for r, n in Counter(failed[op]).most_common(3))
            count = passed[op] + len(failed[op])
            lines.append(f"| {op} | {passed[op]} | {count} | {foreign[op] or ''} | {text} |")
        lines.append("")
    out.write_text("\n".join(lines))
    print(f"{good} of {total} pass; {whole} of {len(used)} transformer ops pass all")


if __name__ == "__main__":
    main()
