"""Audit the flow rules against torch: is each claimed axis true, and which true ones are missing?

    python tools/audit_rules.py [--op NAME] [--seed N] [--rounds N] [--opinfo] [--list]

Exit status 1 if a rule claims an axis that does not hold, or an op in place that may not be,
or if a sample does not run.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
import rule_samples_index  # noqa: F401
import rule_samples_math  # noqa: F401
import rule_samples_view  # noqa: F401
import rule_samples_window  # noqa: F401
import torch
from rule_case import Call, Case, case_of
from rule_check import check
from rule_samples import calls
from rule_search import in_place, missing

import quire.flow.rules  # noqa: F401
from quire.flow.registry import flow_of, rules
from quire.flow.relation import Flow

# Ops whose results differ from call to call, or that have no plain call on real tensors.
UNSAMPLED = frozenset(
    """bernoulli bernoulli.p rand randn randint randint.low randperm rand_like randn_like
    feature_dropout alpha_dropout nonzero masked_select masked_scatter where unique_dim _unique2
    put unique_consecutive embedding_bag new_empty_strided
    empty_strided empty_permuted eye eye.m linspace logspace scalar_tensor
    """.replace("\n", " ").split(" ")
)

# Axes that hold on a sample, but that no rule should claim.
EXCUSED = {
    "batch_norm": "it updates the running statistics in place",
    "instance_norm": "it updates the running statistics in place",
    "one_hot": "as many classes as the largest index says",
    "roll": "a shift by several times the size",
    "scaled_dot_product_attention": "with a single key, causal rows are alike",
}


@attrs.define
class Report:
    """What an audit found. `missing` counts, by op and output dim, axes that hold unclaimed."""

    calls: int = 0
    axes: int = 0
    incorrect: list[str] = attrs.field(factory=list)
    missing: Counter[str] = attrs.field(factory=Counter)
    unsampled: list[str] = attrs.field(factory=list)
    broken: list[str] = attrs.field(factory=list)
    """Samples that torch itself refuses: mistakes in the audit."""


def name_of(target: Any) -> str:
    return str(target).removeprefix("aten.").removesuffix(".default")


def describe(case: Case) -> str:
    shapes = ", ".join(str(tuple(t.shape)) for t in case.tensors)
    rest = {
        k: v for k, v in case.op.arguments.items() if isinstance(v, int | str | float | list) and v
    }
    return f"{name_of(case.op.target)}({shapes}; {rest}) -> {[tuple(w.shape) for w in case.whole]}"


def audit_case(case: Case, rng: random.Random, report: Report, *, search: bool) -> None:
    try:
        flow = flow_of(case.op)
    except Exception as error:  # a rule that fails is wrong, however it fails
        report.incorrect.append(f"{describe(case)}\n    the rule raises {error!r}")
        return
    audit_flow(case, flow, rng, report, search=search)


def audit_flow(case: Case, flow: Flow, rng: random.Random, report: Report, *, search: bool) -> None:
    """Check each axis of `flow` on one call, and look for axes it lacks."""
    report.calls += 1
    report.axes += len(flow.axes)
    for axis, why in check(case, flow, rng):
        report.incorrect.append(f"{describe(case)}\n    {axis}\n    {why}")
    if flow.pointwise and (why := in_place(case)):
        report.incorrect.append(f"{describe(case)}\n    pointwise: {why}")
    if search:
        for dim, axis in missing(case, flow, rng):
            if name_of(case.op.target) in EXCUSED:
                continue
            reads = [None if s is None else s.dim for s in axis.reads]
            text = f"{name_of(case.op.target)}: dim {dim} of {case.whole[0].ndim} reads {reads}"
            report.missing[text] += 1


def sampled(target: Any, seed: int, rounds: int) -> Iterator[Call]:
    for i in range(rounds):
        yield from calls(target, seed * 1000 + i)


def audit(targets: Iterable[Any], *, seed: int = 0, rounds: int = 4, search: bool = True) -> Report:
    """Audit the rules of `targets` on `rounds` rounds of samples each."""
    report = Report()
    for target in targets:
        if name_of(target) in UNSAMPLED or isinstance(target, str):
            report.unsampled.append(str(target))
            continue
        rng = random.Random(f"{seed} {target}")
        try:
            for call in sampled(target, seed, rounds):
                case = case_of(call)
                audit_case(case, rng, report, search=search)
        except (RuntimeError, TypeError, IndexError, NotImplementedError) as error:
            report.broken.append(f"{name_of(target)}: {error}")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--op", help="only ops with this in their name, such as conv2d")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--opinfo", action="store_true", help="also torch's own sample inputs")
    parser.add_argument("--model", help="the calls of one model of benchmarks.zoo instead")
    parser.add_argument("--dynamic", action="store_true", help="that model, with symbolic lengths")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.model:
        return show(audit_models(args.model, dynamic=args.dynamic), args.model)
    targets = [t for t in rules() if not args.op or args.op in name_of(t)]
    report = audit(targets, seed=args.seed, rounds=args.rounds)
    if args.opinfo:
        from rule_opinfo import audit_opinfo  # noqa: PLC0415 - slow to import

        audit_opinfo(report, args.op or "", seed=args.seed)
    return show(report, f"{len(targets)} rules")


def audit_models(name: str, *, dynamic: bool) -> Report:
    from rule_graph import audit_model  # noqa: PLC0415 - slow to import

    report = Report()
    for attention in ("eager", "sdpa"):
        audit_model(name, attention, report, dynamic=dynamic)
    return report


def show(report: Report, what: str) -> int:
    """Print the report; the exit status."""
    for text in report.broken:
        print(f"BROKEN    {text}")
    for text in report.incorrect:
        print(f"INCORRECT {text}")
    for text, times in sorted(report.missing.items()):
        print(f"missing   {text}  ({times}x)")
    print(
        f"{what}, {report.calls} calls, {report.axes} axes checked: "
        f"{len(report.incorrect)} incorrect, {len(report.missing)} missing; "
        f"{len(report.unsampled)} rules without samples (random or dependent on data)"
    )
    return 1 if report.incorrect or report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
