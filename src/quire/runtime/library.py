"""A kernel and its weights → one shared library and a C header, for callers without Python."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import sympy
import torch

from quire.capture.decode import DecodeStep
from quire.errors import QuireError
from quire.kernel.compile import KernelPlan
from quire.kernel.ir import Buffer
from quire.runtime import build
from quire.runtime.native import WATCHDOG, NativeKernel

C_TYPES = {
    torch.float32: "float", torch.float64: "double", torch.int64: "int64_t",
    torch.int32: "int32_t", torch.int16: "int16_t", torch.int8: "int8_t",
    torch.uint8: "uint8_t", torch.bool: "uint8_t", torch.bfloat16: "uint16_t",
    torch.float16: "uint16_t",
}  # fmt: skip

WEIGHTS = """
#if defined(__x86_64__)
asm(".section .lrodata,\\"al\\",@progbits");
#else
asm(".section .rodata");
#endif
asm(".balign 64\\nquire_weights:\\n.incbin \\"{path}\\"\\n.text");
extern "C" __attribute__((visibility("hidden"))) const char quire_weights[];
// Through a pointer: weights may lie farther away than a short address reaches.
static const char* const volatile quire_weights_at = quire_weights;
"""


@attrs.frozen
class _Face:
    """The C functions of a library: declarations for the header, definitions for the source."""

    declarations: str
    definitions: str


def write_library(
    kernel: NativeKernel,
    out: Path,
    header: Path | None,
    *,
    step: DecodeStep | None = None,
    arch: str | None = None,
) -> None:
    """`kernel` as the shared library `out`, its weights inside, with `header` declaring its
    functions. They are named after the file: of `model.so` `model_open`, `model_close`, and
    `model_run`, or for a decode `step` `model_start`, `model_step` and `model_end`.

    `arch` is the compiler's -march (default: this machine).

    Raises QuireError for a file name that is no C name, or with the compiler's message.
    """
    name = out.name.split(".")[0]
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise QuireError(
            f"functions cannot be named after {out.name}",
            allowed="names of letters, digits and _",
            fix="choose another file name",
        )
    plan = kernel.plan
    face = _graph(plan, name) if step is None else _decoder(plan, step, name)
    with tempfile.TemporaryDirectory() as folder:
        blob = Path(folder) / "weights.bin"
        offsets = _write_weights(kernel, blob)
        source = Path(folder) / f"{name}.cpp"
        source.write_text(
            plan.source
            + '#include "library.hpp"\n'
            + WEIGHTS.replace("{path}", str(blob))
            + _tables(plan, offsets)
            + face.definitions
        )
        build.compile_file(source, out, arch)
    if header is not None:
        guard = f"{name.upper()}_H"
        header.write_text(
            f"/* Written by Quire. */\n#ifndef {guard}\n#define {guard}\n#include <stdint.h>\n"
            '#ifdef __cplusplus\nextern "C" {\n#endif\n\n'
            f"{face.declarations}\n#ifdef __cplusplus\n}}\n#endif\n#endif\n"
        )


def _write_weights(kernel: NativeKernel, blob: Path) -> dict[Buffer, int]:
    """Every weight once, each at a multiple of 64 bytes; where each lies."""
    offsets: dict[Buffer, int] = {}
    placed: dict[int, int] = {}
    with blob.open("wb") as file:
        for row in kernel.plan.rendered.slots:
            for buffer in row:
                if buffer.role != "state" or buffer in offsets:
                    continue
                tensor = kernel.weight(buffer)
                if tensor.data_ptr() not in placed:
                    placed[tensor.data_ptr()] = file.tell()
                    reach = 1 + sum(
                        (s - 1) * t for s, t in zip(tensor.shape, tensor.stride(), strict=True)
                    )
                    flat = tensor.as_strided((reach,), (1,)).view(torch.uint8)
                    file.write(flat.numpy().data)
                    file.write(bytes(-file.tell() % 64))
                offsets[buffer] = placed[tensor.data_ptr()]
        file.write(bytes(64))
    return offsets


def _outside(plan: KernelPlan) -> list[str]:
    """Inputs in order, then outputs."""
    inputs = [i.target for i in plan.program.users_inputs()]
    return [*inputs, *(b.target for b in plan.lowered.outputs)]


def _tables(plan: KernelPlan, offsets: dict[Buffer, int]) -> str:
    order = {name: k for k, name in enumerate(_outside(plan))}
    lines = []
    for row in plan.rendered.slots:
        for b in row:
            place, at = "outside", order.get(b.target, 0)
            if b.role == "state":
                place, at = "weight", offsets[b]
            elif b.role == "temp":
                place, at = "arena", plan.arena.offsets[b.name]
            lines.append(f"  {{quire::Source::{place}, {at}}},")
    repeats = ", ".join(map(str, plan.rendered.repeats)) or "0"
    scratch = -(-plan.rendered.scratch // 4096) * 4096 + 4096
    return (
        "static const quire::Slot quire_slots[] = {\n" + "\n".join(lines) + "\n};\n"
        f"static const quire::index_t quire_repeats[] = {{{repeats}}};\n"
        "static quire::Library* quire_library(int threads) {\n"
        f"  return new quire::Library({{quire_slots, {len(lines)}, quire_repeats, "
        f"quire_weights_at, {plan.arena.size}, {scratch}}}, threads, {WATCHDOG});\n}}\n"
    )


OPEN = """\
/* The model, ready to run on `threads` threads (0: one for each core). Not for two callers at
   once: open one for each. */
typedef struct {name} {name};
{name}* {name}_open(int threads);
void {name}_close({name}* model);
/* Where every worker stood, after a function said 1. */
const char* {name}_report({name}* model);
"""

OPEN_BODY = """
struct {name} {{ quire::Library* library; }};
extern "C" {{
QUIRE_API {name}* {name}_open(int threads) {{ return new {name}{{quire_library(threads)}}; }}
QUIRE_API void {name}_close({name}* model) {{ delete model->library; delete model; }}
QUIRE_API const char* {name}_report({name}* model) {{ return model->library->report(); }}
"""


def _graph(plan: KernelPlan, name: str) -> _Face:
    """`NAME_run(model, sizes…, inputs…, outputs…)`."""
    program = plan.program
    sizes = [str(s.name) for s in program.symbols]
    said, inside, checks = [], [], []
    for k, item in enumerate(program.users_inputs()):
        info = program.info(item.node)
        word = "" if item.node in program.writes else "const "
        kind = f"{word}{_c_type(info.dtype, item.target)}*"
        said.append(f"{kind} in{k} /* {item.target} {_shape(info.shape)} */")
        inside.append(f"const_cast<void*>(static_cast<const void*>(in{k}))")
    for k, buffer in enumerate(plan.lowered.outputs):
        said.append(f"{_c_type(buffer.dtype, buffer.target)}* out{k} /* {_shape(buffer.shape)} */")
        inside.append(f"out{k}")
    for s in program.symbols:
        checks.append(f"  if ({s.name} < 1 || {s.name} > {plan.most[s.name]}) return 2;")
    arguments = [f"{name}* model", *(f"int64_t {s}" for s in sizes), *said]
    call = f"int {name}_run(\n    " + ",\n    ".join(arguments) + ")"
    limits = ", ".join(f"1 <= {s.name} <= {plan.most[s.name]}" for s in program.symbols)
    more = f" 2: a size is out of range ({limits})." if sizes else ""
    says = f"/* 0: done. 1: a worker hung.{more} */"
    body = "\n".join(
        [
            f"QUIRE_API {call} {{",
            *checks,
            f"  void* const outside[] = {{{', '.join(inside)}}};",
            f"  const quire::index_t lengths[] = {{{', '.join(sizes) or '0'}}};",
            "  return model->library->run(outside, lengths);",
            "}\n}\n",
        ]
    )
    return _Face(OPEN.format(name=name) + f"{says}\n{call};\n", OPEN_BODY.format(name=name) + body)


DECODER = """
/* A cache for {most} rows at most, each of up to {length} tokens. */
typedef struct {name}_session {name}_session;
{name}_session* {name}_start({name}* model, int rows);
void {name}_end({name}_session* session);
enum {{ {name}_max_length = {length}, {name}_max_rows = {most}, {name}_vocabulary = {words} }};
/* One more token for every row: ids [rows] in, the next token's logits [rows, vocabulary] out.
   0: done. 1: a worker hung. 2: the cache is full. */
int {name}_step({name}_session* session, const int64_t* ids, float* logits);
"""

SAMPLER = """\
/* The same, but the next tokens [rows] themselves. temperature 0: the likeliest. Words less likely
   than min_p times the likeliest are left out. The same seed says the same again. */
int {name}_next({name}_session* session, const int64_t* ids, float temperature, float min_p,
    uint64_t seed, int64_t* next);
"""

DECODER_BODY = """
struct {name}_session {{
  {name}* model;
  std::int64_t rows, used;
  std::vector<std::vector<char>> caches;
  std::vector<std::int64_t> slot, start;
}};
QUIRE_API {name}_session* {name}_start({name}* model, int rows) {{
  if (rows < 1 || rows > {most}) return nullptr;
  auto* s = new {name}_session{{model, rows, 0, {{}}, std::vector<std::int64_t>(rows),
                               std::vector<std::int64_t>(rows)}};
  for (const std::size_t bytes : {{{bytes}}}) s->caches.emplace_back(bytes * rows);
  return s;
}}
QUIRE_API void {name}_end({name}_session* session) {{ delete session; }}
static int quire_advance({name}_session* s, std::vector<void*> outside,
                         std::initializer_list<void*> outputs) {{
  if (s->used >= {length}) return 2;
  for (auto& slot : s->slot) slot = s->used;
  for (auto& cache : s->caches) outside.push_back(cache.data());
  outside.insert(outside.end(), outputs);
  const quire::index_t lengths[] = {{s->rows}};
  const int code = s->model->library->run(outside.data(), lengths);
  if (code == 0) ++s->used;
  return code;
}}
"""

STEP_BODY = """
QUIRE_API int {name}_step({name}_session* s, const std::int64_t* ids, float* logits) {{
  return quire_advance(
      s, {{const_cast<std::int64_t*>(ids), s->slot.data(), s->start.data()}}, {{logits}});
}}
}}
"""

SAMPLER_BODY = """
static int quire_next({name}_session* s, const std::int64_t* ids, float temperature, float min_p,
                      std::uint64_t seed, float* logits, std::int64_t* next) {{
  std::vector<float> heat(s->rows, temperature), least(s->rows, min_p), draw(s->rows);
  for (std::int64_t row = 0; row < s->rows; ++row)
    draw[row] = quire::draw(seed, (std::uint64_t(s->used) << 20) + std::uint64_t(row));
  return quire_advance(s, {{const_cast<std::int64_t*>(ids), s->slot.data(), s->start.data(),
                           heat.data(), least.data(), draw.data()}}, {{logits, next}});
}}
QUIRE_API int {name}_step({name}_session* s, const std::int64_t* ids, float* logits) {{
  std::vector<std::int64_t> next(s->rows);
  return quire_next(s, ids, 0, 0, 0, logits, next.data());
}}
QUIRE_API int {name}_next({name}_session* s, const std::int64_t* ids, float temperature,
                          float min_p, std::uint64_t seed, std::int64_t* next) {{
  std::vector<float> logits(s->rows * {words});
  return quire_next(s, ids, temperature, min_p, seed, logits.data(), next);
}}
}}
"""


def _decoder(plan: KernelPlan, step: DecodeStep, name: str) -> _Face:
    """A session holds the caches; each step takes one token a row."""
    sizes = [h * n * d * step.dtype.itemsize for h, n, d in (*step.key_shapes, *step.value_shapes)]
    words = {
        "name": name,
        "most": step.max_batch,
        "length": step.max_length,
        "words": int(plan.lowered.outputs[0].shape[-1]),
        "bytes": ", ".join(f"std::size_t({n})" for n in sizes),
    }
    said, body = [OPEN, DECODER], [OPEN_BODY, DECODER_BODY, STEP_BODY]
    if step.sampling:
        said, body = [*said, SAMPLER], [*body[:-1], SAMPLER_BODY]
    return _Face(
        "".join(text.format(**words) for text in said),
        "".join(text.format(**words) for text in body),
    )


def _c_type(dtype: torch.dtype, where: str) -> str:
    if dtype not in C_TYPES:
        raise QuireError(f"{where} is {dtype}, which C lacks", allowed=", ".join(map(str, C_TYPES)))
    return C_TYPES[dtype]


def _shape(sizes: Sequence[int | sympy.Expr]) -> str:
    return "[" + ", ".join(map(str, sizes)) + "]"
