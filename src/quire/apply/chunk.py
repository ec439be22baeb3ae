"""plan + program → Python source of the chunked program."""

from __future__ import annotations

import textwrap

import attrs
from torch import fx

from quire.apply.code import arguments, overload, sized, text, whole
from quire.apply.region import RegionEmitter
from quire.capture.program import Program
from quire.flow.outs import ANY_LAYOUT, DENSE
from quire.flow.propagate import Storage
from quire.plan.plan import Plan, Region

HEADER = '''\
"""{title}

{explain}
"""

import torch

from quire.flow.parts import causal_rows
from quire.runtime import kernels

aten = torch.ops.aten
'''


@attrs.frozen
class Source:
    """Emitted Python. `forward(w, parts, *inputs)` takes the weights by name, the part size of
    each region by name, and the tensors among the user's inputs; it returns the list of outputs."""

    text: str


def apply_chunks(program: Program, plan: Plan, title: str = "chunked by Quire") -> Source:
    """`program` with the regions of `plan` as loops."""
    return Source(_Emitter(program, plan).emit(title))


class _Emitter:
    def __init__(self, program: Program, plan: Plan) -> None:
        self.program, self.plan = program, plan
        self.storage = Storage(program)
        self.nodes = {n.name: n for n in program.graph.nodes}
        self.names = {
            i.node: i.node.name if i.kind == "user" else f"w[{i.target!r}]" for i in program.inputs
        }
        self.symbols = [str(s.name) for s in program.symbols]
        self.functions: dict[tuple[str, tuple[str, ...]], str] = {}
        self.lines: list[str] = []

    def emit(self, title: str) -> str:
        order = [self.nodes[name] for name in self.plan.order]
        index = {step: k for k, step in enumerate(order)}
        last = {
            s: max((index[r] for r in self.storage.readers.get(s, ())), default=index[s])
            for s in order
        }
        regions = {r.steps[-1]: r for r in self.plan.regions}
        inside = {name for r in self.plan.regions for name in r.steps}
        over = {self.nodes[a]: self.nodes[b] for a, b in self.plan.overwrites}
        module = None
        for k, step in enumerate(order):
            region = regions.get(step.name)
            if step.name in inside and region is None:
                continue
            where = self.program.ops[step].where
            if where.module != module:
                module = where.module
                self.lines.append(f"# {module or '(root)'} [{where.kind}]")
            start = k if region is None else k + 1 - len(region.steps)
            if region is None:
                self._whole(step, over.get(step))
            else:
                self._region(region)
            for node, end in last.items():
                if start <= end <= k and node not in self.storage.returned and node in self.names:
                    self.lines.append(f"del {self.names.pop(node)}")
        return self._assemble(title)

    def _whole(self, step: fx.Node, over: fx.Node | None) -> None:
        op = self.program.ops[step]
        shown = arguments(op, lambda o: whole(self.program, o.node, self.names), sized(op))
        name = self._fresh(step)
        if over is None:
            self.lines.append(f"{name} = {overload(op.target)}({', '.join(shown)})")
        else:
            called = ANY_LAYOUT.get(op.target) or DENSE[op.target]
            self.lines.append(
                f"{name} = {called}({', '.join([*shown, f'out={self.names[over]}'])})"
            )

    def _region(self, region: Region) -> None:
        emitted = RegionEmitter(self.program, self.storage, region).emit()
        parameters = (*emitted.parameters, *self.symbols)
        key = (emitted.body, parameters)
        if key not in self.functions:
            self.functions[key] = f"region_{len(self.functions)}"
        given = [whole(self.program, n, self.names) for n in emitted.arguments]
        outputs = ", ".join(self._fresh(s) for s in emitted.outputs)
        size = self.storage.flows[self.nodes[region.seed]].axes[region.axis].size
        self.lines.append(f"# {region.name}: {region.label}")
        call = ", ".join([*given, *self.symbols, "device", text(size), f'parts["{region.name}"]'])
        self.lines.append(f"{outputs} = {self.functions[key]}({call})")

    def _fresh(self, step: fx.Node) -> str:
        self.names[step] = step.name
        return step.name

    def _assemble(self, title: str) -> str:
        users = [i.node.name for i in self.program.inputs if i.kind == "user"]
        results = [
            whole(self.program, o, self.names) if isinstance(o, fx.Node) else repr(o)
            for o in self.program.outputs
        ]
        sizes = [f"{s.name} = {s.source.name}.shape[{s.dim}]" for s in self.program.symbols]
        device = f"{users[0]}.device" if users else "next(iter(w.values())).device"
        body = [f"device = {device}", *sizes, *self.lines, f"return [{', '.join(results)}]"]
        explain = textwrap.indent(self.plan.explain(), "").replace("\\", "/").replace('"""', "'''")
        functions = [
            f"def {name}({', '.join([*parameters, 'device', 'size', 'step'])}):\n{text_}\n"
            for (text_, parameters), name in self.functions.items()
        ]
        main = f"def forward({', '.join(['w', 'parts', *users])}):\n"
        main += textwrap.indent("\n".join(body), "    ") + "\n"
        return "\n\n".join([HEADER.format(title=title, explain=explain), *functions, main])
