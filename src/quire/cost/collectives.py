"""Seconds of a transfer between devices: α + bytes/β by link, and where ranks share links.

All figures of the presets are data-sheet bandwidths per device and direction times a usual
efficiency; numbers made with them are predictions. FLOP/s of attention on H100 and A100 are those
of FlashAttention 2 as the README of ring-flash-attention (Zhu, commit 01c8baf) reports them.
`benchmarks/scaling.py` compares the model with that page's other figures.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Link:
    """Latency of a message in seconds, bytes/s per device and direction."""

    name: str
    latency: float
    bandwidth: float

    def seconds(self, nbytes: float, messages: int = 1) -> float:
        return messages * self.latency + nbytes / self.bandwidth


@attrs.frozen
class Topology:
    """Devices in nodes of `width`; `near` within a node, `far` between nodes (per device)."""

    name: str
    width: int
    near: Link
    far: Link
    flops: float
    """Attainable FLOP/s of a device in matrix products, half precision."""
    memory: float
    """Bytes of a device."""
    host: float = 0.0
    """Bytes of the host's memory for each device, to offload to."""
    attention: float = 0.0
    """Attainable FLOP/s in fused attention, forward and backward; 0: as `flops`."""
    bandwidth: float = 0.0
    """Bytes/s of the device's memory; 0: not counted."""
    exchange: Link | None = None
    """All-to-alls as measured; None: as the links give them."""
    hidden: float = 1.0
    """Share of a transfer that compute can hide."""

    def group(self, ranks: int, stride: int = 1) -> Link:
        """The link that `ranks` devices, `stride` apart, are bound by."""
        return self.near if (ranks - 1) * stride < self.width else self.far

    def all_to_all(self, nbytes: float, ranks: int, stride: int = 1) -> float:
        """Each rank sends nbytes/P to every other: what leaves the node goes by the far link,
        the rest by the near one, at the same time. Not an all-reduce: (P−1)/P of the bytes move."""
        if ranks == 1:
            return 0.0
        if self.exchange is not None:
            return self.exchange.seconds(nbytes * (ranks - 1) / ranks, ranks - 1)
        inside = min(ranks, max(1, self.width // stride))
        near = nbytes * (inside - 1) / ranks
        far = nbytes * (ranks - inside) / ranks
        return max(
            self.near.seconds(near, inside - 1) if near else 0.0,
            self.far.seconds(far, ranks - inside) if far else 0.0,
        )

    def hop(self, nbytes: float, ranks: int, stride: int = 1) -> float:
        """One step of a ring: as slow as its slowest link."""
        return 0.0 if ranks == 1 else self.group(ranks, stride).seconds(nbytes)

    def exposed(self, transfer: float, compute: float) -> float:
        """Seconds of a transfer that go on when the compute beside it is over, or slow it down."""
        return max(transfer - compute, (1 - self.hidden) * min(transfer, compute))

    def all_gather(self, nbytes: float, ranks: int, stride: int = 1) -> float:
        """Ring algorithm: P−1 hops of a rank's `nbytes`."""
        return (ranks - 1) * self.hop(nbytes, ranks, stride)

    def all_reduce(self, nbytes: float, ranks: int, stride: int = 1) -> float:
        """Reduce-scatter and all-gather: 2(P−1) hops of nbytes/P."""
        return 2 * (ranks - 1) * self.hop(nbytes / ranks, ranks, stride)


NVLINK4 = Link("NVLink 4", 4e-6, 0.8 * 450e9)
NVLINK3 = Link("NVLink 3", 4e-6, 0.8 * 300e9)
PCIE5 = Link("PCIe 5 ×16", 6e-6, 0.8 * 64e9)
PCIE4 = Link("PCIe 4 ×16", 6e-6, 0.8 * 32e9)
NDR = Link("InfiniBand NDR, one port a device", 8e-6, 0.85 * 50e9)
HDR = Link("InfiniBand HDR, one port a device", 8e-6, 0.85 * 25e9)
ETHERNET = Link("Ethernet 25 Gb/s", 30e-6, 0.9 * 25e9 / 8)
LOOPBACK = Link("Gloo over loopback", 60e-6, 1.0e9)

TOPOLOGIES = {
    "h100": Topology(
        "H100 SXM, NVLink 4, NDR", 8, NVLINK4, NDR, 0.5 * 989e12, 80e9, 200e9, 298e12, 3.35e12
    ),
    "h200": Topology(
        "H200 SXM, NVLink 4, NDR", 8, NVLINK4, NDR, 0.5 * 989e12, 141e9, 200e9, 298e12, 4.8e12
    ),
    "a100": Topology(
        "A100 SXM, NVLink 3, HDR", 8, NVLINK3, HDR, 0.55 * 312e12, 80e9, 100e9, 182e12, 2.0e12
    ),
    "l40s": Topology(
        "L40S, PCIe 4, Ethernet", 8, PCIE4, ETHERNET, 0.5 * 362e12, 48e9, 60e9, 110e12, 0.86e12
    ),
    "h100-pcie": Topology(
        "H100 PCIe 5, NDR", 8, PCIE5, NDR, 0.5 * 756e12, 80e9, 200e9, 230e12, 2.0e12
    ),
    "cpu": Topology("CPU ranks, Gloo", 1, LOOPBACK, LOOPBACK, 5e10, 16e9),
}
