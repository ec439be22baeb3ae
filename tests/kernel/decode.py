"""Running a decode kernel over rows that stand at different positions."""

import copy
import functools

import torch

from quire.capture.decode import capture_decode
from quire.kernel.compile import compile_program
from quire.runtime.native import NativeKernel
from tests.kernel.models import causal_lm

LENGTH, BATCH = 48, 12


@functools.cache
def captured(name, dtype=torch.float32, **changes):
    """A model and its decode step, which take seconds: made once, and not to be changed."""
    model = causal_lm(name, dtype, **changes)
    return model, capture_decode(model, LENGTH, BATCH)


@functools.cache
def planned(name, dtype=torch.float32, scheme="", **changes):
    _, step = captured(name, dtype, **changes)
    longest = {s.name: BATCH for s in step.program.symbols}
    return compile_program(step.program, scheme, "test", longest)


def kernel_of(name, dtype=torch.float32, scheme="", threads=2, **changes):
    """A model, its decode step, and a kernel of it."""
    plan = planned(name, dtype, scheme, **changes)
    return *captured(name, dtype, **changes), NativeKernel(plan, threads=threads)


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
