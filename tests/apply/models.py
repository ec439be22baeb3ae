"""Small models, each with one thing that a chunked program is apt to get wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Call(nn.Module):
    """A function of the inputs and of modules and buffers, these given by keyword."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


@attrs.frozen
class Case:
    """A model with the arguments of a call. `splits`: some region is expected."""

    name: str
    make: Callable[[], tuple[nn.Module, Sequence[Any]]] = attrs.field(eq=False)
    splits: bool = True


CASES: list[Case] = []


def case(splits: bool = True) -> Callable[..., Any]:
    def register(make: Callable[[], tuple[nn.Module, Sequence[Any]]]) -> Any:
        CASES.append(Case(make.__name__, make, splits))
        return make

    return register


# A tensor read in two ways


@case()
def sliced_and_whole() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.proj(x)
        return torch.softmax(h @ h.transpose(-1, -2), -1) @ h

    return Call(f, proj=nn.Linear(8, 8)), (torch.randn(2, 37, 8),)


@case()
def query_is_value_through_a_view() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.proj(x).view(2, 37, 2, 4)
        q = v = h.transpose(1, 2)
        k = m.key(x).view(2, 37, 2, 4).transpose(1, 2)
        y = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return y.transpose(1, 2).reshape(2, 37, 8)

    return Call(f, proj=nn.Linear(8, 8), key=nn.Linear(8, 8)), (torch.randn(2, 37, 8),)


@case()
def read_in_two_windows() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.proj(x)
        return torch.tanh(h[:, 1:]) * h[:, :-1] + h[:, 1:].exp()

    return Call(f, proj=nn.Linear(8, 64)), (torch.randn(2, 37, 8),)


@case()
def read_after_the_region_too() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = m.up(x)
        first, second = h.chunk(2, -1)
        y = m.down(F.silu(first) * second)
        return y, h[:, 3:5].sum(-1)

    return Call(f, up=nn.Linear(8, 64), down=nn.Linear(32, 8)), (torch.randn(2, 37, 8),)


@case()
def both_halves_used_later() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        first, second = m.up(x).chunk(2, -1)
        y = F.silu(first) * second
        return m.down(y) + (first - second).mean(-1, keepdim=True)

    return Call(f, up=nn.Linear(8, 64), down=nn.Linear(32, 8)), (torch.randn(2, 37, 8),)


@case()
def chunked_along_the_split_dim() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        h = m.up(x)
        first, second = h.chunk(2, 1)
        y = F.silu(first) * second
        return m.down(y), second

    return Call(f, up=nn.Linear(8, 64), down=nn.Linear(64, 8)), (torch.randn(2, 38, 8),)


# Outputs


@case()
def float64_and_integers() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        h = m.proj(x)
        return h.exp(), h.argmax(-1), h > 0, (h * 10).to(torch.int32)

    model = Call(f, proj=nn.Linear(8, 16)).double()
    return model, (torch.randn(2, 37, 8, dtype=torch.float64),)


@case()
def from_int_to_float16() -> Any:
    def f(m: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(m.table(ids))
        return h.half(), (ids * 3 + 1) // 2

    return Call(f, table=nn.Embedding(11, 16)), (torch.randint(11, (2, 37)),)


@case()
def output_is_an_input() -> Any:
    def f(m: Any, x: Tensor) -> dict[str, Any]:
        y = m.b(torch.relu(m.a(x)))
        return {"x": x, "y": y, "weight": m.a.weight, "none": None, "four": 4}

    return Call(f, a=nn.Linear(8, 64), b=nn.Linear(64, 8)), (torch.randn(2, 37, 8),)


@case()
def output_is_a_view_of_another() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        y = m.b(torch.relu(m.a(x)))
        return y, y.view(-1, 8), y[0, 3:7], y.transpose(0, 1), y

    return Call(f, a=nn.Linear(8, 64), b=nn.Linear(64, 8)), (torch.randn(2, 37, 8),)


@case()
def output_is_a_view_of_an_input() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        return x.transpose(0, 1), m.b(torch.relu(m.a(x))), x[:, 2:5]

    return Call(f, a=nn.Linear(8, 64), b=nn.Linear(64, 8)), (torch.randn(2, 37, 8),)


# Sizes


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8), nn.LayerNorm(8))


@case(splits=False)
def no_rows() -> Any:
    return _mlp(), (torch.randn(0, 8),)


@case(splits=False)
def no_batch() -> Any:
    return _mlp(), (torch.randn(0, 37, 8),)


@case(splits=False)
def one_row() -> Any:
    return _mlp(), (torch.randn(1, 1, 8),)


@case()
def size_one_dims() -> Any:
    return _mlp(), (torch.randn(1, 37, 1, 8),)


@case()
def prime_rows() -> Any:
    return _mlp(), (torch.randn(101, 8),)


@case()
def scalars() -> Any:
    def f(m: Any, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        y = m.net(x) * factor + x.mean()
        return y, y.sum()

    return Call(f, net=_mlp()), (torch.randn(37, 8), torch.tensor(2.5))


# Convolutions


@case()
def halos_at_both_borders() -> Any:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.SiLU(),
        nn.Conv2d(8, 3, 3, padding=1),
    )  # fmt: skip
    return model, (torch.randn(1, 3, 23, 8),)


@case()
def stride_two_on_odd_sizes() -> Any:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.Tanh(), nn.Conv2d(8, 4, 3, stride=2),
    )  # fmt: skip
    return model, (torch.randn(2, 3, 45, 21),)


@case()
def conv1d_dilated_and_grouped() -> Any:
    model = nn.Sequential(
        nn.Conv1d(4, 8, 3, padding=4, dilation=4), nn.ReLU(), nn.Conv1d(8, 8, 5, groups=4),
        nn.ReLU(), nn.Conv1d(8, 4, 1),
    )  # fmt: skip
    return model, (torch.randn(2, 4, 61),)


@case()
def down_and_up() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = torch.relu(m.a(x))
        low = m.b(F.avg_pool2d(h, 2))
        up = F.interpolate(torch.relu(low), scale_factor=2.0, mode="nearest")
        return m.c(torch.cat([h, up], 1))

    def conv(i: int, o: int) -> nn.Module:
        return nn.Conv2d(i, o, 3, padding=1)

    return Call(f, a=conv(3, 8), b=conv(8, 8), c=conv(16, 3)), (torch.randn(1, 3, 26, 10),)


@case()
def pools_and_transposed() -> Any:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.MaxPool2d(3, 2, 1), nn.SiLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Tanh(),
    )  # fmt: skip
    return model, (torch.randn(1, 3, 22, 12),)


@case()
def residual_convolutions() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        h = h + m.c(torch.relu(m.n(m.b(torch.relu(h)))))
        return h * torch.sigmoid(h)

    def conv() -> nn.Module:
        return nn.Conv2d(4, 4, 3, padding=1)

    model = Call(f, a=conv(), b=conv(), c=conv(), n=nn.BatchNorm2d(4)).eval()
    return model, (torch.randn(2, 4, 19, 11),)


@case(splits=False)
def normalised_over_groups() -> Any:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 4, 1)
    )
    return model, (torch.randn(2, 4, 15, 9),)


# Merged dims


@case()
def merged_rows() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = torch.addmm(m.b1, x.view(-1, 8), m.w1).view(3, 37, 64)
        h = F.gelu(h, approximate="tanh")
        return x + torch.addmm(m.b2, h.view(-1, 64), m.w2).view(x.shape)

    weights = {"w1": torch.randn(8, 64), "w2": torch.randn(64, 8)}
    return Call(f, b1=torch.randn(64), b2=torch.randn(8), **weights), (torch.randn(3, 37, 8),)


@case()
def merged_rows_of_a_transpose() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.a(x.transpose(0, 1).reshape(-1, 8)).view(37, 3, 64)
        return m.b(torch.relu(h).transpose(0, 1).reshape(-1, 64)).view(3, 37, 8)

    return Call(f, a=nn.Linear(8, 64), b=nn.Linear(64, 8)), (torch.randn(3, 37, 8),)


@case()
def windows_of_an_image() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        w = x.view(2, 4, 3, 6, 3, 8).permute(0, 1, 3, 2, 4, 5).reshape(-1, 9, 8)
        h = m.b(F.gelu(m.a(w)))
        h = torch.softmax(h @ w.transpose(1, 2), -1) @ h
        return h.view(2, 4, 6, 3, 3, 8).permute(0, 1, 3, 2, 4, 5).reshape(2, 12, 18, 8)

    return Call(f, a=nn.Linear(8, 32), b=nn.Linear(32, 8)), (torch.randn(2, 12, 18, 8),)


@case()
def pairs() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        outer = torch.einsum("bix,bjy->bijxy", a, b).reshape(2, 19, 19, 16)
        z = m.c(outer)
        return z + torch.einsum("bikc,bjkc->bijc", z, z)

    parts = {"a": nn.Linear(8, 4), "b": nn.Linear(8, 4), "c": nn.Linear(16, 6)}
    return Call(f, **parts), (torch.randn(2, 19, 8),)


# Attention


class Attention(nn.Module):
    """Grouped-query attention; `eager` spells it out."""

    def __init__(self, *, heads: int = 4, kv: int = 2, causal: bool = True, eager: bool = False):
        super().__init__()
        self.heads, self.kv, self.causal, self.eager = heads, kv, causal, eager
        self.q, self.o = nn.Linear(16, heads * 4), nn.Linear(heads * 4, 16)
        self.k, self.v = nn.Linear(16, kv * 4), nn.Linear(16, kv * 4)

    def forward(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        q = self.q(x).view(b, s, self.heads, 4).transpose(1, 2)
        k = self.k(x).view(b, s, self.kv, 4).transpose(1, 2)
        v = self.v(x).view(b, s, self.kv, 4).transpose(1, 2)
        if self.eager:
            k, v = (t.repeat_interleave(self.heads // self.kv, 1) for t in (k, v))
            scores = q @ k.transpose(-1, -2) / 2
            if self.causal:
                past = torch.ones(s, s, dtype=torch.bool, device=x.device).tril()
                scores = torch.where(past, scores, torch.finfo(scores.dtype).min)
            y = torch.softmax(scores, -1) @ v
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, is_causal=self.causal, enable_gqa=self.heads != self.kv
            )
        return self.o(y.transpose(1, 2).reshape(b, s, -1))


@case()
def causal_gqa() -> Any:
    return Attention(), (torch.randn(2, 37, 16),)


@case()
def causal_eager() -> Any:
    return Attention(eager=True), (torch.randn(2, 37, 16),)


@case()
def full_attention() -> Any:
    return Attention(kv=4, causal=False), (torch.randn(2, 37, 16),)


class Block(nn.Module):
    def __init__(self, **attention: Any) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.attn = Attention(**attention)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.n1(x))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class Decoder(nn.Module):
    """Layers of one kind between an embedding and a head tied to it."""

    def __init__(self, layers: int = 2, vocabulary: int = 50, **attention: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, 16)
        self.layers = nn.ModuleList(Block(**attention) for _ in range(layers))
        self.head = nn.Linear(16, vocabulary, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x) * self.scale


@case()
def decoder() -> Any:
    return Decoder(), (torch.randint(50, (2, 37)),)


@case()
def decoder_eager() -> Any:
    return Decoder(eager=True), (torch.randint(50, (1, 37)),)


@case()
def one_layer_used_twice() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        return m.block(m.block(x)) + m.block.up.weight.sum()

    return Call(f, block=Block()), (torch.randn(1, 37, 16),)


# Dying inputs


@case()
def residual_over_a_dying_tensor() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        h = h + m.c(F.gelu(m.b(h)))
        return h + m.e(F.gelu(m.d(h)))

    parts = {"a": nn.Linear(8, 8), "b": nn.Linear(8, 64), "c": nn.Linear(64, 8)}
    return Call(f, **parts, d=nn.Linear(8, 64), e=nn.Linear(64, 8)), (torch.randn(2, 37, 8),)


@case()
def users_input_dies_first() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        return x + m.b(F.gelu(m.a(x + 0.5)))

    return Call(f, a=nn.Linear(8, 64), b=nn.Linear(64, 8)), (torch.randn(2, 37, 8),)


@case()
def overwritten_through_a_view() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.a(x)
        flipped = h.transpose(1, 2)
        y = torch.sin(flipped.transpose(1, 2)) + h * 2
        return torch.exp(y * torch.sigmoid(y)) + m.a(y)

    return Call(f, a=nn.Linear(8, 8)), (torch.randn(2, 37, 8),)


# Folds


@case()
def sum_of_hidden() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        return m.down(F.gelu(m.up(x)))

    return Call(f, up=nn.Linear(8, 512), down=nn.Linear(512, 8)), (torch.randn(1, 8),)


@case()
def conv_over_channels() -> Any:
    model = nn.Sequential(nn.Conv2d(2, 64, 1), nn.ReLU(), nn.Conv2d(64, 2, 3, padding=1))
    return model, (torch.randn(1, 2, 7, 5),)


@case()
def mean_and_amax() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        h = m.net(x)
        return h.mean(0), h.amax(0), h.amin((0, 1)), h.sum((0, 1))

    return Call(f, net=nn.Sequential(nn.Linear(4, 32), nn.Tanh())), (torch.randn(37, 3, 4),)


@case()
def mean_of_rows() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        return torch.exp(m.up(x)).mean(0)

    return Call(f, up=nn.Linear(4, 64)), (torch.randn(41, 4),)


@case()
def largest_of_rows() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        return torch.exp(m.up(x)).amax(0)

    return Call(f, up=nn.Linear(4, 64)), (torch.randn(41, 4),)


@case()
def sum_of_products() -> Any:
    def f(m: Any, a: Tensor, b: Tensor) -> Tensor:
        return torch.addmm(m.bias, torch.sin(a).t(), torch.exp(b), beta=2.0, alpha=0.5)

    return Call(f, bias=torch.randn(3)), (torch.randn(211, 5), torch.randn(211, 3))


# Other kinds of ops


@case()
def positions_and_masks() -> Any:
    def f(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1], device=ids.device)
        h = m.table(ids) + m.places(at)
        h = h.masked_fill(~mask[..., None], 0.0)
        return m.net(h) * mask[..., None]

    parts = {"table": nn.Embedding(11, 8), "places": nn.Embedding(64, 8), "net": _mlp()}
    return Call(f, **parts), (torch.randint(11, (2, 37)), torch.rand(2, 37) > 0.3)


@case()
def rolled_padded_and_joined() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        h = m.net(torch.roll(x, 3, 1))
        h = F.pad(h, (0, 0, 2, 1))
        return torch.cat([h, torch.flip(h, [1]), h[:, ::2]], 1).cumsum(-1)

    return Call(f, net=_mlp()), (torch.randn(2, 37, 8),)


@case()
def stacked_and_unbound() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(2, 37, 3, 8).unbind(2)
        return torch.stack([q * k, k + v, v.exp()], 1).softmax(-1).sum(1)

    return Call(f, qkv=nn.Linear(8, 24)), (torch.randn(2, 37, 8),)


@case()
def rotary() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        s = x.shape[1]
        angle = torch.arange(s)[:, None] * m.freq[None]
        cos, sin = (t.repeat(1, 2)[None] for t in (angle.cos(), angle.sin()))
        h = m.proj(x)
        half = torch.cat([-h[..., 4:], h[..., :4]], -1)
        return m.out(torch.relu(h * cos + half * sin))

    return Call(f, proj=nn.Linear(8, 8), out=nn.Linear(8, 8), freq=torch.rand(4)), (
        torch.randn(2, 37, 8),
    )


@case()
def strided_input() -> Any:
    return _mlp(), (torch.randn(8, 37).t(),)


@case()
def channels_last() -> Any:
    model = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.GELU(), nn.Conv2d(16, 4, 1))
    model = model.to(memory_format=torch.channels_last)
    return model, (torch.randn(2, 4, 17, 9).to(memory_format=torch.channels_last),)


@case()
def top_and_sorted() -> Any:
    def f(m: Any, x: Tensor) -> tuple[Tensor, ...]:
        p = m.net(x).softmax(-1)
        top, at = p.topk(2, -1)
        ranked, order = p.sort(-1)
        return top / top.sum(-1, keepdim=True), at, ranked, order

    return Call(f, net=_mlp()), (torch.randn(2, 37, 8),)


# A product added to a tensor


@case()
def residual_products() -> Any:
    """The sum may be written over x, whose rows may not lie together."""

    def f(m: Any, x: Tensor) -> Tensor:
        x = x * 2
        x = x + m.down(torch.relu(m.up(x)))
        return x + m.down(torch.relu(m.up(x)))

    parts = {"up": nn.Linear(8, 32), "down": nn.Linear(32, 8, bias=False)}
    return Call(f, **parts), (torch.randn(3, 37, 8),)


@case()
def product_of_what_it_is_added_to() -> Any:
    def f(m: Any, x: Tensor) -> Tensor:
        x = x * 2
        return x + m.proj(x)

    return Call(f, proj=nn.Linear(8, 8, bias=False)), (torch.randn(2, 37, 8),)


@case()
def product_added_and_broadcast() -> Any:
    def f(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.relu(y + m.proj(x * 2)) + m.proj(x).add(x, alpha=2)

    args = (torch.randn(2, 37, 8), torch.randn(8))
    return Call(f, proj=nn.Linear(8, 8, bias=False)), args


@case()
def product_of_a_tensor_that_dies() -> Any:
    """The sum may not be written over what it multiplies."""

    def f(m: Any, x: Tensor) -> Any:
        h, y = torch.sin(x), torch.cos(x)
        return y + m.proj(h), y

    return Call(f, proj=nn.Linear(8, 8, bias=False)), (torch.randn(2, 37, 8),)
