"""Audit flow rules on torch's own sample inputs: trace each, and check every ATen call in it."""

from __future__ import annotations

import itertools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from rule_case import Call, case_of
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.common_methods_invocations import op_db

from quire.flow.registry import rules

SAMPLES = 8


class Recorder(fx.Interpreter):
    """Runs a traced graph and keeps its calls of ops that have a rule, with their arguments."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.calls: list[Call] = []

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in rules():
            self.calls.append(Call(target, args, kwargs))
        return super().call_function(target, args, kwargs)


def traced_calls(pattern: str) -> Iterator[tuple[str, Call]]:
    """The ATen calls within the first samples of each of torch's tested ops."""
    for info in op_db:
        if pattern not in info.name or torch.float64 not in info.supported_dtypes("cpu"):
            continue
        samples = info.sample_inputs("cpu", torch.float64)
        try:
            for sample in itertools.islice(samples, SAMPLES):
                flat, spec = torch.utils._pytree.tree_flatten(
                    (sample.input, sample.args, sample.kwargs)
                )
                places = [i for i, v in enumerate(flat) if isinstance(v, torch.Tensor)]

                def call(*tensors: torch.Tensor, flat=flat, spec=spec, places=places, info=info):
                    values = list(flat)
                    for i, tensor in zip(places, tensors, strict=True):
                        values[i] = tensor
                    first, args, kwargs = torch.utils._pytree.tree_unflatten(values, spec)
                    return info.op(first, *args, **kwargs)

                tensors = [flat[i] for i in places]
                graph = make_fx(call, pre_dispatch=True)(*tensors)
                recorder = Recorder(graph)
                recorder.run(*tensors)
                for found in recorder.calls:
                    yield info.name, found
        except Exception:  # torch cannot trace or run some of its samples
            continue


def audit_opinfo(report: Any, pattern: str, *, seed: int) -> None:
    """Add to `report` what the calls within torch's samples show."""
    from audit_rules import audit_case  # noqa: PLC0415 - it imports this module

    rng = random.Random(seed)
    seen: set[str] = set()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _, call in traced_calls(pattern):
            key = str((call.target, torch.utils._pytree.tree_map(brief, (call.args, call.kwargs))))
            if key in seen or "rand" in key or "dropout" in key:
                continue
            seen.add(key)
            try:
                case = case_of(call)
            except Exception:  # layouts and devices that a plain call lacks
                continue
            audit_case(case, rng, report, search=True)


def brief(value: Any) -> Any:
    return (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value
