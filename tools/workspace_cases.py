"""The calls that `workspace_oracle.py` measures: shapes of real models, one line each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]

A = torch.ops.aten
CASES: dict[str, Callable[[], Call]] = {}
OUTSIDE = {"linear bf16", "addmm bf16", "sort int", "topk large"}
"""Cases part of whose memory does not come from torch's allocator."""
ON_UNIT = {
    "linear no bias bf16", "linear one row bf16", "mm bf16", "conv1x1 bf16", "conv1x1 bf16 batch 2",
    "linear half",
}  # fmt: skip
"""Products of 16-bit dtypes whose bound is no more than that on a matrix unit, where oneDNN cuts
them into blocks by rules of its own."""
R = torch.randn
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


LOOSE = {"conv1d kernel 31", "conv1d kernel 40", "conv1d wav2vec2 pos", "conv1d kernel 31 groups"}
"""Cases whose bound is up to a third too high with several threads: oneDNN picks the block of
columns by rules of its own."""


def case(name: str, target: Any, *make: Any, **kwargs: Any) -> None:
    """A call of `target`; callables among the arguments are run when the case is."""

    def build() -> Call:
        return target, tuple(m() if callable(m) else m for m in make), kwargs

    assert name not in CASES, name
    CASES[name] = build


def r(*shape: int, dtype: torch.dtype = F32) -> Callable[[], torch.Tensor]:
    return lambda: R(shape).to(dtype)


def perm(order: tuple[int, ...], *shape: int, dtype: torch.dtype = F32) -> Callable[[], Any]:
    """A tensor of `shape` permuted by `order`."""
    return lambda: R(shape).to(dtype).permute(order)


def tensors(*make: Callable[[], Any]) -> Callable[[], list[torch.Tensor]]:
    return lambda: [m() for m in make]


def channels_last(*shape: int) -> Callable[[], torch.Tensor]:
    return lambda: R(shape).to(memory_format=torch.channels_last)


def image(channels: int, *sides: int) -> Callable[[], torch.Tensor]:
    """Tokens made an image again: channels last, but for the stride of the one image."""
    tokens = math.prod(sides)
    return lambda: R(1, tokens, channels).transpose(1, 2).reshape(1, channels, *sides)


def causal(n: int, m: int, *, dtype: torch.dtype = F32) -> Callable[[], torch.Tensor]:
    def make() -> torch.Tensor:
        keep = torch.ones(n, m, dtype=torch.bool).tril(m - n)
        return (
            keep
            if dtype == torch.bool
            else torch.zeros(n, m, dtype=dtype).masked_fill_(~keep, float("-inf"))
        )

    return make


# SDPA ---------------------------------------------------------------------------------------
sdpa = A.scaled_dot_product_attention.default
qkv = r(1, 12, 1024, 64)
case("sdpa gpt2 causal", sdpa, qkv, qkv, qkv, is_causal=True)
for n in (16, 100, 191, 192, 767, 768, 2048):
    case(
        f"sdpa rows {n} of 2048 keys", sdpa, r(1, 12, n, 64), r(1, 12, 2048, 64), r(1, 12, 2048, 64)
    )
case("sdpa 100 keys", sdpa, r(1, 12, 768, 64), r(1, 12, 100, 64), r(1, 12, 100, 64))
case("sdpa bf16", sdpa, *[r(1, 12, 1024, 64, dtype=BF16)] * 3)
case(
    "sdpa bf16 odd keys",
    sdpa,
    r(1, 12, 1001, 64, dtype=BF16),
    *[r(1, 12, 1001, 64, dtype=BF16)] * 2,
)
case(
    "sdpa bf16 float mask",
    sdpa,
    *[r(1, 12, 1024, 64, dtype=BF16)] * 3,
    causal(1024, 1024, dtype=BF16),
)
case("sdpa f64", sdpa, *[r(1, 12, 512, 64, dtype=F64)] * 3)
case("sdpa f64 causal", sdpa, *[r(1, 12, 512, 64, dtype=F64)] * 3, is_causal=True)
case(
    "sdpa f64 bool mask",
    sdpa,
    *[r(1, 12, 512, 64, dtype=F64)] * 3,
    causal(512, 512, dtype=torch.bool),
)
case("sdpa bool mask", sdpa, *[r(1, 12, 2048, 64)] * 3, causal(2048, 2048, dtype=torch.bool))
case(
    "sdpa bool mask per head",
    sdpa,
    *[r(1, 12, 512, 64)] * 3,
    lambda: torch.rand(1, 12, 512, 512) > 0.1,
)
case(
    "sdpa bool mask expanded",
    sdpa,
    *[r(2, 12, 512, 64)] * 3,
    lambda: causal(512, 512, dtype=torch.bool)().expand(2, 12, 512, 512),
)
case("sdpa bool mask keys", sdpa, *[r(2, 12, 512, 64)] * 3, lambda: torch.rand(2, 1, 1, 512) > 0.1)
case("sdpa float mask", sdpa, *[r(1, 12, 2048, 64)] * 3, causal(2048, 2048))
case("sdpa float mask 4d", sdpa, *[r(2, 12, 512, 64)] * 3, r(2, 1, 512, 512))
case(
    "sdpa float mask transposed", sdpa, *[r(1, 12, 2048, 64)] * 3, lambda: causal(2048, 2048)().t()
)
case("sdpa head dim 65", sdpa, *[r(1, 12, 512, 65)] * 3)
case("sdpa v wider", sdpa, r(1, 12, 512, 64), r(1, 12, 512, 64), r(1, 12, 512, 96))
case(
    "sdpa gqa",
    sdpa,
    r(1, 32, 512, 64),
    r(1, 4, 512, 64),
    r(1, 4, 512, 64),
    is_causal=True,
    enable_gqa=True,
)
case(
    "sdpa gqa f64",
    sdpa,
    r(1, 32, 256, 64, dtype=F64),
    r(1, 4, 256, 64, dtype=F64),
    r(1, 4, 256, 64, dtype=F64),
    enable_gqa=True,
)
case("sdpa permuted", sdpa, *[perm((0, 2, 1, 3), 1, 1024, 12, 64)] * 3)
case("sdpa 3d", sdpa, *[r(12, 512, 64)] * 3)
case("sdpa 5d", sdpa, *[r(1, 4, 12, 256, 64)] * 3)
case("sdpa last dim strided", sdpa, *[perm((0, 1, 3, 2), 1, 12, 64, 512)] * 3)
case("sdpa dropout", sdpa, *[r(1, 12, 512, 64)] * 3, None, 0.1)
case("sdpa head dim 1 key", sdpa, *[r(4, 12, 1, 64)] * 3)

wide = r(1, 12, 512, 96)
case("sdpa v wider causal", sdpa, *[r(1, 12, 512, 64)] * 2, wide, None, 0.0, True)
case(
    "sdpa v wider permuted",
    sdpa,
    *[perm((0, 2, 1, 3), 2, 512, 12, 64)] * 2,
    perm((0, 2, 1, 3), 2, 512, 12, 96),
)
case("sdpa v wider short", sdpa, r(1, 12, 40, 64), r(1, 12, 512, 64), wide)
case("sdpa v wider float mask", sdpa, *[r(1, 12, 512, 64)] * 2, wide, causal(512, 512))
case(
    "sdpa v wider gqa", sdpa, r(1, 32, 512, 64), r(1, 4, 512, 64), r(1, 4, 512, 32), enable_gqa=True
)
case("sdpa 3d bf16", sdpa, *[r(12, 512, 64, dtype=BF16)] * 3)
case(
    "sdpa 3d bf16 bool", sdpa, *[r(12, 512, 64, dtype=BF16)] * 3, causal(512, 512, dtype=torch.bool)
)
case("sdpa 3d causal", sdpa, *[r(12, 512, 64)] * 3, is_causal=True)
case("sdpa half", sdpa, *[r(1, 12, 1024, 64, dtype=torch.float16)] * 3, is_causal=True)
case("sdpa batch 8", sdpa, *[r(8, 4, 300, 32)] * 3)
case("sdpa cross", sdpa, r(2, 8, 2304, 40), *[r(2, 8, 77, 40)] * 2)
case("rms_norm no weight bf16", A.rms_norm.default, r(1, 1024, 768, dtype=BF16), [768], None, 1e-6)
case("rms_norm llama", A.rms_norm.default, r(1, 2048, 2048), [2048], r(2048), 1e-6)
case("safe_softmax", A._safe_softmax.default, r(4, 512, 512), -1)

# Normalisation, softmax -----------------------------------------------------------------------
for name, x in {
    "": r(1, 1024, 768),
    " permuted": perm((0, 2, 1), 1, 768, 1024),
    " narrowed": lambda: R(1, 1024, 1024)[..., :768],
    " esmfold": perm((0, 2, 1, 3), 1, 128, 96, 128),
    " nchw to nhwc": perm((0, 2, 3, 1), 1, 96, 48, 48),
    " bf16": r(1, 1024, 768, dtype=BF16),
}.items():
    width = x().shape[-1]
    dt = x().dtype
    case(
        "layer_norm" + name,
        A.layer_norm.default,
        x,
        [width],
        r(width, dtype=dt),
        r(width, dtype=dt),
    )
    case("rms_norm" + name, A.rms_norm.default, x, [width], r(width, dtype=dt), 1e-6)
    case("softmax" + name, A.softmax.int, x, -1)
    case("_softmax" + name, A._softmax.default, x, -1, False)
    case(
        "native_layer_norm" + name,
        A.native_layer_norm.default,
        x,
        [width],
        r(width, dtype=dt),
        r(width, dtype=dt),
        1e-5,
    )
case("layer_norm no affine", A.layer_norm.default, r(1, 1024, 768), [768])
case(
    "layer_norm f32 weights bf16",
    A.layer_norm.default,
    r(1, 1024, 768, dtype=BF16),
    [768],
    r(768),
    r(768),
)
case("rms_norm no weight", A.rms_norm.default, r(1, 1024, 768), [768], None, 1e-6)
case("rms_norm f64", A.rms_norm.default, r(1, 1024, 768, dtype=F64), [768], r(768, dtype=F64), 1e-6)
case("softmax dim 1", A.softmax.int, r(4, 512, 512), 1)
case("softmax to f32", A.softmax.int, r(4, 512, 512, dtype=BF16), -1, dtype=F32)
case("softmax to f64", A.softmax.int, r(4, 512, 512), -1, dtype=F64)
case("softmax same dtype", A.softmax.int, r(4, 512, 512), -1, dtype=F32)
case("log_softmax", A.log_softmax.int, r(1, 512, 5000), -1)
case("log_softmax permuted", A.log_softmax.int, perm((0, 2, 1), 1, 512, 2000), -1)
gn = A.group_norm.default
case("group_norm unet", gn, r(2, 320, 48, 48), 32, r(320), r(320))
case("group_norm channels last", gn, channels_last(2, 320, 48, 48), 32, r(320), r(320))
case("group_norm permuted", gn, perm((0, 2, 1), 2, 2304, 320), 32, r(320), r(320))
case(
    "group_norm bf16", gn, r(2, 320, 48, 48, dtype=BF16), 32, r(320, dtype=BF16), r(320, dtype=BF16)
)
case("group_norm 1d", gn, r(1, 512, 3000), 512, r(512), r(512))
bn = A.batch_norm.default
stats = (r(64), r(64), r(64), lambda: torch.rand(64) + 1)
case("batch_norm", bn, r(2, 64, 96, 96), *stats, False, 0.1, 1e-5, False)
case("batch_norm channels last", bn, channels_last(2, 64, 96, 96), *stats, False, 0.1, 1e-5, False)
case("batch_norm permuted", bn, perm((0, 2, 1), 2, 9216, 64), *stats, False, 0.1, 1e-5, False)
nbn = A._native_batch_norm_legit_no_training.default
case("native_batch_norm", nbn, r(2, 64, 96, 96), *stats, 0.1, 1e-5)
case(
    "instance_norm",
    A.instance_norm.default,
    r(2, 64, 96, 96),
    None,
    None,
    None,
    None,
    True,
    0.1,
    1e-5,
    False,
)

# Contractions ---------------------------------------------------------------------------------
for dt, tag in ((F32, ""), (BF16, " bf16"), (F64, " f64")):
    case(
        "linear" + tag,
        A.linear.default,
        r(1, 1024, 768, dtype=dt),
        r(3072, 768, dtype=dt),
        r(3072, dtype=dt),
    )
    case(
        "linear no bias" + tag, A.linear.default, r(1, 1024, 768, dtype=dt), r(3072, 768, dtype=dt)
    )
    case(
        "linear one row" + tag,
        A.linear.default,
        r(1, 1, 768, dtype=dt),
        r(3072, 768, dtype=dt),
        r(3072, dtype=dt),
    )
    case(
        "addmm" + tag,
        A.addmm.default,
        r(3072, dtype=dt),
        r(1024, 768, dtype=dt),
        r(768, 3072, dtype=dt),
    )
    case("mm" + tag, A.mm.default, r(1024, 768, dtype=dt), r(768, 3072, dtype=dt))
    case(
        "matmul 4d" + tag,
        A.matmul.default,
        r(1, 12, 512, 64, dtype=dt),
        perm((0, 1, 3, 2), 1, 12, 512, 64, dtype=dt),
    )
    case("bmm" + tag, A.bmm.default, r(12, 512, 64, dtype=dt), r(12, 64, 512, dtype=dt))
case(
    "linear permuted input", A.linear.default, perm((0, 2, 1), 2, 768, 1024), r(3072, 768), r(3072)
)
case("linear permuted no bias", A.linear.default, perm((0, 2, 1), 2, 768, 1024), r(3072, 768))
case(
    "linear heads merged",
    A.linear.default,
    lambda: R(2, 12, 512, 64).transpose(1, 2).reshape(2, 512, 768),
    r(768, 768),
    r(768),
)
case(
    "linear narrowed", A.linear.default, lambda: R(2, 1024, 1024)[..., :768], r(3072, 768), r(3072)
)
case(
    "linear 2-d narrowed", A.linear.default, lambda: R(1024, 1024)[..., :768], r(3072, 768), r(3072)
)
case(
    "linear rows narrowed",
    A.linear.default,
    lambda: R(2, 1024, 768)[:, :500],
    r(3072, 768),
    r(3072),
)
case(
    "linear rows narrowed no bias", A.linear.default, lambda: R(2, 1024, 768)[:, :500], r(3072, 768)
)
case("linear 4-d", A.linear.default, r(1, 128, 128, 128), r(512, 128), r(512))
case(
    "linear 4-d permuted",
    A.linear.default,
    perm((0, 2, 1, 3), 1, 128, 96, 128),
    r(512, 128),
    r(512),
)
case("linear 1x1 transposed", A.linear.default, perm((1, 0), 768, 1024), r(3072, 768), r(3072))
case("linear weight transposed", A.linear.default, r(1024, 768), perm((1, 0), 768, 3072), r(3072))
case("addmm weight t", A.addmm.default, r(3072), r(1024, 768), perm((1, 0), 3072, 768))
case("addmm narrowed", A.addmm.default, r(3072), lambda: R(1024, 1024)[:, :768], r(768, 3072))
case("addmm steps", A.addmm.default, r(3072), lambda: R(1024, 1536)[:, ::2], r(768, 3072))
case("mm steps", A.mm.default, lambda: R(1024, 1536)[:, ::2], r(768, 3072))
case("bmm steps", A.bmm.default, lambda: R(12, 512, 128)[..., ::2], r(12, 64, 512))
case(
    "matmul heads permuted",
    A.matmul.default,
    perm((0, 2, 1, 3), 1, 512, 12, 64),
    perm((0, 2, 3, 1), 1, 512, 12, 64),
)
case(
    "matmul heads permuted batch 2",
    A.matmul.default,
    perm((0, 2, 1, 3), 2, 512, 12, 64),
    perm((0, 2, 3, 1), 2, 512, 12, 64),
)
case(
    "matmul probs values batch 2",
    A.matmul.default,
    r(2, 12, 512, 512),
    perm((0, 2, 1, 3), 2, 512, 12, 64),
)
case(
    "matmul gqa expand",
    A.matmul.default,
    r(1, 32, 512, 64),
    lambda: R(1, 4, 1, 64, 512).expand(1, 4, 8, 64, 512).reshape(1, 32, 64, 512),
)
case("matmul broadcast batch", A.matmul.default, r(4, 12, 256, 64), r(1, 12, 64, 256))
case("matmul broadcast inner batch", A.matmul.default, r(4, 12, 256, 64), r(4, 1, 64, 256))
case("matmul 4d by 2d", A.matmul.default, r(1, 128, 128, 128), r(128, 128))
case("matmul 2d by 4d", A.matmul.default, r(128, 128), r(1, 64, 128, 128))
case("matmul 3d by 2d permuted", A.matmul.default, perm((0, 2, 1), 2, 768, 1024), r(768, 768))
case("matmul 3d by 2d weight t", A.matmul.default, r(2, 1024, 768), perm((1, 0), 768, 768))
case("matmul 3d by 1d", A.matmul.default, r(2, 1024, 768), r(768))
case("matmul 1d by 3d", A.matmul.default, r(512), r(4, 512, 300))
case("matmul 2d by 3d", A.matmul.default, r(64, 128), r(8, 128, 512))
case("matmul 1d by 1d", A.matmul.default, r(768), r(768))
case(
    "matmul swin windows",
    A.matmul.default,
    perm((0, 2, 1, 3), 256, 49, 3, 32),
    perm((0, 2, 3, 1), 256, 49, 3, 32),
)
case(
    "matmul esmfold triangle",
    A.matmul.default,
    perm((0, 3, 1, 2), 1, 128, 128, 128),
    perm((0, 3, 2, 1), 1, 128, 128, 128),
)
case(
    "matmul esmfold attention",
    A.matmul.default,
    perm((0, 1, 3, 2, 4), 1, 128, 128, 4, 32),
    perm((0, 1, 3, 4, 2), 1, 128, 128, 4, 32),
)
case(
    "matmul esmfold values",
    A.matmul.default,
    r(1, 64, 4, 64, 64),
    perm((0, 1, 3, 2, 4), 1, 64, 64, 4, 32),
)
case(
    "matmul 5d permuted",
    A.matmul.default,
    perm((0, 2, 1, 3, 4), 1, 64, 48, 8, 32),
    perm((0, 2, 1, 4, 3), 1, 64, 48, 40, 32),
)
case("matmul 5d broadcast", A.matmul.default, r(1, 48, 64, 8, 32), r(1, 1, 64, 32, 40))
for eq, s, t in (
    ("bikd,bjkd->bijd", (1, 128, 96, 64), (1, 128, 96, 64)),
    ("bkid,bkjd->bijd", (1, 96, 128, 64), (1, 96, 128, 64)),
    ("bhid,bhjd->bhij", (1, 12, 512, 64), (1, 12, 512, 64)),
    ("bhij,bhjd->bhid", (1, 12, 512, 512), (1, 12, 512, 64)),
    ("bsd,ed->bse", (1, 1024, 768), (768, 768)),
    ("bhid,ijd->bhij", (1, 8, 128, 32), (128, 128, 32)),
    ("bqhd,bkhd->bhqk", (1, 512, 12, 64), (1, 512, 12, 64)),
    ("i,j->ij", (1024,), (1024,)),
    ("bi,bj->bij", (4, 512), (4, 512)),
):
    case(f"einsum {eq}", A.einsum.default, eq, tensors(r(*s), r(*t)))
case("baddbmm", A.baddbmm.default, r(12, 512, 512), r(12, 512, 64), r(12, 64, 512))
case(
    "baddbmm expand",
    A.baddbmm.default,
    lambda: R(1, 512, 512).expand(12, 512, 512),
    r(12, 512, 64),
    r(12, 64, 512),
)

# Convolution ----------------------------------------------------------------------------------
conv2, conv1, convt2 = A.conv2d.default, A.conv1d.default, A.conv_transpose2d.input
for c_in, c_out, size in (
    (64, 64, 96),
    (128, 64, 96),
    (64, 128, 48),
    (320, 320, 24),
    (4, 64, 96),
    (64, 4, 96),
    (256, 256, 12),
    (100, 60, 50),
):
    case(
        f"conv3x3 {c_in}->{c_out} @{size}",
        conv2,
        r(1, c_in, size, size),
        r(c_out, c_in, 3, 3),
        r(c_out),
        [1, 1],
        [1, 1],
    )
    case(
        f"conv1x1 {c_in}->{c_out} @{size}",
        conv2,
        r(1, c_in, size, size),
        r(c_out, c_in, 1, 1),
        r(c_out),
    )
case("conv3x3 batch 2", conv2, r(2, 128, 48, 48), r(128, 128, 3, 3), r(128), [1, 1], [1, 1])
case(
    "conv3x3 channels last",
    conv2,
    channels_last(2, 128, 48, 48),
    r(128, 128, 3, 3),
    r(128),
    [1, 1],
    [1, 1],
)
case(
    "conv3x3 cl weights cl",
    conv2,
    channels_last(2, 128, 48, 48),
    channels_last(128, 128, 3, 3),
    r(128),
    [1, 1],
    [1, 1],
)
case("conv3x3 stride 2", conv2, r(1, 128, 96, 96), r(128, 128, 3, 3), r(128), [2, 2], [1, 1])
case(
    "conv3x3 narrowed rows",
    conv2,
    lambda: R(1, 128, 96, 96)[:, :, 10:40],
    r(128, 128, 3, 3),
    r(128),
    [1, 1],
    [1, 1],
)
case(
    "conv3x3 bf16",
    conv2,
    r(1, 128, 96, 96, dtype=BF16),
    r(128, 128, 3, 3, dtype=BF16),
    r(128, dtype=BF16),
    [1, 1],
    [1, 1],
)
case(
    "conv3x3 f64",
    conv2,
    r(1, 64, 48, 48, dtype=F64),
    r(64, 64, 3, 3, dtype=F64),
    r(64, dtype=F64),
    [1, 1],
    [1, 1],
)
case(
    "conv3x3 f64 batch 2",
    conv2,
    r(2, 64, 48, 48, dtype=F64),
    r(64, 64, 3, 3, dtype=F64),
    r(64, dtype=F64),
    [1, 1],
    [1, 1],
)
case(
    "conv1x1 f64", conv2, r(1, 64, 48, 48, dtype=F64), r(64, 64, 1, 1, dtype=F64), r(64, dtype=F64)
)
case(
    "conv3x3 grouped", conv2, r(1, 128, 48, 48), r(128, 32, 3, 3), r(128), [1, 1], [1, 1], [1, 1], 4
)
case("conv3x3 dilated", conv2, r(1, 64, 48, 48), r(64, 64, 3, 3), r(64), [1, 1], [2, 2], [2, 2])
case(
    "conv7x7 depthwise convnext",
    conv2,
    r(1, 96, 56, 56),
    r(96, 1, 7, 7),
    r(96),
    [1, 1],
    [3, 3],
    [1, 1],
    96,
)
case(
    "conv7x7 depthwise wide",
    conv2,
    r(1, 384, 96, 96),
    r(384, 1, 7, 7),
    r(384),
    [1, 1],
    [3, 3],
    [1, 1],
    384,
)
case(
    "conv3x3 depthwise segformer cl",
    conv2,
    perm((0, 3, 1, 2), 1, 128, 128, 256),
    r(256, 1, 3, 3),
    r(256),
    [1, 1],
    [1, 1],
    [1, 1],
    256,
)
case("conv patch vit", conv2, r(1, 3, 512, 512), r(1024, 3, 16, 16), r(1024), [16, 16])
case("conv patch convnext", conv2, r(1, 3, 384, 384), r(96, 3, 4, 4), r(96), [4, 4])
case("conv patch segformer", conv2, r(1, 3, 512, 512), r(64, 3, 7, 7), r(64), [4, 4], [3, 3])
case("conv reduce segformer", conv2, r(1, 64, 128, 128), r(64, 64, 8, 8), r(64), [8, 8])
case("conv down convnext", conv2, r(1, 96, 96, 96), r(192, 96, 2, 2), r(192), [2, 2])
case("conv1d whisper 1", conv1, r(1, 80, 3000), r(384, 80, 3), r(384), [1], [1])
case("conv1d whisper 2", conv1, r(1, 384, 3000), r(384, 384, 3), r(384), [2], [1])
case("conv1d wav2vec2 first", conv1, r(1, 1, 80000), r(512, 1, 10), None, [5])
case("conv1d wav2vec2 next", conv1, r(1, 512, 8000), r(512, 512, 3), None, [2])
case("conv1d wav2vec2 last", conv1, r(1, 512, 2000), r(512, 512, 2), None, [2])
case("conv1d wav2vec2 pos", conv1, r(1, 768, 500), r(768, 48, 128), r(768), [1], [64], [1], 16)
case("conv1d mamba depthwise", conv1, r(1, 1536, 2048), r(1536, 1, 4), r(1536), [1], [3], [1], 1536)
case("conv1d pointwise", conv1, r(1, 768, 2048), r(768, 768, 1), r(768))
case("conv1d permuted", conv1, perm((0, 2, 1), 1, 3000, 80), r(384, 80, 3), r(384), [1], [1])
case("conv transpose 2x2", convt2, r(1, 128, 48, 48), r(128, 64, 2, 2), r(64), [2, 2])
case("conv transpose 4x4", convt2, r(1, 128, 48, 48), r(128, 64, 4, 4), r(64), [2, 2], [1, 1])
case(
    "conv3d patch",
    A.conv3d.default,
    r(1, 3, 8, 112, 112),
    r(384, 3, 2, 16, 16),
    r(384),
    [2, 16, 16],
)
case(
    "convolution",
    A.convolution.default,
    r(1, 64, 96, 96),
    r(64, 64, 3, 3),
    r(64),
    [1, 1],
    [1, 1],
    [1, 1],
    False,
    [0, 0],
    1,
)

for groups in (2, 8, 16, 32):
    case(
        f"conv3x3 groups {groups}",
        conv2,
        r(1, 256, 64, 64),
        r(256, 256 // groups, 3, 3),
        None,
        [1, 1],
        [1, 1],
        [1, 1],
        groups,
    )
    case(
        f"conv1d groups {groups}",
        conv1,
        r(1, 768, 2000),
        r(768, 768 // groups, 3),
        None,
        [1],
        [1],
        [1],
        groups,
    )
for k in (8, 16, 31, 40):
    case(f"conv1d kernel {k}", conv1, r(1, 64, 2000), r(64, 64, k), None, [1], [k // 2])
    case(
        f"conv1d kernel {k} groups",
        conv1,
        r(1, 768, 2000),
        r(768, 48, k),
        None,
        [1],
        [k // 2],
        [1],
        16,
    )
for c in (1, 8, 12, 16, 17):
    case(f"conv {c} inputs", conv2, r(1, c, 400, 400), r(16, c, 4, 4), None, [4, 4])
for c, size in ((64, 16), (64, 17), (64, 18), (320, 8)):
    case(f"conv small {c} @{size}", conv2, r(1, c, size, size), r(c, c, 3, 3), None, [1, 1], [1, 1])
case("conv1x1 stride 2", conv2, r(1, 64, 96, 96), r(128, 64, 1, 1), None, [2, 2])
case("conv1x1 padded", conv2, r(1, 64, 96, 96), r(128, 64, 1, 1), None, [1, 1], [1, 1])
case("conv1x1 batch 2", conv2, r(2, 64, 96, 96), r(128, 64, 1, 1))
case("conv1x1 groups", conv2, r(1, 64, 96, 96), r(128, 16, 1, 1), None, [1, 1], [0, 0], [1, 1], 4)
case("conv1x1 bf16", conv2, r(1, 64, 48, 48, dtype=BF16), r(128, 64, 1, 1, dtype=BF16))
case("conv1x1 bf16 batch 2", conv2, r(2, 64, 48, 48, dtype=BF16), r(128, 64, 1, 1, dtype=BF16))
case("conv1x1 permuted", conv2, perm((0, 3, 2, 1), 1, 96, 96, 64), r(128, 64, 1, 1))
case("conv3d 1x1x1", A.conv3d.default, r(1, 64, 4, 48, 48), r(64, 64, 1, 1, 1))
case("bicubic narrow", A.upsample_bicubic2d.default, r(1, 3, 64, 64), [256, 512], False)
case("conv1d small", conv1, r(1, 80, 200), r(384, 80, 3), r(384), [1], [1])
case("conv depthwise 60", conv2, r(1, 60, 96, 96), r(60, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 60)
case(
    "conv depthwise doubled",
    conv2,
    r(1, 60, 96, 96),
    r(120, 1, 3, 3),
    None,
    [1, 1],
    [1, 1],
    [1, 1],
    60,
)
case(
    "conv3x3 cl 320", conv2, channels_last(1, 320, 32, 32), r(320, 320, 3, 3), None, [1, 1], [1, 1]
)
case("conv1x1 cl 320", conv2, channels_last(1, 320, 32, 32), r(320, 320, 1, 1))
case(
    "conv3x3 weights cl",
    conv2,
    r(2, 128, 48, 48),
    channels_last(128, 128, 3, 3),
    r(128),
    [1, 1],
    [1, 1],
)
case("conv1d permuted wide", conv1, perm((0, 2, 1), 1, 2000, 768), r(768, 768, 3))
case(
    "conv1d permuted depthwise",
    conv1,
    perm((0, 2, 1), 1, 2000, 768),
    r(768, 1, 3),
    None,
    [1],
    [1],
    [1],
    768,
)
case(
    "conv3x3 half",
    conv2,
    r(1, 32, 48, 48, dtype=torch.float16),
    r(32, 32, 3, 3, dtype=torch.float16),
    None,
    [1, 1],
    [1, 1],
)
case(
    "conv3d", A.conv3d.default, r(1, 64, 8, 48, 48), r(64, 64, 3, 3, 3), None, [1, 1, 1], [1, 1, 1]
)
case(
    "conv3d f64",
    A.conv3d.default,
    r(1, 16, 8, 24, 24, dtype=F64),
    r(16, 16, 3, 3, 3, dtype=F64),
    None,
    [1, 1, 1],
    [1, 1, 1],
)
case("conv1d f64", conv1, r(1, 96, 3000, dtype=F64), r(96, 96, 3, dtype=F64))
case(
    "conv depthwise f64",
    conv2,
    r(1, 64, 48, 48, dtype=F64),
    r(64, 1, 3, 3, dtype=F64),
    None,
    [1, 1],
    [1, 1],
    [1, 1],
    64,
)
case(
    "conv3x3 dilated f64",
    conv2,
    r(1, 64, 48, 48, dtype=F64),
    r(64, 64, 3, 3, dtype=F64),
    None,
    [1, 1],
    [2, 2],
    [2, 2],
)
for c_in, c_out in ((64, 128), (256, 16), (100, 60)):
    case(
        f"conv transpose {c_in}->{c_out}",
        convt2,
        r(1, c_in, 48, 48),
        r(c_in, c_out, 2, 2),
        None,
        [2, 2],
    )
case(
    "conv transpose f64",
    convt2,
    r(1, 64, 48, 48, dtype=F64),
    r(64, 64, 2, 2, dtype=F64),
    None,
    [2, 2],
)
case(
    "conv transpose 1d", A.conv_transpose1d.default, r(1, 256, 1000), r(256, 128, 4), None, [2], [1]
)
case(
    "linear half",
    A.linear.default,
    r(128, 768, dtype=torch.float16),
    r(768, 768, dtype=torch.float16),
    r(768, dtype=torch.float16),
)
case(
    "matmul half",
    A.matmul.default,
    r(12, 256, 64, dtype=torch.float16),
    r(12, 64, 256, dtype=torch.float16),
)

# The rest -------------------------------------------------------------------------------------
big = r(4, 512, 1024)
pbig = perm((0, 2, 1), 4, 1024, 512)
for name in (
    "gelu",
    "silu",
    "relu",
    "tanh",
    "exp",
    "rsqrt",
    "sigmoid",
    "erf",
    "mish",
    "hardswish",
    "softplus",
    "log_sigmoid",
    "isinf",
    "isnan",
    "logical_not",
    "square",
):
    if hasattr(getattr(A, name), "default"):
        case(name, getattr(A, name).default, big)
        case(name + " permuted", getattr(A, name).default, pbig)
case("gelu tanh", A.gelu.default, big, approximate="tanh")
case("gelu bf16", A.gelu.default, r(4, 512, 1024, dtype=BF16))
case("gelu narrowed", A.gelu.default, lambda: R(4, 512, 2048)[..., :1024])
case("glu", A.glu.default, big)
case("add", A.add.Tensor, big, big)
case("add scalar", A.add.Tensor, big, 1.0)
case("add broadcast", A.add.Tensor, big, r(1024))
case("add mixed dtype", A.add.Tensor, big, r(4, 512, 1024, dtype=BF16))
case("add int float", A.add.Tensor, big, lambda: torch.zeros(4, 512, 1024, dtype=torch.int64))
case("add alpha", A.add.Tensor, big, big, alpha=2)
case("mul permuted", A.mul.Tensor, big, perm((0, 2, 1), 4, 1024, 512))
case("rsub", A.rsub.Scalar, big, 1.0)
case("pow", A.pow.Tensor_Scalar, big, 3.0)
case("pow int", A.pow.Tensor_Scalar, lambda: torch.ones(4, 512, 512, dtype=torch.int64), 2.0)
case("where", A.where.self, lambda: torch.rand(4, 512, 1024) > 0.5, big, big)
case(
    "where broadcast",
    A.where.self,
    lambda: torch.rand(512, 1024) > 0.5,
    big,
    lambda: torch.tensor(0.0),
)
case(
    "where mixed dtype",
    A.where.self,
    lambda: torch.rand(4, 512, 1024) > 0.5,
    big,
    r(4, 512, 1024, dtype=BF16),
)
case("where ScalarOther", A.where.ScalarOther, lambda: torch.rand(4, 512, 1024) > 0.5, big, 0.0)
case("masked_fill", A.masked_fill.Scalar, big, lambda: torch.rand(4, 512, 1024) > 0.5, 0.0)
case("masked_fill broadcast", A.masked_fill.Scalar, big, lambda: torch.rand(512, 1024) > 0.5, 0.0)
case(
    "masked_fill expands",
    A.masked_fill.Scalar,
    r(1, 512, 1024),
    lambda: torch.rand(4, 512, 1024) > 0.5,
    0.0,
)
case("clamp", A.clamp.default, big, -1, 1)
case("eq", A.eq.Tensor, big, big)
case(
    "logical_and",
    A.logical_and.default,
    lambda: torch.rand(4, 512, 1024) > 0.5,
    lambda: torch.rand(4, 512, 1024) > 0.5,
)
case(
    "bitwise_and",
    A.bitwise_and.Tensor,
    lambda: torch.rand(4, 512, 1024) > 0.5,
    lambda: torch.rand(4, 512, 1024) > 0.5,
)
case("mean", A.mean.dim, big, [-1], True)
case("mean bf16", A.mean.dim, r(4, 512, 1024, dtype=BF16), [-1], True)
case("mean permuted", A.mean.dim, pbig, [-1], True)
case("sum", A.sum.dim_IntList, big, [-1])
case("sum dim 0", A.sum.dim_IntList, big, [0])
case("sum all", A.sum.default, big)
case("sum bool", A.sum.dim_IntList, lambda: torch.rand(4, 512, 1024) > 0.5, [-1])
case("sum dtype", A.sum.dim_IntList, r(4, 512, 1024, dtype=BF16), [-1], dtype=F32)
case("amax", A.amax.default, big, [-1], True)
case("max dim", A.max.dim, big, -1)
case("argmax", A.argmax.default, big, -1)
case("any dim", A.any.dim, lambda: torch.rand(4, 512, 1024) > 0.5, -1)
case("all", A.all.default, lambda: torch.rand(4, 512, 1024) > 0.5)
case("var", A.var.correction, big, [-1], correction=0, keepdim=True)
case("var_mean", A.var_mean.correction, big, [-1], correction=0, keepdim=True)
case("std", A.std.correction, big, [-1])
case("logsumexp", A.logsumexp.default, big, [-1])
case("linalg_vector_norm", A.linalg_vector_norm.default, big, 2, [-1], True)
case("linalg_vector_norm permuted", A.linalg_vector_norm.default, pbig, 2, [-1], True)
case("norm", A.norm.ScalarOpt_dim, big, 2, [-1], True)
case("prod", A.prod.dim_int, big, -1)
case("cumsum", A.cumsum.default, big, 1)
case("cumsum bool", A.cumsum.default, lambda: torch.rand(4, 512, 1024) > 0.5, -1)
case("cumsum int32", A.cumsum.default, lambda: torch.ones(4, 512, 1024, dtype=torch.int32), -1)
case("cumsum permuted", A.cumsum.default, pbig, 2)
case("topk", A.topk.default, r(2048, 64), 8)
case("topk large", A.topk.default, r(8, 20000), 50)
case("topk dim 0", A.topk.default, r(2048, 64), 8, 0)
case("topk unsorted", A.topk.default, r(2048, 512), 200, -1, True, False)
case("sort", A.sort.default, r(512, 2048))
case("sort dim 0", A.sort.default, r(2048, 512), 0)
case("sort stable", A.sort.stable, r(512, 2048), stable=True)
case("sort long", A.sort.default, r(500_000))
case("sort int", A.sort.default, lambda: torch.randint(0, 8, (200_000,)))
case("argsort", A.argsort.default, r(512, 2048))


def ids(*shape: int, hi: int = 512) -> Callable[[], torch.Tensor]:
    return lambda: torch.randint(0, hi, shape)


case("index rows", A.index.Tensor, r(512, 2048), lambda: [torch.randint(0, 512, (800,))])
case("index second", A.index.Tensor, r(4, 512, 512), lambda: [None, torch.randint(0, 512, (400,))])
case(
    "index pair",
    A.index.Tensor,
    r(512, 512),
    lambda: [torch.randint(0, 512, (800, 1)), torch.randint(0, 512, (1, 800))],
)
case(
    "index apart",
    A.index.Tensor,
    r(64, 128, 256),
    lambda: [torch.randint(0, 64, (200,)), None, torch.randint(0, 256, (200,))],
)
case("index bool", A.index.Tensor, r(512, 2048), lambda: [torch.rand(512) > 0.5])
case(
    "index permuted",
    A.index.Tensor,
    perm((1, 0), 2048, 512),
    lambda: [torch.randint(0, 512, (800,))],
)
case(
    "index int32",
    A.index.Tensor,
    r(512, 2048),
    lambda: [torch.randint(0, 512, (800,), dtype=torch.int32)],
)
case("index_select", A.index_select.default, r(512, 2048), 0, ids(800))
case("index_select dim 1", A.index_select.default, r(512, 2048), 1, ids(800))
case("gather", A.gather.default, big, 1, ids(4, 300, 1024))
case("embedding", A.embedding.default, r(512, 768), ids(2, 1024))
case(
    "embedding permuted ids",
    A.embedding.default,
    r(512, 768),
    lambda: torch.randint(0, 512, (1024, 2)).t(),
)
case("scatter", A.scatter.src, big, 1, ids(4, 300, 1024), r(4, 300, 1024))
case("scatter value", A.scatter.value, big, 1, ids(4, 300, 1024), 1.0)
case("scatter_add", A.scatter_add.default, big, 1, ids(4, 300, 1024), r(4, 300, 1024))
case("index_add", A.index_add.default, r(512, 2048), 0, ids(800), r(800, 2048))
case(
    "index_put",
    A.index_put.default,
    r(512, 2048),
    lambda: [torch.randint(0, 512, (800,))],
    r(800, 2048),
)
case("index_copy", A.index_copy.default, r(512, 2048), 0, lambda: torch.randperm(300), r(300, 2048))
case("select_scatter", A.select_scatter.default, big, r(4, 1024), 1, 3)
case("slice_scatter", A.slice_scatter.default, big, r(4, 100, 1024), 1, 10, 110)
case("one_hot", A.one_hot.default, ids(4096, hi=64), 64)
case("cat", A.cat.default, tensors(big, big), 1)
case("cat last", A.cat.default, tensors(big, pbig), -1)
case("cat mixed dtype", A.cat.default, tensors(big, r(4, 512, 1024, dtype=BF16)), 1)
case("cat permuted", A.cat.default, tensors(pbig, pbig), 1)
case("stack", A.stack.default, tensors(big, big), 0)
case("stack last", A.stack.default, tensors(big, big), -1)
case("clone", A.clone.default, big)
case("clone permuted", A.clone.default, pbig, memory_format=torch.contiguous_format)
case("contiguous permuted", A.contiguous.default, pbig)
case("to bf16", A._to_copy.default, big, dtype=BF16)
case("to.dtype", A.to.dtype, big, BF16)
case("reshape permuted", A.reshape.default, pbig, [4, 512 * 1024])
case("repeat", A.repeat.default, r(1, 512, 1024), [4, 1, 1])
case("repeat_interleave", A.repeat_interleave.self_int, r(1, 4, 512, 256), 8, 1)
case("roll", A.roll.default, big, [3], [1])
case("roll two dims", A.roll.default, r(1, 96, 96, 96), [-3, -3], [1, 2])
case("roll two permuted", A.roll.default, perm((0, 2, 1), 4, 1024, 512), [5, 3], [1, 2])
case("flip", A.flip.default, big, [1])
case("constant_pad_nd", A.constant_pad_nd.default, big, [0, 0, 1, 1], 0.0)
case(
    "constant_pad channels last",
    A.constant_pad_nd.default,
    channels_last(1, 64, 96, 96),
    [1, 1, 1, 1],
    0.0,
)
case("pad", A.pad.default, big, [0, 0, 1, 1])
case("pad reflect", A.pad.default, r(2, 64, 96, 96), [1, 1, 1, 1], "reflect")
case(
    "reflection_pad2d permuted",
    A.reflection_pad2d.default,
    perm((0, 3, 1, 2), 2, 96, 96, 64),
    [1, 1, 1, 1],
)
case("replication_pad1d", A.replication_pad1d.default, r(2, 64, 9600), [2, 2])
case("tril", A.tril.default, r(12, 512, 512))
case("tril permuted", A.tril.default, perm((0, 2, 1), 12, 512, 512))
case("triu", A.triu.default, r(512, 512))
case("nearest 2x", A.upsample_nearest2d.vec, r(2, 64, 48, 48), None, [2.0, 2.0])
case("nearest 2x cl", A.upsample_nearest2d.vec, channels_last(2, 64, 48, 48), None, [2.0, 2.0])
case(
    "nearest 2x permuted", A.upsample_nearest2d.default, perm((0, 3, 2, 1), 2, 48, 48, 64), [96, 96]
)
case("nearest 2x bf16", A.upsample_nearest2d.vec, r(2, 64, 48, 48, dtype=BF16), None, [2.0, 2.0])
case("nearest 1d", A.upsample_nearest1d.vec, r(2, 64, 4800), None, [2.0])
case("bilinear", A.upsample_bilinear2d.vec, r(1, 256, 64, 64), [128, 128], False, None)
case("bilinear narrow", A.upsample_bilinear2d.default, r(1, 3, 64, 64), [256, 512], False)
case(
    "bilinear cl", A.upsample_bilinear2d.vec, channels_last(1, 256, 64, 64), [128, 128], False, None
)
case("bilinear of tokens", A.upsample_bilinear2d.vec, image(64, 48, 48), [96, 96], False, None)
case("nearest of tokens", A.upsample_nearest2d.vec, image(64, 48, 48), [96, 96], None)
case("group_norm of tokens", A.group_norm.default, image(64, 48, 48), 8)
case("conv small cl", conv2, channels_last(1, 48, 8, 8), r(256, 48, 2, 2), None, [2, 2])
case("conv of tokens", conv2, image(64, 48, 48), r(64, 64, 3, 3), None, [1, 1], [1, 1])
case(
    "conv depthwise of tokens", conv2, image(64, 48, 48), r(64, 1, 3, 3), None, [1, 1], [1, 1],
    [1, 1], 64,
)  # fmt: skip
case("bilinear aa", A._upsample_bilinear2d_aa.default, r(1, 64, 64, 64), [128, 128], False)
case("bicubic", A.upsample_bicubic2d.vec, r(1, 256, 64, 64), [128, 128], False, None)
case("linear 1d", A.upsample_linear1d.vec, r(2, 64, 4800), [9600], False, None)
case("avg_pool2d", A.avg_pool2d.default, r(2, 64, 96, 96), [2, 2])
case("avg_pool2d cl", A.avg_pool2d.default, channels_last(2, 64, 96, 96), [2, 2])
case("avg_pool2d permuted", A.avg_pool2d.default, perm((0, 3, 2, 1), 2, 96, 96, 64), [2, 2])
case("avg_pool1d", A.avg_pool1d.default, r(2, 64, 9600), [2])
case("max_pool2d", A.max_pool2d.default, r(2, 64, 96, 96), [2, 2])
case("max_pool2d_with_indices", A.max_pool2d_with_indices.default, r(2, 64, 96, 96), [2, 2])
case("max_pool1d", A.max_pool1d.default, r(2, 64, 9600), [2])
case("adaptive_avg_pool2d", A._adaptive_avg_pool2d.default, r(2, 64, 96, 96), [7, 7])
case("adaptive_avg_pool2d 1", A.adaptive_avg_pool2d.default, r(2, 640, 48, 48), [1, 1])
case("adaptive_avg_pool1d", A.adaptive_avg_pool1d.default, r(2, 64, 9600), [40])
case("pixel_shuffle", A.pixel_shuffle.default, r(2, 256, 48, 48), 2)
case("pixel_unshuffle", A.pixel_unshuffle.default, r(2, 64, 96, 96), 2)
case("unfold", A.im2col.default, r(1, 64, 48, 48), [3, 3], [1, 1], [1, 1], [1, 1])
case("outer", A.outer.default, r(2048), r(1024))
case("addcmul", A.addcmul.default, big, big, big)
case("lerp", A.lerp.Scalar, big, big, 0.3)
case("arange", A.arange.default, 2_000_000)
case("full", A.full.default, [1024, 1024], 0.0)
case("ones_like permuted", A.ones_like.default, pbig)
case("bucketize", A.bucketize.Tensor, r(512, 1024), lambda: torch.linspace(-2, 2, 64))
case("cdist", A.cdist.default, r(4, 512, 64), r(4, 512, 64))
case("nan_to_num", A.nan_to_num.default, big)
case("cosine_similarity", A.cosine_similarity.default, big, big, -1)
