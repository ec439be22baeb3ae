"""Four Gloo ranks that stay up for a whole test session and run functions of the tests.

    ranks.run(function, **kwargs) → [result of rank 0, … of rank 3]

`function(**kwargs)` must be at the top level of its file, and give back something picklable.
Two ranks are a mesh dim of size 2: `mesh(2)` within the function.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

COUNT = 4
SECONDS = 120
"""Of a collective."""
ANSWER = 900


class Ranks:
    def __init__(self, count: int = COUNT) -> None:
        # One process imports, the ranks are its forks.
        context: Any = mp.get_context("forkserver")
        context.set_forkserver_preload(["tests.shard_models", "quire"])
        self._file = tempfile.NamedTemporaryFile()  # noqa: SIM115  (lives as long as the ranks)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self.pipes: list[Any] = []
        self.workers: list[Any] = []
        self.serial = 0
        for rank in range(count):
            ours, theirs = context.Pipe()
            worker = context.Process(
                target=_serve, args=(rank, count, self._file.name, theirs, sys.path), daemon=True
            )
            worker.start()
            theirs.close()
            self.pipes.append(ours)
            self.workers.append(worker)

    def run(self, function: Callable[..., Any], **kwargs: Any) -> list[Any]:
        code = sys.modules[function.__module__].__file__
        self.serial += 1
        for pipe in self.pipes:
            pipe.send((self.serial, code, function.__name__, kwargs))
        answers = [self._answer(rank, pipe) for rank, pipe in enumerate(self.pipes)]
        errors = [f"rank {r}:\n{text}" for r, (ok, text) in enumerate(answers) if not ok]
        if errors:
            raise AssertionError("\n".join(errors))
        return [value for _, value in answers]

    def _answer(self, rank: int, pipe: Any) -> tuple[bool, Any]:
        while True:
            if not pipe.poll(ANSWER):
                raise TimeoutError(f"rank {rank} does not answer")
            serial, *answer = pipe.recv()
            if serial == self.serial:  # not one that an earlier test gave up waiting for
                return answer[0], answer[1]

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for worker in self.workers:
            worker.join(5)
            if worker.is_alive():
                worker.kill()
        self._file.close()


def _serve(rank: int, count: int, file: str, pipe: Any, path: list[str]) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)
    store = dist.FileStore(file, count)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=SECONDS)
    )
    while (task := pipe.recv()) is not None:
        serial, code, name, kwargs = task
        try:
            torch.manual_seed(0)
            pipe.send((serial, True, getattr(_module(code), name)(**kwargs)))
        except BaseException:
            pipe.send((serial, False, traceback.format_exc()))
    dist.destroy_process_group()


_modules: dict[str, Any] = {}


def _module(code: str) -> Any:
    if code not in _modules:
        spec = importlib.util.spec_from_file_location(f"on_ranks_{len(_modules)}", code)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        _modules[code] = sys.modules[module.__name__] = module
        spec.loader.exec_module(module)
    return _modules[code]


_meshes: dict[int, DeviceMesh] = {}


def mesh(size: int) -> DeviceMesh:
    """A mesh dim "sp" of `size` ranks; the other ranks do the same work beside."""
    if size not in _meshes:
        shape = (dist.get_world_size() // size, size)
        _meshes[size] = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "sp"))
    return _meshes[size]["sp"]
