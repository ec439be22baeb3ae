"""chunked by Quire

peak 0.3 MiB, baseline 4.3 MiB (-94%), budget 0.3 MiB; predicted time 0.0993 s, baseline 0.00217 s
r0: dim 1 of add_16, 4096 in 4096 parts of 1 (concat), 4 ops at (root)
"""

import torch

from quire.flow.parts import causal_rows
from quire.runtime import kernels

aten = torch.ops.aten


def region_0(x0, w0, w1, w2, w3, s50, device, size, step):
    step = min(step, size)
    y0 = x0
    slot_0 = torch.empty(128 * step, dtype=torch.float32, device=device)
    slot_1 = torch.empty(16 * step, dtype=torch.float32, device=device)
    for a in range(0, size, step):
        b = min(a + step, size)
        x0_0 = x0.narrow(1, a, b + ((-1) * a))
        linear_0 = slot_0.narrow(0, 0, ((-128) * a) + 128 * b).view([2, b + ((-1) * a), 64])
        kernels.linear(x0_0, w0, w1, out=linear_0)
        gelu_1 = slot_0.narrow(0, 0, ((-128) * a) + 128 * b).view([2, b + ((-1) * a), 64])
        kernels.gelu(linear_0, out=gelu_1)
        linear_2 = slot_1.narrow(0, 0, ((-16) * a) + 16 * b).view([2, b + ((-1) * a), 8])
        kernels.linear(gelu_1, w2, w3, out=linear_2)
        add_3 = y0.narrow(1, a, b + ((-1) * a))
        torch.add(x0_0, linear_2, out=add_3)
    return y0


def forward(w, parts, args_0):
    device = args_0.device
    s50 = args_0.shape[1]
    # start [Linear]
    linear = aten.linear.default(args_0, w["start.weight"], w["start.bias"])
    # (root) [Call]
    # r0: dim 1 of add_16
    add_16 = region_0(
        linear,
        w["up.weight"],
        w["up.bias"],
        w["down.weight"],
        w["down.bias"],
        s50,
        device,
        s50,
        parts["r0"],
    )
    del linear
    return [add_16]
