"""Running a decode kernel over rows that stand at different positions."""

import copy

import torch

from quire.capture.decode import capture_decode
from quire.kernel.compile import compile_program
from quire.runtime.native import NativeKernel

FAST_BUILD = ("-O1",)
"""Tests look at values: most compile with less optimisation, which takes half the time."""


def kernel_of(model, *, length=48, batch=4, scheme="", threads=2, extra=FAST_BUILD, **options):
    step = capture_decode(model, length, batch)
    longest = {s.name: batch for s in step.program.symbols}
    plan = compile_program(step.program, scheme, "test", longest)
    return step, NativeKernel(plan, threads=threads, extra=extra, **options)


def decode(step, kernel, ids, starts):
    """Logits `[rows, tokens, vocabulary]`: row b's tokens go to the slots from `starts[b]` on."""
    rows, tokens = ids.shape
    keys = [torch.full((rows, *k), 7.0, dtype=step.dtype) for k in step.key_shapes]
    values = [torch.full((rows, *v), 7.0, dtype=step.dtype) for v in step.value_shapes]
    names = [i.target for i in step.program.users_inputs()]
    found = []
    for t in range(tokens):
        inputs = [ids[:, t : t + 1].contiguous(), starts + t, starts, *keys, *values]
        found.append(kernel(dict(zip(names, inputs, strict=True)))[0][:, 0].float())
    return torch.stack(found, 1)


def exact_logits(model, ids):
    """The model's logits in float64, its weights as they are."""
    with torch.no_grad():
        config = copy.deepcopy(model.config)
        config._experts_implementation = "batched_mm"  # the default has no float64
        double = type(model)(config)
        double.load_state_dict(model.state_dict())
        return double.double().eval()(ids, use_cache=False).logits
