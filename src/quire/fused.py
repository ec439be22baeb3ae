"""What `quire.fuse` gives back for a graph: the kernel, called like the original."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from quire.capture.program import Program
from quire.errors import InputError
from quire.runtime.library import write_library
from quire.runtime.native import NativeKernel
from quire.verify.certificate import Certificate


class Fused(nn.Module):
    """A program as one native function. Call it with the arguments of the original.

    `certificate` says whether the kernel is proved to compute the program; None if that was not
    asked.
    """

    def __init__(
        self, program: Program, kernel: NativeKernel, certificate: Certificate | None = None
    ) -> None:
        super().__init__()
        self.kernel, self._program, self.certificate = kernel, program, certificate

    def export(
        self, out: str | Path, *, header: str | Path | None = None, arch: str | None = None
    ) -> None:
        """The kernel with its weights as a shared library, and a C header for it. Its functions
        are named after the file; `arch` is the compiler's -march."""
        write_library(self.kernel, Path(out), Path(header) if header else None, arch=arch)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputError if structure, dtypes or sizes are not those it was made for."""
        program = self._program
        keywords = program.in_spec.child(1).context
        if set(kwargs) == set(keywords):
            kwargs = {name: kwargs[name] for name in keywords}
        leaves, spec = pytree.tree_flatten((args, kwargs))
        if spec != program.in_spec:
            raise InputError(
                f"called with {len(args)} arguments and {sorted(kwargs)}",
                allowed=", ".join(program.paths),
                fix="pass the same arguments as to quire.fuse",
            )
        inputs: dict[str, torch.Tensor] = {}
        for path, leaf in zip(program.paths, leaves, strict=True):
            if isinstance(leaf, torch.Tensor):
                inputs[path] = leaf
            elif leaf != program.constants.get(path):
                raise InputError(
                    f"{path} is {leaf!r}", allowed=f"{program.constants.get(path)!r}, as compiled"
                )
        return pytree.tree_unflatten(self.kernel(inputs), program.out_spec)
