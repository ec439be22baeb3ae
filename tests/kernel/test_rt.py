"""The hand-written headers, on every instruction set that this machine can run."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

from quire.kernel.ir import BLOCKS, Buffer
from quire.runtime import build
from quire.runtime.pack import dequantised, packed, packed_size

FLAGS = set(Path("/proc/cpuinfo").read_text().split()) if Path("/proc/cpuinfo").exists() else set()
AVX512 = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}
VNNI, TILES, NARROW = ("-mavx512vnni",), ("-mamx-tile", "-mamx-bf16"), ("-mavx512bf16",)
ARCHES = [
    ("x86-64", set(), ()),
    ("x86-64-v3", {"avx2", "fma", "f16c"}, ()),
    ("x86-64-v4", AVX512, ()),
    ("x86-64-v4", AVX512 | {"avx512_vnni"}, VNNI),
    ("x86-64-v4", AVX512 | {"avx512_vnni", "gfni"}, (*VNNI, "-mgfni")),
    ("x86-64-v4", AVX512 | {"avx512_bf16"}, NARROW),
    ("x86-64-v4", AVX512 | {"amx_tile", "amx_bf16"}, TILES),
]


def harness(arch, needs, extra, more=""):
    if not needs <= FLAGS:
        pytest.skip(f"this machine has no {', '.join(sorted(needs - FLAGS))}")
    source = (Path(__file__).parent / "harness.cpp").read_text() + more
    lib = ctypes.CDLL(str(build.library(source, arch, extra)))
    lib.tiles, lib.extra = extra == TILES and not more, "".join(extra)
    return lib


@pytest.fixture(scope="module", params=ARCHES, ids=lambda a: "".join(a[::2][:1] + a[2]))
def lib(request):
    return harness(*request.param)


@pytest.fixture(scope="module")
def tiles():
    return harness(*ARCHES[-1])


@pytest.fixture(scope="module")
def narrow():
    return harness(*ARCHES[-2])


@pytest.fixture(scope="module")
def refused():
    """Compiled for tiles, where the system does not hand them out."""
    arch, needs, extra = ARCHES[-1]
    no = 'extern "C" long __wrap_syscall(long, ...) { return -1; }'
    return harness(arch, needs, (*extra, "-Wl,--wrap=syscall"), no)


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


FEEDS = {"bf16": 3, "int8": 8, "int4": 5}
"""Vectors from which a format's rows are multiplied on tiles (`FEED` in the headers)."""


def fewest(lib, name, columns):
    """How few vectors are multiplied as `columns` are: tiles have sums of their own."""
    feed = FEEDS.get(name, columns + 1)
    return feed if lib.tiles and columns >= feed else 1


def products(lib, name, held, exact, x, at=0, apart=1, more_chain=0):
    rows, k = exact.shape
    out = torch.full((x.shape[0], rows), float("nan"))
    size = ctypes.c_int64
    more = (size(apart),) if name in BLOCKS else ()
    getattr(lib, f"dot_{name}")(
        pointer(out), pointer(held), size(at), pointer(x), size(rows), size(x.shape[0]), size(k),
        *more,
    )  # fmt: skip
    want = x.double() @ exact.double().T
    # Each of at most k/16 + 5 roundings in a chain is relative to sums of magnitudes; on tiles a
    # chain ends in the 16 of the last step along k. Weights in blocks: 32 in a block (digits: as
    # much at once), and two a block.
    on_tiles = lib.tiles and len(x) >= FEEDS.get(name, len(x) + 1)
    chain = k / 16 + (34 if name in BLOCKS else 20 if on_tiles else 6)
    bound = (chain + more_chain) * 2**-24 * 2 * (x.double().abs() @ exact.double().abs().T)
    assert ((out.double() - want).abs() <= bound).all()
    return out


@pytest.mark.parametrize("k", [1, 15, 16, 17, 64, 100])
@pytest.mark.parametrize("columns", [1, 2, 3, 4, 7, 13])
@pytest.mark.parametrize(
    "name, dtype", [("float", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_dot_equals_exact_product(lib, name, dtype, columns, k):
    torch.manual_seed(k * 10 + columns)
    w, x = torch.randn(9, k).to(dtype), torch.randn(columns, k)
    out = products(lib, name, torch.cat([w, torch.zeros(8, k, dtype=dtype)]), w, x)
    # An element does not depend on the block it is computed in.
    one = torch.cat([w[5:6], torch.zeros(8, k, dtype=dtype)])
    alone = products(lib, name, one, w[5:6], x[: fewest(lib, name, columns)])
    assert alone[0, 0] == out[0, 5]


@pytest.mark.parametrize("columns", [3, 5, 6, 16, 17, 33])
@pytest.mark.parametrize("rows", [1, 16, 31, 32, 75])
@pytest.mark.parametrize("k", [5, 32, 100, 576])
def test_dot_on_tiles_equals_exact_product(tiles, k, rows, columns):
    torch.manual_seed(k + rows + columns)
    w, x = torch.randn(rows, k).bfloat16(), torch.randn(columns, k)
    held = torch.cat([w, torch.zeros(64, k, dtype=w.dtype)])
    out = products(tiles, "bf16", held, w, x)
    last = products(tiles, "bf16", held, w[-1:], x[-3:], at=(rows - 1) * k)
    assert last[-1, 0] == out[-1, -1]
    x[0, 0] += 1  # the vectors packed last are not these
    again = products(tiles, "bf16", held, w, x)
    assert not torch.equal(again[0], out[0])
    assert torch.equal(again[1:], out[1:])


def test_dot_on_tiles_rounds_no_product(tiles):
    torch.manual_seed(0)
    x = torch.randn(20, 64) * 10.0 ** torch.randint(-20, 20, (20, 64))
    one = torch.eye(64, dtype=torch.bfloat16)
    held = torch.cat([one, torch.zeros(64, 64, dtype=one.dtype)])
    assert torch.equal(products(tiles, "bf16", held, one, x), x)


def test_dot_on_tiles_of_what_is_no_number(tiles):
    w = torch.ones(3, 40, dtype=torch.bfloat16)
    x = torch.ones(4, 40)
    x[0, 7], x[1, 39], x[2, 0] = torch.inf, -torch.inf, torch.nan
    x[3, 5] = torch.finfo(torch.float32).max
    x.view(torch.int32)[2, 0] = 0x7F800001  # a NaN that lies in the lower half
    out, size = torch.empty(4, 3), ctypes.c_int64
    held = torch.cat([w, torch.zeros(64, 40, dtype=w.dtype)])
    tiles.dot_bf16(pointer(out), pointer(held), size(0), pointer(x), size(3), size(4), size(40))
    assert (out[0] == torch.inf).all() and (out[1] == -torch.inf).all() and out[2].isnan().all()
    assert torch.allclose(out[3], x[3].sum())


def in_blocks(scheme, w):
    """`w` packed, and the weights that it stands for."""
    w = w.bfloat16() if scheme == "lossless" else w
    buffer = Buffer("w", tuple(w.shape), w.dtype, "state", "w", order=(0, 1), scheme=scheme)
    held = packed(w, buffer)
    assert held.numel() == packed_size(w, buffer)
    return held, dequantised(w, buffer)


@pytest.mark.parametrize("columns", [1, 2, 3, 6, 13])
@pytest.mark.parametrize("k", [32, 96, 320])
@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_dot_of_blocks_equals_dequantised_product(lib, scheme, k, columns):
    torch.manual_seed(columns)
    rows = 75
    w, x = torch.randn(rows, k), torch.randn(columns, k)
    held, exact = in_blocks(scheme, w)
    step = {"int8": 1 / 127, "int4": 1 / 8, "lossless": 2**-7}[scheme]
    most = w.reshape(-1, 32).abs().amax(1).repeat_interleave(32).reshape(rows, k)
    assert ((exact - w).abs() <= most * step * (1.01 if scheme == "int4" else 0.51)).all()
    out = products(lib, scheme, held, exact, x)
    # An element depends on neither rows nor vectors beside it.
    same = fewest(lib, scheme, columns)
    for row in (5, 31, 32, 74):
        alone = products(lib, scheme, held, exact[row : row + 1], x[:same], at=row * k)
        assert alone[0, 0] == out[0, row]
    some = products(lib, scheme, held, exact[3::7], x, at=3 * k, apart=7)
    assert torch.equal(some, out[:, 3::7])


@pytest.mark.parametrize("k", [64, 2048])
@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_dot_of_blocks_holds_for_vectors_of_any_size(lib, scheme, k):
    """Numbers too small beside their neighbours for one unit, in every place: within 2γ of k."""
    torch.manual_seed(0)
    w = torch.randn(40, k)
    w[:, ::32] = 0  # so that nothing hides behind a large product
    loose = k / 2 if k > 64 else 0
    held, exact = in_blocks(scheme, w)
    for spread in (3, 12, 25):
        x = torch.randn(7, k) * 2.0 ** torch.randint(-spread, spread, (7, k))
        x[:, ::32] = 2.0**spread
        for some in (x, x[:1] * 2.0 ** (spread - 103), x[1:2] * 2.0**60):
            products(lib, scheme, held, exact, some, more_chain=loose)
    out = products(lib, scheme, held, exact, torch.zeros(1, k))
    assert (out == 0).all()


@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_each_element_of_a_long_product_is_exact_to_its_bound(lib, scheme):
    """A weight alone in its row, and an element far smaller than its neighbour."""
    k = 2048
    w = torch.zeros(31, k)
    w[torch.arange(31), 32 * torch.arange(31) + 1 + torch.arange(31)] = 1.0
    held, exact = in_blocks(scheme, w)
    for size in range(0, 26, 2):
        x = torch.rand(1, k) * 2.0**-size
        x[:, ::32] = 1
        products(lib, scheme, held, exact, x, more_chain=k)


@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_dot_of_blocks_of_the_largest_numbers(lib, scheme):
    w = torch.tensor([1.0, -1.0])[:, None].expand(2, 32).repeat(16, 2)
    held, exact = in_blocks(scheme, w)
    below = torch.nextafter(torch.tensor(2.0), torch.tensor(0.0))
    for x in (below, -below, torch.tensor(1.0)):
        products(lib, scheme, held, exact, x.expand(1, 64).contiguous())


@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_dot_of_blocks_of_what_is_no_number(lib, scheme):
    held, _ = in_blocks(scheme, torch.ones(32, 64))
    x = torch.ones(3, 64)
    x[0, 7], x[1, 39], x[2, 0] = torch.inf, -torch.inf, torch.nan
    for columns in (1, 3):
        out, size = torch.zeros(columns, 32), ctypes.c_int64
        getattr(lib, f"dot_{scheme}")(
            pointer(out), pointer(held), size(0), pointer(x), size(32), size(columns), size(64),
            size(1),
        )  # fmt: skip
        assert (out[0] == torch.inf).all()
        assert columns == 1 or ((out[1] == -torch.inf).all() and out[2].isnan().all())


@pytest.mark.parametrize("columns", [8, 16, 17, 33, 80])
@pytest.mark.parametrize("rows", [1, 16, 31, 32, 75])
@pytest.mark.parametrize("k", [32, 64, 96, 128, 576, 704])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_blocks_on_tiles_equal_the_dequantised_product(tiles, scheme, k, rows, columns):
    torch.manual_seed(k + rows + columns)
    w, x = torch.randn(rows, k), torch.randn(columns, k)
    held, exact = in_blocks(scheme, w)
    out = products(tiles, scheme, held, exact, x)
    feed = FEEDS[scheme]
    last = products(tiles, scheme, held, exact[-1:], x[-feed:], at=(rows - 1) * k)
    assert torch.equal(last[:, 0], out[-feed:, -1])
    fewer = products(tiles, scheme, held, exact[: rows // 2 + 1], x[:feed])
    assert torch.equal(fewer, out[:feed, : rows // 2 + 1])
    if rows > 3:  # rows that start within a block
        inner = products(tiles, scheme, held, exact[3:], x, at=3 * k)
        assert torch.equal(inner, out[:, 3:])
    x[0] *= 2  # the vectors packed last are not these
    again = products(tiles, scheme, held, exact, x)
    assert not torch.equal(again[0], out[0])
    assert torch.equal(again[1:], out[1:])


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_blocks_on_tiles_round_no_product(tiles, scheme):
    torch.manual_seed(0)
    x = torch.randn(20, 64) * 10.0 ** torch.randint(-20, 20, (20, 64))
    held, exact = in_blocks(scheme, -8 * torch.eye(64))
    most = {"int8": -127, "int4": -8}[scheme]  # what a group's largest weight is held as
    want = (x.double() * most).float() * (exact.diagonal() / most)
    assert torch.equal(products(tiles, scheme, held, exact, x), want)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_blocks_on_tiles_have_every_value(tiles, scheme):
    most = {"int8": 127, "int4": 7}[scheme]
    values = torch.arange(-most, most + 1).float()
    w = torch.zeros(len(values), 96)
    last = -8.0 if scheme == "int4" else 127.0
    w[:, 40], w[:, 51] = values, last
    held, exact = in_blocks(scheme, w)
    assert torch.equal((exact[:, 40] / exact[:, 51] * last).round(), values)
    x = torch.eye(32).repeat(1, 3)
    assert torch.equal(products(tiles, scheme, held, exact, x), x @ exact.T)


@pytest.mark.parametrize("scheme", ["bf16", "int8", "int4"])
def test_rows_on_tiles_are_summed_in_another_order_than_vectors(tiles, scheme):
    """That FEEDS is what the headers say: else nothing above is about tiles."""
    torch.manual_seed(0)
    w = torch.randn(64, 2048)
    held, exact = in_blocks(scheme, w) if scheme != "bf16" else (w.bfloat16(), w.bfloat16())
    x, feed = torch.randn(40, 2048), FEEDS[scheme]
    out = products(tiles, scheme, held, exact, x)
    assert torch.equal(products(tiles, scheme, held, exact, x[:feed]), out[:feed])
    assert not torch.equal(products(tiles, scheme, held, exact, x[: feed - 1]), out[: feed - 1])


@pytest.mark.parametrize("name", ["bf16", *BLOCKS])
def test_vectors_take_the_place_of_tiles_that_are_refused(refused, name):
    torch.manual_seed(0)
    w, x = torch.randn(75, 256), torch.randn(33, 256)
    held, exact = in_blocks(name, w) if name != "bf16" else (w.bfloat16(), w.bfloat16())
    vectors = harness(*ARCHES[2])
    assert torch.equal(
        products(refused, name, held, exact, x), products(vectors, name, held, exact, x)
    )


MANY = {"bf16": 9, "int8": 3, "int4": 3, "lossless": 3}
"""Vectors that are bf16 in the model from which they are multiplied as such (`MANY` there)."""


def weights(name, rows, k):
    w = torch.randn(rows, k)
    if name in BLOCKS:
        return in_blocks(name, w)
    held = torch.cat([w, torch.zeros(64, k)]).bfloat16()
    return held, held[:rows]


def narrow_products(lib, name, held, exact, x, at=0, apart=1):
    rows, k = exact.shape
    out = torch.full((x.shape[0], rows), float("nan"))
    size = ctypes.c_int64
    getattr(lib, f"narrow_{name}")(
        pointer(out), pointer(held), size(at), pointer(x), size(rows), size(x.shape[0]), size(k),
        size(apart),
    )  # fmt: skip
    return out


@pytest.mark.parametrize("columns", [3, 4, 5, 8, 9, 16, 17, 32, 33, 80])
@pytest.mark.parametrize("rows", [1, 4, 16, 31, 32, 75])
@pytest.mark.parametrize("k", [32, 64, 192, 224, 576])
@pytest.mark.parametrize("name", ["bf16", *BLOCKS])
def test_narrow_products_equal_those_of_rounded_vectors(narrow, name, k, rows, columns):
    torch.manual_seed(k + rows + columns)
    held, exact = weights(name, rows, k)
    x = torch.randn(columns, k)
    out = narrow_products(narrow, name, held, exact, x)
    many = MANY[name] if columns >= MANY[name] else 1
    of = x.bfloat16() if many > 1 else x
    want = of.double() @ exact.double().T
    bound = (k / 2 + 8) * 2**-24 * 2 * (of.double().abs() @ exact.double().abs().T)
    assert ((out.double() - want).abs() <= bound).all()
    # An element depends on neither rows nor vectors beside it.
    last = narrow_products(narrow, name, held, exact[-1:], x[-many:], at=(rows - 1) * k)
    assert torch.equal(last[:, 0], out[-many:, -1])
    some = narrow_products(narrow, name, held, exact[::3], x, apart=3)
    assert torch.equal(some, out[:, ::3])
    x[0] += 1  # the vectors kept from the last time are not these
    again = narrow_products(narrow, name, held, exact, x)
    assert not torch.equal(again[0], out[0])
    assert torch.equal(again[1:], out[1:])


@pytest.mark.parametrize("k", [1, 2, 31, 33, 191, 193, 385])
def test_narrow_products_of_any_length(narrow, k):
    torch.manual_seed(k)
    w, x = torch.randn(37, k).bfloat16(), torch.randn(11, k)
    # What lies after the last row is not multiplied.
    held = torch.cat([w.flatten(), torch.full((64,), torch.nan, dtype=torch.bfloat16)])
    out = narrow_products(narrow, "bf16", held, w, x)
    want = x.bfloat16().double() @ w.double().T
    size = x.bfloat16().double().abs() @ w.double().abs().T
    assert ((out.double() - want).abs() <= (k / 2 + 8) * 2**-23 * size).all()


@pytest.mark.parametrize("name", ["bf16", *BLOCKS])
def test_narrow_products_of_what_is_no_number(narrow, name):
    held, exact = weights(name, 32, 64)
    held, exact = in_blocks(name, torch.ones(32, 64)) if name in BLOCKS else (held.fill_(1), exact)
    x = torch.ones(12, 64)
    x[0, 7], x[1, 39], x[2, 0] = torch.inf, -torch.inf, torch.nan
    out = narrow_products(narrow, name, held, exact, x)
    assert (out[0] == torch.inf).all() and (out[1] == -torch.inf).all() and out[2].isnan().all()
    assert (out[3:] == out[3, 0]).all()


@pytest.mark.parametrize("name", ["bf16", *BLOCKS])
def test_few_vectors_keep_what_is_exact_in_them(lib, name):
    """And so do all on machines without such products, or with tiles."""
    torch.manual_seed(0)
    held, exact = weights(name, 40, 64)
    narrow = "avx512bf16" in lib.extra
    x = torch.randn(MANY[name] - 1 if narrow else 33, 64)
    out = narrow_products(lib, name, held, exact, x)
    assert torch.equal(out, products(lib, name, held, exact, x))
    if narrow:
        x = torch.randn(MANY[name], 64)
        out = narrow_products(lib, name, held, exact, x)
        assert not torch.equal(out, products(lib, name, held, exact, x))


@pytest.mark.parametrize("scheme", [*BLOCKS])
def test_elements_of_blocks_are_the_dequantised_weights(lib, scheme):
    torch.manual_seed(0)
    w = torch.randn(50, 64) * 10.0 ** torch.randint(-6, 4, (50, 1))
    w[3] = 0
    w[4, 1:] = 0
    out, (held, exact) = torch.empty_like(w), in_blocks(scheme, w)
    size = ctypes.c_int64
    getattr(lib, f"elements_{scheme}")(pointer(out), pointer(held), size(64), size(w.numel()))
    assert torch.equal(out, exact)
    assert (exact[3] == 0).all() and (exact[4, 1:] == 0).all()
    assert ((exact - w)[4, 0].abs() <= w[4, 0].abs() * 2**-7).all()


def lossless_elements(lib, w):
    """What a packed matrix of bf16 bits is read as, and the bytes it takes."""
    held, _ = in_blocks("lossless", w.view(torch.bfloat16))
    out, size = torch.empty(w.shape), ctypes.c_int64
    lib.elements_lossless(pointer(out), pointer(held), size(w.shape[1]), size(w.numel()))
    return (out.view(torch.int32) >> 16).to(torch.int16), held.numel()


def test_lossless_blocks_hold_every_number(lib):
    every = torch.arange(-(2**15), 2**15).to(torch.int16)
    torch.manual_seed(0)
    for w in (every.reshape(512, 128), every[torch.randperm(2**16)].reshape(256, 256)):
        assert torch.equal(lossless_elements(lib, w)[0], w)


@pytest.mark.parametrize("odd", [0, 1, 9, 10, 500])
@pytest.mark.parametrize("zeros", [0, 40])
def test_lossless_blocks_with_numbers_that_are_listed(lib, zeros, odd):
    torch.manual_seed(odd)
    w = (1 + torch.rand(6 * 1024)) * 2.0 ** torch.randint(-11, 1, (6 * 1024,))
    w[:zeros], w[100 : 100 + odd] = -0.0, 2.0**-30
    w = (w * (torch.randint(2, w.shape) * 2 - 1)).bfloat16()
    w = w.reshape(6, 1024)[:, torch.randperm(1024)].reshape(2, 3, 32, 32)
    w = w.transpose(1, 2).reshape(64, 96)
    got, size = lossless_elements(lib, w.view(torch.int16))
    assert torch.equal(got, w.view(torch.int16))
    # The first block has zeros and numbers listed, those past nine behind all blocks.
    assert size == 6 * 1600 + 4 * (odd if odd > 9 else 0)
    torch.manual_seed(1)
    held, exact = in_blocks("lossless", w)
    for columns in (1, 2, 5):
        products(lib, "lossless", held, exact, torch.randn(columns, 96))


def test_normal_weights_take_twelve_and_a_half_bits():
    torch.manual_seed(0)
    w = (torch.randn(1024, 2048) * 0.02).bfloat16()
    held, _ = in_blocks("lossless", w)
    assert held.numel() * 8 == 12.5 * w.numel()


FUNCTIONS = [torch.exp, torch.tanh, torch.erf, torch.sigmoid]
ULPS = [4, 8, 8, 6]


@pytest.mark.parametrize("which", range(4), ids=["exp", "tanh", "erf", "sigmoid"])
def test_functions_are_within_ulps(lib, which):
    x = torch.cat([torch.linspace(-87, 88, 100_001), torch.linspace(-1, 1, 100_001)])
    out = torch.empty_like(x)
    lib.function(which, pointer(out), pointer(x), ctypes.c_int64(len(x)))
    want = FUNCTIONS[which](x.double())
    spacing = torch.from_numpy(np.spacing(np.maximum(np.abs(want.float().numpy()), 2**-126)))
    assert ((out.double() - want).abs() <= ULPS[which] * spacing.double()).all()


def test_functions_at_the_ends(lib):
    x = torch.tensor([float("-inf"), float("inf"), float("nan"), 0.0, -104.0, 89.0])
    out = torch.empty_like(x)
    lib.function(0, pointer(out), pointer(x), ctypes.c_int64(len(x)))
    assert out[0] == 0 and out[1] == torch.inf and out[2].isnan() and out[3] == 1
    assert out[4] == 0 and out[5] == torch.inf


def test_half_formats_round_as_torch_does(lib):
    torch.manual_seed(0)
    bits = torch.randint(-(2**31), 2**31 - 1, (200_000,), dtype=torch.int32)
    near = (torch.rand(50_000) - 0.5) * 2.0 ** torch.randint(-26, 17, (50_000,))
    x = torch.cat([bits.view(torch.float32), near, torch.tensor([0.0, -0.0, 65504.0, 65520.0])])
    from_half = torch.empty(65536)
    to_half = torch.empty(len(x), dtype=torch.int16)
    to_bf16 = torch.empty(len(x), dtype=torch.int16)
    lib.halves(*map(pointer, (from_half, to_half, to_bf16, x)), ctypes.c_int64(len(x)))
    every = torch.arange(65536).to(torch.int16).view(torch.float16).float()
    assert torch.equal(from_half.nan_to_num(7.0), every.nan_to_num(7.0))
    good = ~x.isnan()
    assert torch.equal(to_half.view(torch.float16)[good], x.half()[good])
    assert torch.equal(to_bf16.view(torch.bfloat16)[good], x.bfloat16()[good])


def attended(lib, name, q, k, v, block, spans, dead=0, workers=1):
    """softmax(30·tanh(q·k / 30))·v over the live keys of each query, and twice its bound."""
    count, inner, keys, width = len(q), q.shape[1], len(k), v.shape[1]
    size = ctypes.c_int64
    out = torch.full((count, width), float("nan"))
    parts = torch.full((count * (keys // block + 1) * (width + 2),), float("nan"))
    lo, hi = torch.tensor(spans).T.contiguous()
    getattr(lib, f"attend_{name}")(
        *map(pointer, (out, q, k, v)), *map(size, (count, inner, width, keys, block)),
        pointer(lo), pointer(hi), size(dead), workers, pointer(parts),
    )  # fmt: skip
    j = torch.arange(keys)
    live = (lo[:, None] <= j) & (j < hi[:, None]) & ((j % dead != 0) if dead else j >= 0)
    scores = 30 * torch.tanh(q.double() @ k.double().T / 30)
    weights = scores.masked_fill(~live, float("-inf")).softmax(1).nan_to_num(0.0)
    bound = 2**-24 * (keys + 4 * inner + 80) * (weights @ v.double().abs())
    return out, weights @ v.double(), bound


FORMATS = [("float", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]


@pytest.mark.parametrize("keys, block", [(1, 8), (8, 8), (9, 8), (40, 16), (3, 512), (300, 128)])
@pytest.mark.parametrize("inner, width", [(16, 16), (64, 64), (24, 80), (5, 7)])
@pytest.mark.parametrize("name, dtype", FORMATS)
def test_attention_by_blocks(lib, name, dtype, keys, block, inner, width):
    torch.manual_seed(keys)
    k, v = torch.randn(keys, inner).to(dtype), torch.randn(keys, width).to(dtype)
    for count in (1, 3, 4, 7):
        q = torch.randn(count, inner)
        out, want, bound = attended(lib, name, q, k, v, block, [(0, keys)] * count)
        assert ((out.double() - want).abs() <= bound).all()
        # A query does not depend on those that share its keys.
        alone, _, _ = attended(lib, name, q[-1:], k, v, block, [(0, keys)])
        assert torch.equal(alone[0], out[-1])


SPANS = {
    "one token": [(0, 200)] * 5,
    "padded left": [(70, 200)] * 5,
    "a window": [(150, 200)] * 5,
    "a prompt": [(max(0, i - 30), i + 1) for i in range(180, 185)],
    "apart": [(0, 3), (0, 3), (130, 200), (130, 200), (7, 7)],
}


@pytest.mark.parametrize("spans", SPANS.values(), ids=SPANS)
@pytest.mark.parametrize("dead", [0, 3, 1])
@pytest.mark.parametrize("name, dtype", FORMATS)
def test_attention_of_live_keys(lib, name, dtype, dead, spans):
    torch.manual_seed(dead)
    q, k, v = torch.randn(5, 32), torch.randn(200, 32).to(dtype), torch.randn(200, 48).to(dtype)
    out, want, bound = attended(lib, name, q, k, v, 64, spans, dead)
    assert ((out.double() - want).abs() <= bound).all()
    for workers in (2, 3):
        again, _, _ = attended(lib, name, q, k, v, 64, spans, dead, workers)
        assert torch.equal(again, out)


def test_exponentials_of_a_block_have_the_bits_of_exp(lib):
    x = -torch.cat([torch.linspace(0, 90, 100_000), torch.logspace(-30, 30, 60_000)])
    x = torch.cat([x, torch.tensor([0.0, -0.0, float("-inf"), float("nan")] * 4)])
    out, want = torch.empty_like(x), torch.empty_like(x)
    lib.below(pointer(out), pointer(x), ctypes.c_int64(len(x) // 16))
    lib.function(0, pointer(want), pointer(x), ctypes.c_int64(len(x)))
    assert torch.equal(out.view(torch.int32)[:-16], want.view(torch.int32)[:-16])
    assert torch.equal(out[-16:].isnan(), want[-16:].isnan())
    assert torch.equal(out[-16:].nan_to_num(7.0), want[-16:].nan_to_num(7.0))


def run_team(lib, workers, limit, phases, sleeper, seconds):
    counts = (ctypes.c_int * 16)()
    report = ctypes.create_string_buffer(1000)
    code = lib.team(
        workers, ctypes.c_double(limit), phases, sleeper, ctypes.c_double(seconds), counts, report
    )
    return code, list(counts)[:workers], report.value.decode()


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_barrier_orders_phases(lib, workers):
    assert run_team(lib, workers, 30, 200, -1, 0) == (0, [200] * workers, "")


def test_a_slow_worker_is_waited_for(lib):
    assert run_team(lib, 2, 30, 5, 1, 0.2)[:2] == (0, [5, 5])


@pytest.mark.parametrize("sleeper", [0, 1])
def test_a_hung_worker_is_reported(lib, sleeper):
    code, _, report = run_team(lib, 2, 0.2, 5, sleeper, 0.8)
    assert code == 1
    assert f"worker {sleeper}: phase 3, working" in report
    assert f"worker {1 - sleeper}: phase 3, waiting" in report


def run_units(lib, workers, segments, count, align, calls=5, phases=7, slow=-1, seconds=0.0):
    """How often each unit was done, [calls·phases, segments, count]; how many by each worker."""
    did = torch.zeros(calls * phases, segments, count, dtype=torch.int32)
    by = torch.zeros(workers, dtype=torch.int64)
    code = lib.units(
        workers, calls, phases, segments, ctypes.c_int64(count), ctypes.c_int64(align), slow,
        ctypes.c_double(seconds), pointer(did), pointer(by),
    )  # fmt: skip
    assert code == 0
    return did, by


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "segments, count, align", [(1, 1, 1), (3, 7, 1), (2, 256, 16), (11, 48, 4)]
)
def test_every_unit_is_done_once(lib, workers, segments, count, align):
    did, by = run_units(lib, workers, segments, count, align, calls=40)
    assert (did == 1).all()
    assert by.sum() == did.sum()


def test_units_of_a_slow_worker_are_done_by_others(lib):
    did, by = run_units(lib, 2, 1, 512, 16, slow=1, seconds=0.01)
    assert (did == 1).all()
    assert by[0] > 0.55 * by.sum()  # its own share is half


def run_attention(lib, workers, group, block, spans, slow=-1, seconds=0.0):
    """How many blocks of keys each query was taken through, [groups, group]; by each worker."""
    lo, hi = (torch.tensor(x) for x in zip(*spans, strict=True))
    did = torch.zeros(len(spans), group, dtype=torch.int32)
    by = torch.zeros(workers, dtype=torch.int64)
    code = lib.attention(
        workers, *map(ctypes.c_int64, (len(spans), group, block, max(hi.tolist()))), pointer(lo),
        pointer(hi), slow, ctypes.c_double(seconds), pointer(did), pointer(by),
    )  # fmt: skip
    assert code == 0
    return did, by


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize("group", [1, 3, 40])
def test_every_block_of_keys_is_taken_once(lib, workers, group):
    spans = [(0, 700), (0, 0), (100, 101), (63, 65), (0, 64), (128, 1000)]
    for _ in range(20):
        did, by = run_attention(lib, workers, group, 64, spans)
        for row, (lo, hi) in zip(did.tolist(), spans, strict=True):
            assert row == [len({j // 64 for j in range(lo, hi)})] * group
        assert by.sum() == did.sum()


def test_blocks_of_a_slow_worker_are_taken_by_others(lib):
    did, by = run_attention(lib, 2, 3, 64, [(0, 4096)], slow=1, seconds=0.005)
    assert (did == 64).all()
    assert by[0] > 0.55 * by.sum()  # its own share is half
