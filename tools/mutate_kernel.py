"""Lies about emitted kernels, told to the prover: none may be accepted.

    python tools/mutate_kernel.py --mutants 200

Lies are told in the source (those of `watch_kernel.py`, and more) and in the tables it is run with.
A lie that changes nothing (the text is as before) does not count. What is proved all the same is
run in the finite field: where nothing differs it is *equivalent* (`0 ≤ 3i + j − 1` for
`0 ≤ 2i + j − 1`), else ACCEPTED, which is a failure.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import attrs
import torch
from torch import nn

from quire.capture.decode import capture_decode
from quire.capture.export import export, from_exported
from quire.fusing import tables_of
from quire.kernel.compile import KernelPlan, compile_program
from quire.verify.kernel.prove import prove_kernel
from quire.verify.kernel.tables import Tables
from tests.verify.kernel.graphs import OPS, graph
from tools.watch_kernel import CONFIGS, LENGTH, LIES, ROWS, AutoModelForCausalLM, nth, together

Lie = Callable[[str, int], str | None]


def _more(pattern: str, by: int) -> Lie:
    """The number that the pattern's second group holds, changed."""
    return lambda s, n: nth(s, pattern, n, lambda m: f"{m[1]}{int(m[2]) + by}{m[3]}")


MORE: dict[str, Lie] = {
    # Not where an index below zero is meant, which none is.
    "shifted read": lambda s, n: nth(
        s, r"(?<!\? \()q\.load\((\w+), (.*?)\)", n, lambda m: f"q.load({m[1]}, 1 + {m[2]})"
    ),
    "shifted write": lambda s, n: nth(
        s, r"q\.store\((\w+), ", n, lambda m: f"q.store({m[1]}, 1 + "
    ),
    "wrong constant": lambda s, n: nth(
        s, r"real\((\d+\.\d+)f\)", n, lambda m: f"real({float(m[1]) * 1.001!r}f)"
    ),
    "another function": lambda s, n: nth(
        s,
        r"q\.(sigmoid|rsqrt|exp|cos|sin|tanh)\(",
        n,
        lambda m: {"cos": "q.sin(", "sin": "q.cos("}.get(m[1], "q.sqrt("),
    ),
    "branches swapped": lambda s, n: nth(
        s, r"\? real\((.*?)\) : real\((.*?)\)\)", n, lambda m: f"? real({m[2]}) : real({m[1]}))"
    ),
    "a statement less": lambda s, n: nth(
        s, r"\n +q\.(store|dot|dot_bf16|merge)\(.*;", n, lambda m: ""
    ),
    "pointers too far": _more(r"(q\.skip\()(\d+)(\))", 1),
    "scratch on scratch": _more(r"(q\.template scratch<float>\()(\d+)(\))", -64),
    "attention rows": _more(r"(q\.attend\(.*?, )(\d+)(, \d+, s)", 1),
    "attention block": _more(r"(q\.(?:attend|merge)\(.*?, )(128)(, )", 1),
    "key distance": _more(r"(q\.attend\(.*?, s\d+, )(\d+)(, s\d+, \d+, \d+,)", 1),
    "unit overlap": _more(r"(q\.units\(q\.share\(.*?\), )(\d+)(, )", -1),
    "unit place": _more(r"(\+ f\d+ \* )(\d+)()", 1),
    "a choice more": _more(r"(q\.topk\(\d+, )(\d+)(, )", 1),
    "smallest for largest": lambda s, n: nth(
        s, r"(q\.topk\(\d+, \d+, )true", n, lambda m: f"{m[1]}false"
    ),
    "phases swapped": lambda s, n: nth(
        s, r"( +q\.enter.*\n)( +q\.enter.*\n)", n, lambda m: m[2] + m[1]
    ),
    "early fetch": lambda s, n: nth(s, r"q\.prefetch\(s\d+", n, lambda m: "q.prefetch(s0"),
    "larger for smaller": lambda s, n: nth(s, r"q\.smaller", n, lambda m: "q.larger"),
    "wrong offset": _more(r"( \+ (?:index_t\()?)(-?\d+)(\))", 1),
    "wrong remainder": _more(r"((?<!lo) % )(\d+)(\))", 1),
    "wrong quotient": _more(r"((?<!lo) / )(\d+)(\))", 1),
    "a key less": _more(r"(return index_t\()(\d\d+)(\);)", -1),
    "a scan too short": _more(r"(q\.scan_(?:sum|prod)\()(\d+)(, )", -1),
    "missing rescale": lambda s, n: nth(s, r" / q\.load\(\w+, \w+\)", n, lambda m: ""),
}


def _overlapping(plan: KernelPlan, t: Tables, n: int) -> Tables | None:
    """One buffer of the arena moved onto another that is in use at the same time."""
    pairs = together(plan)
    if not pairs:
        return None
    a, b = pairs[n % len(pairs)]
    return attrs.evolve(t, offsets={**t.offsets, a: t.offsets[b]})


def _exchanged(_plan: KernelPlan, t: Tables, n: int) -> Tables | None:
    """Two pointers of equal shape and type, to different places, exchanged."""
    slots = list(t.slots)
    k = n % len(slots)
    for j in range(k + 1, len(slots)):
        a, b = slots[k], slots[j]
        alike = (a.shape, a.dtype, a.role) == (b.shape, b.dtype, b.role)
        here = a.role == b.role == "temp" and t.offsets[a.name] == t.offsets[b.name]
        if a != b and alike and not here:
            slots[k], slots[j] = b, a
            return attrs.evolve(t, slots=tuple(slots))
    return None


def _repeated(_plan: KernelPlan, t: Tables, n: int) -> Tables | None:
    counts = list(t.repeats)
    if not counts:
        return None
    counts[n % len(counts)] += 1 if n % 2 else -1
    return attrs.evolve(t, repeats=tuple(counts))


TABLES: dict[str, Callable[[KernelPlan, Tables, int], Tables | None]] = {
    "arena overlap": _overlapping,
    "exchanged pointers": _exchanged,
    "a layer more or less": _repeated,
}


def lies(
    plan: KernelPlan, seed: int, kinds: Sequence[str] = ()
) -> Iterator[tuple[str, str, Tables]]:
    """Kind, source and tables of one lie after another, for ever, each kind in its turn."""
    source, tables = plan.source, tables_of(plan)
    pick = random.Random(seed)
    told = {**LIES, **MORE}
    words = list(kinds or (*told, *TABLES))
    seen: set[tuple[str, str]] = set()
    dull: Counter[str] = Counter()
    while words:
        for kind in list(words):
            n = pick.randrange(10_000)
            text, table = source, tables
            if kind in TABLES:
                table = TABLES[kind](plan, tables, n) or tables
            else:
                text = told[kind](source, n) or source
            same = text == source and table.text() == tables.text()
            if same or (text, table.text()) in seen:
                dull[kind] += 1
                if dull[kind] > 20:
                    words.remove(kind)
                continue
            seen.add((text, table.text()))
            yield kind, text, table


def plan_of(name: str, layers: int = 2, rows: int = ROWS) -> KernelPlan:
    """The decode kernel of one of the small models."""
    config = CONFIGS[name]()
    config.num_hidden_layers = layers
    model = AutoModelForCausalLM.from_config(config).eval()
    step = capture_decode(model, LENGTH, rows)
    return compile_program(step.program, "", name, {s.name: rows for s in step.program.symbols})


def plan_of_graph(model: nn.Module, args: tuple[torch.Tensor, ...]) -> KernelPlan:
    """The kernel of any module, for the shapes of `args`."""
    return compile_program(from_exported(export(model.eval(), args), writes=True), "", "graph")


def judge(plan: KernelPlan, source: str, tables: Tables) -> str:
    """What the prover says of a lie, and of one that it proves whether a run finds a difference."""
    found = prove_kernel(plan.program, source, tables, witness=False)
    if found.verdict != "proved":
        return found.verdict
    found = prove_kernel(plan.program, source, tables, witness=False, exact=True)
    (run,) = [c for c in found.claims if c.kind == "exact run"]
    return "equivalent" if run.text.startswith("equal") else "ACCEPTED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    every = [*CONFIGS, *OPS]
    parser.add_argument("--models", nargs="+", default=every, choices=every)
    parser.add_argument("--mutants", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plans = {
        name: plan_of_graph(*graph(name)) if name in OPS
        else plan_of(name, 4 if name == "llama" else 2)
        for name in options.models
    }  # fmt: skip
    streams = {}
    for k, (name, plan) in enumerate(plans.items()):
        tables = tables_of(plan)
        honest = prove_kernel(plan.program, plan.source, tables)
        print(f"{name}: {honest.verdict} {honest.reason}", flush=True)
        if honest.verdict != "proved":
            raise SystemExit(f"{name}: the honest kernel is refused")
        streams[name] = lies(plan, options.seed + k)
    counts: Counter[str] = Counter()
    accepted = told = 0
    while told < options.mutants and streams:
        name = list(streams)[told % len(streams)]
        found = next(streams[name], None)
        if found is None:
            del streams[name]
            continue
        kind, source, tables = found
        told += 1
        answer = judge(plans[name], source, tables)
        counts[f"{kind}: {answer}"] += 1
        if answer == "ACCEPTED":
            accepted += 1
            print(f"ACCEPTED {name} {kind}\n{_change(plans[name].source, source)}", flush=True)
    for what, times in sorted(counts.items()):
        print(f"{times:4d} {what}")
    print(f"{accepted} of {told} lies accepted")
    if accepted:
        raise SystemExit(1)


def _change(old: str, new: str) -> str:
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    return "\n".join(f"- {a}\n+ {b}" for a, b in pairs if a != b)[:3000]


if __name__ == "__main__":
    main()
