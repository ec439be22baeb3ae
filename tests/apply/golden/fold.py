"""chunked by Quire

peak 0.0 MiB, baseline 0.0 MiB (-20%), budget 0.0 MiB; predicted time 0.00999 s, baseline 1.21e-05 s
r0: a folded dim of linear_1, 512 in 512 parts of 1 (sum), 3 ops at down
"""

import torch

from quire.flow.parts import causal_rows
from quire.runtime import kernels

aten = torch.ops.aten


def region_0(x0, w0, w1, w2, w3, device, size, step):
    step = min(step, size)
    y0 = torch.empty([1, 8], dtype=torch.float32, device=device)
    slot_0 = torch.empty(step, dtype=torch.float32, device=device)
    slot_1 = torch.empty(8, dtype=torch.float32, device=device)
    for a in range(0, size, step):
        b = min(a + step, size)
        w0_0 = w0.narrow(0, a, b + ((-1) * a))
        w1_1 = w1.narrow(0, a, b + ((-1) * a))
        linear_0 = slot_0.narrow(0, 0, b + ((-1) * a)).view([1, b + ((-1) * a)])
        kernels.linear(x0, w0_0, w1_1, out=linear_0)
        gelu_1 = slot_0.narrow(0, 0, b + ((-1) * a)).view([1, b + ((-1) * a)])
        kernels.gelu(linear_0, out=gelu_1)
        w2_2 = w2.narrow(1, a, b + ((-1) * a))
        linear_2 = slot_1.narrow(0, 0, 8).view([1, 8])
        kernels.linear(gelu_1, w2_2, out=linear_2)
        if a == 0:
            y0.copy_(linear_2)
        else:
            y0.add_(linear_2)
    y0.add_(w3)
    return y0


def forward(w, parts, args_0):
    device = args_0.device
    # down [Linear]
    # r0: a folded dim of linear_1
    linear_1 = region_0(
        args_0,
        w["up.weight"],
        w["up.bias"],
        w["down.weight"],
        w["down.bias"],
        device,
        512,
        parts["r0"],
    )
    return [linear_1]
