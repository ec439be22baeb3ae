"""Any graph as one function: ops against torch, and encoders."""

import re

import pytest
import torch
import transformers as hf
from torch import nn

import quire
from quire.errors import CaptureError, InputError, MissingRuleError
from quire.verify.rounding import gamma
from tests.kernel.models import BASE

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))

OPS = {
    "arithmetic": lambda x: (x + 2 * x - x / 3) * x - 1,
    "powers": lambda x: x**2 + x.abs() ** 0.5 + x.abs().clamp(0.1) ** 1.7 + x**3,
    "exponentials": lambda x: x.exp() + x.abs().add(1).log() + x.sigmoid() + x.tanh(),
    "activations": lambda x: nn.functional.gelu(x) + nn.functional.silu(x) + x.relu(),
    "gelu tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "elu": lambda x: nn.functional.elu(x) + nn.functional.leaky_relu(x),
    "softplus": nn.functional.softplus,
    "angles": lambda x: x.sin() + x.cos() + x.erf(),
    "rounding": lambda x: x.floor() + x.ceil() + x.round() + x.trunc() + x.sign(),
    "compare": lambda x: torch.where(x > 0.2, x, -x) + (x <= 0) * 2.0 + (x != x.amax()),
    "clamp": lambda x: x.clamp(-0.5, 0.7) + x.clamp(max=0.1) + torch.maximum(x, -x),
    "sums": lambda x: x.sum(1, keepdim=True) + x.mean(-1, keepdim=True) + x.sum(),
    "extremes": lambda x: (
        x.amax(1, keepdim=True) + x.amin((0, 2), keepdim=True) + x.max(1, True)[0]
    ),
    "variance": lambda x: x.var(-1, keepdim=True) + x.std(1, keepdim=True, correction=0),
    "softmax": lambda x: x.softmax(-1) + x.softmax(1) + x.log_softmax(2),
    "count": lambda x: (x > 0).sum(1),
    "any": lambda x: (x > 2).any(1) | (x > -1).all(1),
    "arg": lambda x: x.argmax(-1) + x.argmin(-1),
    "topk": lambda x: x.topk(3, -1)[0] + x.topk(3, -1)[1],
    "sort": lambda x: x.sort(-1, descending=True)[0],
    "cumsum": lambda x: x.cumsum(1) + x.cumsum(-1),
    "views": lambda x: x.reshape(2, 12, 8).transpose(0, 1).permute(2, 0, 1).flatten(1).t(),
    "slices": lambda x: x[1:3, :, ::2] + x[0, 2, 1:5] + x[..., -4:][:2],
    "cat": lambda x: torch.cat([x[:, :2], x, -x[:, 4:]], 1),
    "stack": lambda x: torch.stack([x, x * 2], 1).unbind(1)[1] + torch.stack([x, x], -1)[..., 0],
    "split": lambda x: x.split([3, 5], -1)[1] + x.chunk(2, 1)[0].sum() + x.split(2, 1)[2].sum(),
    "repeat": lambda x: x.repeat(1, 2, 1) + x.repeat_interleave(2, 1),
    "flip": lambda x: x.flip(1) + x.roll(2, 2) + nn.functional.pad(x, (1, -1, 2, -2)),
    "index": lambda x: x[:, torch.tensor([2, 0, -1])] + x.index_select(1, torch.tensor([1, 1, 5])),
    "gather": lambda x: x.gather(2, torch.tensor([1, 0]).expand(4, 6, 2)),
    "scatter": lambda x: x.scatter(1, torch.full((4, 1, 8), 3), x[:, :1] * 9),
    "triangle": lambda x: x.tril(1) + x.triu(-1),
    "create": lambda x: x + torch.arange(8) * 0.5 + torch.ones(8) + torch.full((6, 1), 2.0),
    "matmul": lambda x: x @ x.transpose(1, 2) @ x,
    "bmm": lambda x: torch.bmm(x, x.mT),
    "einsum": lambda x: torch.einsum("bik,bjk->bij", x, x) + torch.einsum("bik,bjk->ij", x, x),
    "outer": lambda x: torch.einsum("bi,bj->bij", x[:, 0], x[:, 1]),
    "norms": lambda x: nn.functional.layer_norm(x, (8,)) + nn.functional.rms_norm(x, (8,)),
    "group norm": lambda x: nn.functional.group_norm(x, 3),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x, x, x),
    "causal": lambda x: nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True),
    "biased": lambda x: nn.functional.scaled_dot_product_attention(x, x, x, x @ x.mT),
    "eager attention": lambda x: (x @ x.mT / 3).masked_fill(X[0, 0, 0] > 9, 0).softmax(-1) @ x,
    "integers": lambda x: (
        (torch.arange(8) // 3 + torch.arange(8) % 3 - 4).abs() + x.argmax(-1).sum()
    ),
}


class All(nn.Module):
    def forward(self, x):
        return tuple(f(x) for f in OPS.values())


@pytest.fixture(scope="module")
def outputs():
    fast = quire.fuse(All(), (X,))
    return dict(zip(OPS, fast(X), strict=True))


@pytest.mark.parametrize("name", OPS)
def test_op(outputs, name):
    want, exact, got = OPS[name](X), OPS[name](X.double()), outputs[name]
    assert got.shape == want.shape and got.dtype == want.dtype
    if not want.dtype.is_floating_point:
        assert torch.equal(got, want)
        return
    ours, eager = (got - exact).abs().max(), (want - exact).abs().max()
    assert ours <= 4 * eager + 2**-21 * exact.abs().max()


class Pools(nn.Module):
    def forward(self, x):
        f = nn.functional
        return (
            f.max_pool2d(x, 3, stride=2, padding=1),
            f.max_pool2d(x, (2, 3), stride=3, dilation=(2, 1), ceil_mode=True),
            f.max_pool1d(x[0], 4),
            f.avg_pool2d(x, 3, stride=1, padding=1),
            f.avg_pool1d(x[0], 2),
            f.adaptive_avg_pool2d(x, 1),
        )


def test_pools():
    x = torch.randn(2, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    fast = quire.fuse(Pools(), (x,))
    for got, want in zip(fast(x), Pools()(x), strict=True):
        torch.testing.assert_close(got, want)
    assert fast.certificate.verdict == "proved", fast.certificate.reason


@pytest.mark.parametrize("how", [{"count_include_pad": False}, {"ceil_mode": True}], ids=str)
def test_averages_over_windows_of_other_sizes_are_refused(how):
    class Average(nn.Module):
        def forward(self, x):
            return nn.functional.avg_pool2d(x, 3, stride=2, padding=1, **how)

    with pytest.raises(MissingRuleError, match="average"):
        quire.fuse(Average(), (torch.zeros(1, 1, 6, 6),))


class Convolutions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, groups=2, dilation=2, bias=False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu())


ENCODERS = {
    "bert, padded": lambda: (
        hf.BertModel(hf.BertConfig(**{**BASE, "num_hidden_layers": 2})),
        (),
        {
            "input_ids": torch.arange(48).reshape(2, 24),
            "attention_mask": (torch.arange(24) < torch.tensor([[24], [17]])).long(),
        },
    ),
    "bert, eager": lambda: (
        hf.BertModel(
            hf.BertConfig(**{**BASE, "num_hidden_layers": 1}, attn_implementation="eager")
        ),
        (),
        {
            "input_ids": torch.arange(48).reshape(2, 24),
            "attention_mask": (torch.arange(24) < torch.tensor([[24], [17]])).long(),
        },
    ),
    "vit": lambda: (
        hf.ViTModel(
            hf.ViTConfig(
                hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                image_size=32, patch_size=8,
            )
        ),
        (torch.randn(1, 3, 32, 32),),
        {},
    ),
    "t5 encoder": lambda: (
        hf.T5EncoderModel(
            hf.T5Config(vocab_size=320, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4)
        ),
        (),
        {"input_ids": torch.arange(48).reshape(2, 24)},
    ),
    "convolutions": lambda: (Convolutions(), (torch.randn(2, 3, 17, 19),), {}),
}  # fmt: skip


def first(value):
    return value if isinstance(value, torch.Tensor) else value[0]


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder(name):
    torch.manual_seed(0)
    model, args, kwargs = ENCODERS[name]()
    fast = quire.fuse(model.eval(), args, kwargs)
    assert fast.certificate.verdict == "proved", fast.certificate.reason
    with torch.no_grad():
        want = first(model(*args, **kwargs))
        args = tuple(a.double() for a in args)
        exact = first(model.double()(*args, **kwargs))
    got = first(fast(*(a.float() for a in args), **kwargs))
    eager = (want - exact).abs().max()
    assert (got - exact).abs().max() <= 3 * eager + 2**-21 * exact.abs().max()


def test_one_kernel_for_every_length(tmp_path):
    torch.manual_seed(0)
    model = hf.BertModel(hf.BertConfig(**{**BASE, "num_hidden_layers": 1})).eval()
    length = torch.export.Dim("length", min=2, max=64)
    ids = torch.arange(48).reshape(2, 24)
    exported = torch.export.export(
        model, (), {"input_ids": ids}, dynamic_shapes={"input_ids": {1: length}}
    )
    torch.export.save(exported, tmp_path / "bert.pt2")
    fast = quire.fuse(tmp_path / "bert.pt2")
    for n in (2, 7, 24, 64):
        ids = torch.arange(2 * n).reshape(2, n)
        with torch.no_grad():
            want = model(input_ids=ids).last_hidden_state
        assert (fast(input_ids=ids)[0] - want).abs().max() < 2e-5 * want.abs().max()
    with pytest.raises(InputError, match="size 65"):
        fast(input_ids=torch.zeros(2, 65, dtype=torch.long))


def test_a_missing_rule_names_op_and_place():
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x)

    with pytest.raises(MissingRuleError, match=r"linalg_inv") as caught:
        quire.fuse(Inverse(), (torch.eye(3),))
    assert "test_graphs.py" in caught.value.where


def test_a_module_without_inputs_is_refused():
    with pytest.raises(CaptureError, match="no arguments"):
        quire.fuse(nn.Linear(2, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attention_over_inputs_of_other_precision(dtype):
    class Attention(nn.Module):
        def forward(self, q, k, v):
            return nn.functional.scaled_dot_product_attention(q, k, v)

    inputs = [
        torch.randn(1, 2, 5, 16, generator=torch.Generator().manual_seed(k)) for k in range(3)
    ]
    want = Attention()(*inputs)
    inputs = [x.to(dtype) for x in inputs]
    fast = quire.fuse(Attention(), tuple(inputs))
    assert fast.certificate.verdict == "proved", fast.certificate.reason
    torch.testing.assert_close(fast(*inputs).float(), want, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("rows", [2, 40])
@pytest.mark.parametrize("weights", [None, "int8"])
def test_only_what_is_bf16_in_the_model_is_multiplied_as_such(rows, weights):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.rounded = nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)
            self.exact = nn.Linear(64, 96, bias=False, dtype=torch.bfloat16)

        def forward(self, x):
            exact = nn.functional.linear(x, self.exact.weight.float())
            return self.rounded(x.bfloat16()).float(), exact

    torch.manual_seed(0)
    model, x = Both().eval(), torch.randn(rows, 64)
    fast = quire.fuse(model, (x,), weights=weights)
    assert fast.certificate.verdict == "proved", fast.certificate.reason
    calls = re.findall(r"q\.(dot\w*)\(", fast.kernel.source)
    assert sorted(calls) == ["dot", "dot_bf16"]
    if weights:
        return
    narrow, exact = fast(x)
    want = x.double() @ model.exact.weight.double().T
    sizes = x.double().abs() @ model.exact.weight.double().abs().T
    assert ((exact - want).abs() <= 2 * gamma(64, torch.float32) * sizes).all()
    want = x.double() @ model.rounded.weight.double().T
    sizes = x.double().abs() @ model.rounded.weight.double().abs().T
    # One rounding of an element, one of the sum.
    assert ((narrow - want).abs() <= 2.01 * 2**-8 * sizes).all()


def test_doubles_are_calculated_in_float32_and_the_certificate_says_so():
    layer = nn.Linear(64, 8, dtype=torch.float64).eval()
    x = torch.randn(4, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fast = quire.fuse(layer, (x,))
    ((_, said),) = fast.certificate.rounding
    bound = float(said.rsplit("= ", 1)[1])
    assert 2 * gamma(64, torch.float32) < bound < 2 * gamma(72, torch.float32)
    with torch.no_grad():
        apart = (fast(x) - layer(x)).abs()
        sizes = x.abs() @ layer.weight.abs().T + layer.bias.abs()
    assert bool((apart <= bound * sizes).all())
    assert apart.max() > 2 * gamma(72, torch.float64) * sizes.max()


def test_tensors_without_elements():
    class Cut(nn.Module):
        def forward(self, x):
            return x[:, 6:] * 2, x.tril()

    x = torch.randn(3, 6)
    fast = quire.fuse(Cut(), (x,))
    cut, lower = fast(x)
    assert cut.shape == (3, 0)
    torch.testing.assert_close(lower, x.tril())


def test_log_softmax_where_softmax_is_zero_in_floats():
    class LogSoftmax(nn.Module):
        def forward(self, x):
            return x.log_softmax(-1)

    x = torch.tensor([[0.0, -300.0, 80.0], [1.0, 2.0, 3.0]])
    fast = quire.fuse(LogSoftmax(), (x,))
    torch.testing.assert_close(fast(x), x.log_softmax(-1))
    assert fast.certificate.verdict == "proved", fast.certificate.reason
