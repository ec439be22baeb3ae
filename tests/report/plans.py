"""Plans such as the planner makes, made by a small simulation: a GPT-2 of any depth."""

from __future__ import annotations

from collections import defaultdict

import attrs

from quire.plan.plan import Holding, Moment, Plan, Region

ROWS, WIDTH, HEADS = 4096, 768, 12
HIDDEN = ROWS * WIDTH * 4
SCORES = HEADS * ROWS * ROWS * 4

# Name, module within the layer, names read (a leading ^ is the layer's input), bytes written.
LAYER = [
    ("layer_norm", "ln_1", ("^",), HIDDEN),
    ("addmm", "attn.c_attn", ("layer_norm",), 3 * HIDDEN),
    ("split", "attn", ("addmm",), 0),
    ("view_q", "attn", ("split",), 0),
    ("transpose_q", "attn", ("view_q",), 0),
    ("transpose_k", "attn", ("split",), 0),
    ("transpose_v", "attn", ("split",), 0),
    ("matmul", "attn", ("transpose_q", "transpose_k"), SCORES),
    ("div", "attn", ("matmul",), SCORES),
    ("where", "attn", ("div",), SCORES),
    ("softmax", "attn", ("where",), SCORES),
    ("matmul_v", "attn", ("softmax", "transpose_v"), HIDDEN),
    ("transpose_o", "attn", ("matmul_v",), 0),
    ("clone", "attn", ("transpose_o",), HIDDEN),
    ("addmm_o", "attn.c_proj", ("clone",), HIDDEN),
    ("add", "", ("^", "addmm_o"), HIDDEN),
    ("layer_norm_2", "ln_2", ("add",), HIDDEN),
    ("addmm_fc", "mlp.c_fc", ("layer_norm_2",), 4 * HIDDEN),
    ("pow", "mlp.act", ("addmm_fc",), 4 * HIDDEN),
    ("mul", "mlp.act", ("pow",), 4 * HIDDEN),
    ("add_act", "mlp.act", ("mul", "addmm_fc"), 4 * HIDDEN),
    ("tanh", "mlp.act", ("add_act",), 4 * HIDDEN),
    ("mul_act", "mlp.act", ("tanh", "addmm_fc"), 4 * HIDDEN),
    ("addmm_mlp", "mlp.c_proj", ("mul_act",), HIDDEN),
    ("add_out", "", ("add", "addmm_mlp"), HIDDEN),
]
ATTENTION, INNER, MLP = slice(7, 12), slice(7, 11), slice(16, 24)


@attrs.frozen
class Step:
    name: str
    module: str
    reads: tuple[str, ...]
    nbytes: int


def gpt2_steps(layers: int = 12) -> list[Step]:
    steps = [
        Step("embedding", "transformer.wte", (), HIDDEN),
        Step("embedding_1", "transformer.wpe", (), HIDDEN),
        Step("add_emb", "transformer", ("embedding", "embedding_1"), HIDDEN),
    ]
    for i in range(layers):
        before = steps[-1].name
        for name, module, reads, nbytes in LAYER:
            steps.append(
                Step(
                    f"{name}_{i}",
                    f"transformer.h.{i}.{module}".rstrip("."),
                    tuple(before if r == "^" else f"{r}_{i}" for r in reads),
                    nbytes,
                )
            )
    last = steps[-1].name
    steps.append(Step("layer_norm_f", "transformer.ln_f", (last,), HIDDEN))
    steps.append(Step("slice_last", "", ("layer_norm_f",), 0))
    steps.append(Step("logits", "lm_head", ("slice_last",), 64 * 50257 * 4))
    return steps


def edges(layers: int = 12) -> list[tuple[str, str]]:
    return [(read, step.name) for step in gpt2_steps(layers) for read in step.reads]


def gpt2_plan(layers: int = 12, *, budget: int | None = 80 << 20, nested: bool = True) -> Plan:
    """Attention in 32 blocks of query rows (keys in blocks within), the MLP in 4 of tokens."""
    steps = gpt2_steps(layers)
    regions = tuple(r for i in range(layers) for r in _layer_regions(i, steps, nested))
    part_of = {s: region for region in regions for s in region.steps}
    before, after = _moments(steps, {}), _moments(steps, part_of)
    peak = max(m.nbytes for m in after)
    return Plan(
        program="GPT2LMHeadModel",
        budget=budget,
        baseline_bytes=max(m.nbytes for m in before),
        peak_bytes=peak,
        baseline_seconds=sum(m.seconds for m in before),
        seconds=sum(m.seconds for m in after),
        order=tuple(s.name for s in steps),
        regions=regions,
        lengths=(("seq", ROWS),),
        rewrites=("where(causal, x, -inf) → only the causal prefix of the keys is read",),
        before=before,
        after=after,
    )


def _layer_regions(i: int, steps: list[Step], nested: bool) -> list[Region]:
    names = [s.name for s in steps[3 + i * len(LAYER) : 3 + (i + 1) * len(LAYER)]]
    kind = {"module": f"transformer.h.{i}.attn", "axis": 2}
    keys = Region(
        f"h{i}_keys", f"softmax_{i}", steps=tuple(names[INNER]), size=ROWS, part=1024,
        label="key columns", join="online softmax", like="h0_keys",
        peak_bytes=SCORES // 32 // 4, seconds=0.0006, unsplit_bytes=SCORES // 16,
        unsplit_seconds=0.0008, **kind,
    )  # fmt: skip
    rows = Region(
        f"h{i}_rows", f"matmul_v_{i}", steps=tuple(names[ATTENTION]), size=ROWS, part=128,
        label="query rows", like="h0_rows", inner=(keys,) if nested else (),
        reuse=((f"matmul_v_{i}", f"layer_norm_{i}"),), peak_bytes=HIDDEN * 5 + SCORES // 128,
        seconds=0.0214, unsplit_bytes=2 * SCORES + 5 * HIDDEN, unsplit_seconds=0.127, **kind,
    )  # fmt: skip
    mlp = Region(
        f"h{i}_mlp", f"addmm_mlp_{i}", 0, tuple(names[MLP]), ROWS, 1000, "tokens",
        f"transformer.h.{i}.mlp", like="h0_mlp", peak_bytes=HIDDEN * 4, seconds=0.0462,
        unsplit_bytes=HIDDEN * 15, unsplit_seconds=0.0559,
    )  # fmt: skip
    return [rows, mlp]


def _moments(steps: list[Step], part_of: dict[str, Region]) -> tuple[Moment, ...]:
    """Liveness: a tensor lives from its step to its last read; within a region it is a part."""
    alias: dict[str, str] = {}
    last: dict[str, int] = defaultdict(int)
    for k, step in enumerate(steps):
        if not step.nbytes:
            alias[step.name] = alias.get(step.reads[0], step.reads[0])
        for read in step.reads:
            last[alias.get(read, read)] = k
    last[steps[-1].name] = len(steps)
    live: dict[str, Holding] = {}
    moments = []
    for k, step in enumerate(steps):
        region = part_of.get(step.name)
        if step.nbytes:
            live[step.name] = Holding(step.name, step.module, step.nbytes)
            if region and region.steps[-1] != step.name:
                parts = region.parts * (4 if region.inner else 1)
                live[step.name] = Holding(step.name, step.module, step.nbytes // parts)
        holds = tuple(sorted(live.values(), key=lambda h: -h.nbytes))
        seconds = step.nbytes / 40e9 + 1e-5 if "mm" not in step.name else step.nbytes / 4e9
        if region:
            seconds *= 0.5 if region.join == "concat" and "h" in region.name else 1.0
        moments.append(
            Moment(
                step.name,
                step.module,
                sum(h.nbytes for h in holds) + (1 << 20 if "mm" in step.name else 0),
                seconds,
                holds,
                region.name if region else "",
            )
        )
        live = {name: h for name, h in live.items() if last[name] > k}
    return tuple(moments)


def tradeoff(plan: Plan) -> list[tuple[int, float]]:
    """Peaks and seconds over eight budgets, the plan's own among them."""
    span = [(6.0, 0.99), (4.0, 0.98), (2.5, 1.0), (1.5, 1.0), (0.92, 1.04), (0.84, 1.17)]
    points = [(int(plan.peak_bytes * a), plan.seconds * b) for a, b in span]
    return sorted([*points, (plan.peak_bytes, plan.seconds), (plan.baseline_bytes, plan.seconds)])


SOURCE = """\
def forward(self, input_ids):
    # transformer.h.0.attn: 4096 query rows in 32 parts of 128
    out_0 = torch.empty((1, 12, 4096, 64), dtype=torch.float32)
    scratch = torch.empty((1, 12, 128, 4096))
    for i in range(0, 4096, 128):
        rows = slice(i, min(i + 128, 4096))
        s = torch.matmul(q[:, :, rows], k.transpose(-1, -2), out=scratch)
        s.div_(8.0).masked_fill_(mask[rows] < 0, float("-inf"))
        torch.matmul(torch.softmax(s, -1), v, out=out_0[:, :, rows])
    text = "</script><b>not markup</b>"
    return out_0
"""
