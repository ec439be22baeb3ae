"""A rank that is killed or hangs in the middle of a step ends the others, with names."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout

import quire
from quire.errors import RankError
from tests.shard_models import build

COUNT, LOST, LIMIT = 3, 1, 6.0
"""Ranks, the one that fails, and the time limit of a collective in the failing step, seconds."""


def _train(rank: int, file: str, how: str, way: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(file, COUNT),
        rank=rank,
        world_size=COUNT,
        timeout=timedelta(seconds=240),  # capture takes as long as the machine is busy
    )
    mesh = init_device_mesh("cpu", (COUNT,), mesh_dim_names=("sp",))
    model, batch = build("gpt2", 24)
    ways: Any = [way]
    small = quire.shard(model, batch, mesh=mesh, ways=ways)
    small(**batch).loss.backward()
    dist.barrier()
    _set_pg_timeout(timedelta(seconds=LIMIT), dist.group.WORLD)
    _set_pg_timeout(timedelta(seconds=LIMIT), mesh.get_group())
    if rank == LOST:
        # In backward, once its last layer is through: the others wait for it in the first.
        def fail(*_: Any) -> None:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(10 * LIMIT)

        small.get_submodule("transformer.h.0.mlp").register_full_backward_pre_hook(fail)
    loss = small(**batch).loss
    started = time.monotonic()
    try:
        loss.backward()
    except RankError as error:
        pipe.send((time.monotonic() - started, error.rank, error.collective, error.absent))
    pipe.close()
    os._exit(0)


@pytest.mark.parametrize(
    ("how", "way", "collective"),
    [
        ("killed", "ring", "a hop of the ring"),
        ("hung", "ulysses", "an all-to-all of attention's gradients"),
    ],
)
def test_survivors_name_the_rank_and_the_collective(how: str, way: str, collective: str) -> None:
    context: Any = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests.shard_models", "quire"])
    with tempfile.NamedTemporaryFile() as file:
        pipes, workers = [], []
        for rank in range(COUNT):
            ours, theirs = context.Pipe()
            worker = context.Process(target=_train, args=(rank, file.name, how, way, theirs))
            worker.start()
            theirs.close()
            pipes.append(ours)
            workers.append(worker)
        for rank, pipe in enumerate(pipes):
            if rank == LOST:
                continue
            assert pipe.poll(300), f"rank {rank} hangs"
            seconds, who, where, absent = pipe.recv()
            assert who == rank
            assert where.startswith(collective)
            assert absent == (LOST,)
            assert seconds < 2 * LIMIT
        workers[LOST].kill()
        for worker in workers:
            worker.join(10)
            assert not worker.is_alive()
