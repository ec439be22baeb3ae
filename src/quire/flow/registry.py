"""The one table of flow rules, keyed by ATen overload, or by the name of a library's own op."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import attrs

from quire.capture.program import Op, Operand, TensorInfo
from quire.errors import MissingRuleError
from quire.flow.relation import Flow

Rule = Callable[[Op], Flow]

_rules: dict[Any, Rule] = {}


def rule(*targets: Any) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of the overloads `targets`.

    A name such as `"transformers.grouped_mm_fallback.default"` stands for the overload of a
    library that need not be installed.
    """

    def register(function: Rule) -> Rule:
        for target in targets:
            if target in _rules:
                raise ValueError(f"{target} has two rules: {_rules[target]} and {function}")
            _rules[target] = function
        return function

    return register


def rules() -> dict[Any, Rule]:
    """A copy of the table."""
    return dict(_rules)


def flow_of(op: Op) -> Flow:
    """The flow of one op call. Calls alike in target, arguments and shapes share one `Flow`.

    Raises MissingRuleError, naming the op and the source line, if there is no rule.
    """
    return _flow(_Call(op.target, tuple(map(_plain, op.arguments.items())), op.outputs, op))


@attrs.frozen
class _Call:
    """What a rule reads of an op: the nodes that it is about are left out."""

    target: Any
    arguments: tuple[Any, ...]
    outputs: tuple[TensorInfo, ...]
    op: Op = attrs.field(eq=False)


def _plain(value: Any) -> Any:
    """An argument without nodes, hashable; 1, 1.0 and True are three things."""
    if isinstance(value, Operand):
        return Operand, value.index, value.info
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return type(value), value


@lru_cache(maxsize=1 << 12)
def _flow(call: _Call) -> Flow:
    op = call.op
    found = _rules.get(op.target) or _rules.get(str(op.target))
    if found is None:
        raise MissingRuleError(
            f"no flow rule for {op.target}",
            where=str(op.where),
            allowed="ops with a rule in src/quire/flow/rules/",
            fix=f"write a rule with @rule({op.target}) that returns its axes "
            "(see docs/design.md, 'Adding a rule'), or replace the op in the model",
        )
    return found(op)
