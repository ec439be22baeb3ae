"""chunked by Quire

peak 0.1 MiB, baseline 1.8 MiB (-94%), budget 0.1 MiB; predicted time 0.011 s, baseline 0.000629 s
r0: dim 2 of conv2d_1, 151 in 151 parts of 1 (concat), 3 ops at 2
"""

import torch

from quire.flow.parts import causal_rows
from quire.runtime import kernels

aten = torch.ops.aten


def region_0(x0, w0, w1, w2, w3, device, size, step):
    step = min(step, size)
    y0 = torch.empty([1, 3, 151, 32], dtype=torch.float32, device=device)
    slot_0 = torch.empty(512 * min(301, 1 + 2 * step), dtype=torch.float32, device=device)
    for a in range(0, size, step):
        b = min(a + step, size)
        lo0, hi0 = kernels.cut((-1) + 2 * a, 2 * b, 301)
        conv2d_0 = aten.conv2d.default(
            kernels.part(x0, 2, (-1) + lo0, 1 + hi0, fill=0.0), w0, w1, [1, 1], [0, 1], [1, 1]
        )
        lo1, hi1 = kernels.cut((-1) + 2 * a, 2 * b, 301)
        relu_1 = slot_0.narrow(0, 0, ((-512) * lo1) + 512 * hi1).view(
            [1, 8, hi1 + ((-1) * lo1), 64]
        )
        kernels.relu(conv2d_0, out=relu_1)
        del conv2d_0
        conv2d_2 = aten.conv2d.default(
            kernels.part(relu_1, 2, (-1) + ((-1) * lo1) + 2 * a, ((-1) * lo1) + 2 * b, fill=0.0),
            w2,
            w3,
            [2, 2],
            [0, 1],
            [1, 1],
        )
        kernels.put(y0, conv2d_2, 2, a, b)
        del conv2d_2
    return y0


def forward(w, parts, input_1):
    device = input_1.device
    # 2 [Conv2d]
    # r0: dim 2 of conv2d_1
    conv2d_1 = region_0(
        input_1, w["0.weight"], w["0.bias"], w["2.weight"], w["2.bias"], device, 151, parts["r0"]
    )
    return [conv2d_1]
