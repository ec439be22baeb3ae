"""What the command line names, turned into a model and inputs.

A target is one of

    config.json           a Hugging Face config (transformers or diffusers): seeded random weights
    folder/               a local Hugging Face folder: its weights if it has any
    model.pt2             a torch.export file, with the example inputs stored in it
    package.module:name   a function that returns (model, args, kwargs)

Nothing is downloaded. Random weights and inputs come from a fixed seed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from quire.capture import hugging_face
from quire.capture.options import DTYPES, Options, check, device_of, first_line, move, refuse
from quire.errors import CaptureError, QuireError


@attrs.frozen(eq=False)
class Target:
    """A model with one call's inputs. `dynamic_shapes`, in torch.export's spelling, frees the
    sequence dim; it is None where the target does not say which dim that is, and for a program
    that is exported already: what is dynamic in it stays so."""

    name: str
    model: nn.Module | ExportedProgram
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic_shapes: Any = None


def load_target(spec: str, options: Options) -> Target:
    """The model and inputs that `spec` names.

    Raises QuireError if there is no such file, folder or function, if it is not what its name
    promises, or if an option does not apply to it.
    """
    check(options)
    path = Path(spec)
    if path.suffix == ".pt2":
        return _exported(_existing(path), options)
    if path.suffix == ".json":
        model, kwargs, dynamic = hugging_face.from_config(_existing(path), None, options)
        return Target(path.stem, model, (), kwargs, dynamic)
    if path.is_dir():
        model, kwargs, dynamic = hugging_face.from_folder(path, options)
        return Target(path.resolve().name, model, (), kwargs, dynamic)
    if ":" in spec and not path.exists():
        return _factory(spec, options)
    raise QuireError(
        "no such target" if not path.exists() else "cannot tell what this target is",
        where=spec,
        allowed="CONFIG.json, a Hugging Face folder, MODEL.pt2, or package.module:function",
        fix="check the path (relative to the current directory) or the file's ending",
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise QuireError("no such file", where=str(path), fix="check the path")
    return path


def _exported(path: Path, options: Options) -> Target:
    refuse(
        options, ("seq", "batch", "attn", "dtype"), str(path), "a .pt2 holds its graph and inputs"
    )
    try:
        exported = torch.export.load(path)
    except Exception as error:
        raise CaptureError(
            f"not a torch.export file: {first_line(error)}",
            where=str(path),
            allowed="files written by torch.export.save with this version of torch or an older one",
            fix="write it again with torch.export.save(torch.export.export(model, args), path)",
        ) from error
    if exported.example_inputs is None:
        raise CaptureError(
            "the file holds no example inputs",
            where=str(path),
            fix="save the program as torch.export.export gave it, with its example_inputs",
        )
    if options.device is not None:
        exported = move_to_device_pass(exported, options.device)
    args, kwargs = move(exported.example_inputs, options)
    return Target(path.name, exported, tuple(args), dict(kwargs))


def _factory(spec: str, options: Options) -> Target:
    module_name, _, name = spec.partition(":")
    # The `quire` script, unlike `python -m`, does not look in the current directory by itself.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), name)
    except ImportError as error:
        raise QuireError(
            f"cannot import {module_name}: {first_line(error)}",
            where=spec,
            allowed="package.module:function, importable from the current directory",
            fix="check the spelling, or install the package, or set PYTHONPATH",
        ) from error
    except AttributeError as error:
        raise QuireError(
            f"module {module_name} has no {name!r}",
            where=spec,
            allowed=", ".join(_functions(module_name)) or "a function of that module",
            fix="name a function that returns (model, args, kwargs)",
        ) from error
    taken = _accepted(function, options)
    try:
        made = function(**taken)
    except QuireError:
        raise
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise QuireError(
            f"the function raised {type(error).__name__}: {first_line(error)}",
            where=f"{frame.filename}:{frame.lineno}  `{frame.line}`",
            allowed="a function that returns (model, args, kwargs)",
            fix=f"make this run: from {module_name} import {name}; {name}()",
        ) from error
    if isinstance(made, tuple) and len(made) == 2:
        made = (*made, {})
    if not (
        isinstance(made, tuple)
        and len(made) in (3, 4)
        and isinstance(made[0], nn.Module)
        and isinstance(made[1], tuple | list)
        and isinstance(made[2], Mapping)
    ):
        kinds = ", ".join(type(m).__name__ for m in made) if isinstance(made, tuple) else ""
        raise QuireError(
            f"the function returned {f'({kinds})' if kinds else type(made).__name__}",
            where=spec,
            allowed="(model, args, kwargs), or (model, args, kwargs, dynamic_shapes): an "
            "nn.Module, a tuple, a dict, and torch.export's dynamic_shapes",
            fix="return those",
        )
    model, args, kwargs = made[:3]
    rest = attrs.evolve(options, **{k: None for k in taken if k in ("dtype", "device")})
    if rest.device is not None or rest.dtype is not None:
        model = model.to(
            device=rest.device and device_of(rest.device), dtype=rest.dtype and DTYPES[rest.dtype]
        )
    args, kwargs = move((tuple(args), dict(kwargs)), rest)
    return Target(spec, model.eval(), args, kwargs, made[3] if len(made) == 4 else None)


def _accepted(function: Callable[..., Any], options: Options) -> dict[str, Any]:
    """The options given that `function` has parameters for. Raises for --seq, --batch or --attn
    without one: dropping them in silence would measure another model than the one asked for."""
    given = {k: v for k, v in attrs.asdict(options).items() if v is not None}
    names = inspect.signature(function).parameters
    lost = [k for k in ("seq", "batch", "attn") if k in given and k not in names]
    if lost:
        raise QuireError(
            f"the function takes no {', '.join(lost)}",
            where=f"{function.__module__}:{function.__qualname__}{inspect.signature(function)}",
            fix=f"leave out {', '.join('--' + k for k in lost)}, or add the parameter",
        )
    return {k: v for k, v in given.items() if k in names}


def _functions(module_name: str) -> list[str]:
    members = inspect.getmembers(importlib.import_module(module_name), inspect.isfunction)
    return [n for n, f in members if f.__module__ == module_name and not n.startswith("_")]
