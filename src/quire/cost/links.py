"""A mesh as it is: latency and bandwidth of its links, measured, and kept for the planner.

    hop         a message to the next rank: α + bytes/β, least squares over sizes
    exchange    an all-to-all of P parts: (P−1)·α + bytes·(P−1)/P/β
    hidden      share of a hop that a product of the same length hides

Each figure is the slowest rank's, and all ranks get the same ones: a plan must not differ from rank
to rank.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from quire.cost.collectives import TOPOLOGIES, Link, Topology
from quire.errors import InputError

SIZES = tuple(1 << k for k in range(14, 25, 2))
"""Bytes of the messages measured."""
REPEATS = 7
HOST = {"cpu": 8e9, "cuda": 200e9}
"""Bytes of the host's memory for each device that a plan may offload to."""


def measure_mesh(mesh: DeviceMesh) -> Topology:
    """The figures of a mesh of one dim; every rank must call it. It takes some seconds.

    Raises InputError for a mesh of one rank, or of other than one dim.
    """
    ranks = mesh.size()
    if mesh.ndim != 1 or ranks < 2:
        raise InputError(
            f"a mesh of {mesh.ndim} dims and {ranks} ranks", allowed="one dim, two ranks or more"
        )
    width = _width(ranks)
    probe = _Probe(mesh.get_group(), mesh.device_type)
    near = far = None
    if width > 1:
        near = _fitted("measured, within a node", probe.hops(within=width), 1)
    if width < ranks:
        far = _fitted("measured, between nodes", probe.hops(across=width), 1)
    exchange = _fitted("measured, all-to-all", probe.exchanges(), ranks - 1)
    base = TOPOLOGIES["h100" if mesh.device_type == "cuda" else "cpu"]
    found = Topology(
        f"{ranks} ranks as measured, {_device(mesh.device_type)}",
        width,
        near or far or base.near,
        far or near or base.far,
        probe.slowest(_product_flops(probe)),
        _memory(mesh.device_type, width),
        HOST[mesh.device_type],
        probe.slowest(_attention_flops(probe)),
        probe.slowest(_copy_bandwidth(probe)),
        exchange,
        probe.hidden(),
    )
    # To the last bit: the same least squares differ by rounding from process to process.
    told = [found]
    dist.broadcast_object_list(told, src=probe.peers[0], group=probe.group)
    return told[0]


def _width(ranks: int) -> int:
    """Ranks of a node, if every node holds as many neighbours; else 1."""
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, platform.node())
    width = names.count(names[0])
    even = ranks % width == 0 and all(
        len(set(names[k : k + width])) == 1 for k in range(0, ranks, width)
    )
    return min(width, ranks) if even else 1


class _Probe:
    """Times of transfers and of compute, on one rank."""

    def __init__(self, group: dist.ProcessGroup, kind: str) -> None:
        self.group, self.kind = group, kind
        self.ranks, self.me = group.size(), dist.get_rank(group)
        self.peers = dist.get_process_group_ranks(group)
        here = f"cuda:{torch.cuda.current_device()}" if kind == "cuda" else kind
        self.device = torch.device(here)

    def seconds(self, work: Callable[[], Any]) -> float:
        """The median of some runs that all ranks begin together; the slowest rank's."""
        work()
        times = []
        for _ in range(REPEATS):
            dist.barrier(self.group)
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return -self.slowest(-statistics.median(times))

    def wait(self) -> None:
        if self.kind == "cuda":
            torch.cuda.synchronize()

    def slowest(self, rate: float) -> float:
        """The least of all ranks' numbers."""
        x = torch.tensor([rate], dtype=torch.float32, device=self.device)
        dist.all_reduce(x, dist.ReduceOp.MIN, group=self.group)
        return float(x)

    def post(self, x: torch.Tensor, got: torch.Tensor, to: int, source: int) -> list[Any]:
        ops = [
            dist.P2POp(dist.isend, x, self.peers[to], self.group),
            dist.P2POp(dist.irecv, got, self.peers[source], self.group),
        ]
        return dist.batch_isend_irecv(ops)

    def hop(self, nbytes: int, to: int, source: int) -> Callable[[], None]:
        x = torch.zeros(nbytes // 4, device=self.device)
        got = torch.empty_like(x)

        def work() -> None:
            for item in self.post(x, got, to, source):
                item.wait()

        return work

    def neighbours(self, within: int = 0, across: int = 0) -> tuple[int, int]:
        """The next and the last rank: of a ring within a node, or of one rank of each node."""
        if within:
            first = self.me - self.me % within
            return first + (self.me + 1 - first) % within, first + (self.me - 1 - first) % within
        return (self.me + across) % self.ranks, (self.me - across) % self.ranks

    def hops(self, within: int = 0, across: int = 0) -> list[tuple[int, float]]:
        to, source = self.neighbours(within, across)
        return [(n, self.seconds(self.hop(n, to, source))) for n in SIZES]

    def exchanges(self) -> list[tuple[int, float]]:
        found = []
        for nbytes in SIZES:
            rows = max(1, nbytes // 4 // self.ranks)
            x = torch.zeros(self.ranks * rows, device=self.device)
            got = torch.empty_like(x)
            took = self.seconds(
                lambda x=x, got=got: dist.all_to_all_single(got, x, group=self.group)
            )
            found.append((4 * rows * (self.ranks - 1), took))
        return found

    def hidden(self) -> float:
        """Share of a hop that compute of the same length hides."""
        to, source = self.neighbours(across=1)
        x = torch.zeros(SIZES[-1] // 4, device=self.device)
        got = torch.empty_like(x)
        alone = self.seconds(self.hop(SIZES[-1], to, source))
        a = torch.randn(256, 256, device=self.device)
        one = self.seconds(lambda: a @ a)
        times = max(1, round(alone / one))

        def compute() -> None:
            for _ in range(times):
                torch.mm(a, a)

        def both() -> None:
            works = self.post(x, got, to, source)
            compute()
            for work in works:
                work.wait()

        busy, together = self.seconds(compute), self.seconds(both)
        return min(1.0, max(0.0, (alone + busy - together) / min(alone, busy)))


def _fitted(name: str, points: Sequence[tuple[int, float]], messages: int) -> Link:
    """α and β of t = messages·α + bytes/β by least squares of the relative error."""
    rows = torch.tensor([[messages / t, n / t] for n, t in points], dtype=torch.float64)
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    alpha, per_byte = torch.linalg.lstsq(rows, ones).solution.flatten().tolist()
    if alpha <= 0 or per_byte <= 0:  # one of them is not seen: take what bounds it
        n, t = points[-1] if alpha <= 0 else points[0]
        return Link(name, min(t for _, t in points) / messages / 2, max(1.0, n / t))
    return Link(name, alpha, 1 / per_byte)


def _product_flops(probe: _Probe) -> float:
    cuda = probe.kind == "cuda"
    size, dtype = (4096, torch.bfloat16) if cuda else (512, torch.float32)
    a = torch.randn(size, size, device=probe.device, dtype=dtype)
    return 2 * size**3 / probe.seconds(lambda: a @ a)


def _attention_flops(probe: _Probe) -> float:
    cuda = probe.kind == "cuda"
    rows, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    q = torch.randn(1, 8, rows, 64, device=probe.device, dtype=dtype)
    attend = torch.nn.functional.scaled_dot_product_attention
    return 4 * 8 * rows * rows * 64 / probe.seconds(lambda: attend(q, q, q))


def _copy_bandwidth(probe: _Probe) -> float:
    """Bytes read and written in a second."""
    x = torch.zeros((1 << 28 if probe.kind == "cuda" else 1 << 25) // 4, device=probe.device)
    y = torch.empty_like(x)
    return 2 * x.nbytes / probe.seconds(lambda: y.copy_(x))


def _memory(kind: str, width: int) -> float:
    if kind == "cuda":
        return float(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / width


def _device(kind: str) -> str:
    return torch.cuda.get_device_name() if kind == "cuda" else f"CPU × {os.cpu_count()}"


# Keeping --------------------------------------------------------------------------------------


def mesh_file(kind: str, ranks: int) -> Path:
    """Where the figures of a mesh are kept: `$QUIRE_CACHE`, or `~/.cache/quire`."""
    root = os.environ.get("QUIRE_CACHE") or Path.home() / ".cache" / "quire"
    name = hashlib.sha256(_device(kind).encode()).hexdigest()[:12]
    return Path(root) / f"mesh-{name}-{kind}-{ranks}.json"


def save_mesh(found: Topology, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(attrs.asdict(found), indent=1))
    partial.replace(path)


def read_mesh(path: Path) -> Topology:
    """What `save_mesh` wrote. Raises InputError for another file."""
    try:
        stored = json.loads(path.read_text())
        links = {k: None if (v := stored[k]) is None else Link(**v) for k in LINKS}
        return Topology(**{**stored, **links})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{path} holds no figures of a mesh: {error}",
            fix="measure it: torchrun --nproc-per-node 8 --no-python quire mesh",
        ) from error


LINKS = ("near", "far", "exchange")
