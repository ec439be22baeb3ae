"""chunked by Quire

peak 0.1 MiB, baseline 1.5 MiB (-96%), budget 0.1 MiB; predicted time 0.00743 s, baseline 0.00138 s
rewrite: attention of the model as scaled_dot_product_attention, causal
r0: dim 2 of scaled_dot_product_attention_default, 301 in 301 parts of 1 (concat), 1 ops at (root)
"""

import torch

from quire.flow.parts import causal_rows
from quire.runtime import kernels

aten = torch.ops.aten


def region_0(x0, x1, x2, device, size, step):
    step = min(step, size)
    y0 = torch.empty_strided([1, 2, 301, 4], [2408, 4, 8, 1], dtype=torch.float32, device=device)
    for a in range(0, size, step):
        b = min(a + step, size)
        x0_0 = x0.narrow(2, a, b + ((-1) * a))
        scaled_dot_product_attention_0 = causal_rows(x0_0, x1, x2, is_causal=a, scale=0.5)
        kernels.put(y0, scaled_dot_product_attention_0, 2, a, b)
        del scaled_dot_product_attention_0
    return y0


def forward(w, parts, x):
    device = x.device
    # q [Linear]
    linear = aten.linear.default(x, w["q.weight"], w["q.bias"])
    # k [Linear]
    linear_1 = aten.linear.default(x, w["k.weight"], w["k.bias"])
    # v [Linear]
    linear_2 = aten.linear.default(x, w["v.weight"], w["v.bias"])
    # (root) [Attention]
    repeat_interleave = aten.repeat_interleave.self_int(
        aten.transpose.int(aten.reshape.default(linear_1, [1, 301, 2, 4]), 1, 2), 1, 1
    )
    del linear_1
    repeat_interleave_1 = aten.repeat_interleave.self_int(
        aten.transpose.int(aten.reshape.default(linear_2, [1, 301, 2, 4]), 1, 2), 1, 1
    )
    del linear_2
    # r0: dim 2 of scaled_dot_product_attention_default
    scaled_dot_product_attention_default = region_0(
        aten.transpose.int(aten.reshape.default(linear, [1, 301, 2, 4]), 1, 2),
        aten.transpose.int(aten.transpose.int(repeat_interleave, -1, -2), -2, -1),
        repeat_interleave_1,
        device,
        301,
        parts["r0"],
    )
    del linear
    del repeat_interleave
    del repeat_interleave_1
    # o [Linear]
    linear_3 = aten.linear.default(
        aten.reshape.default(
            aten.transpose.int(scaled_dot_product_attention_default, 1, 2), [1, 301, 8]
        ),
        w["o.weight"],
        w["o.bias"],
    )
    del scaled_dot_product_attention_default
    return [linear_3]
