# SPDX-License-Identifier: Apache-2.0
"""From counted graphs and data sheets to a predicted time: the roofline's arithmetic, no clock.

A kernel takes as long as the slowest of three things, if each ran at its peak: its bytes over the
memory's bandwidth, its fp16 matrix products on the tensor cores, everything else on the CUDA cores
(Williams, Waterman and Patterson, "Roofline", CACM 2009).  Kernels run one after the other.  What
a kernel is comes in three readings, from pessimistic to a floor:

``node by node``  every node of the inlined graph is a kernel, all values go through memory
``fused``         :func:`kernels`: each custom op is one kernel, as with our plugins, and arithmetic
                  element by element and moving of data join the kernel that made their input
``once``          one kernel: each weight and each input and output of the two graphs moves once

Real engines lie between the last two in traffic and reach no peak.  **Not in any of them**: the
time to launch a kernel, which at a hop's few operations is likely the largest part; gaps between
kernels, copies to and from the host, caches (a value that stays in the GPU's L2 costs less than is
counted), and clocks below the maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.roofline.graph_cost import MOVES, POINTWISE, Cost, Graph


@dataclass(frozen=True)
class Device:
    """Peaks of a module in its fastest power mode.

    Sources: bandwidth and dense fp16 of Orin Nano Super, AGX Orin and Thor as this project noted
    them from NVIDIA's publications (Thor's are those of the technical brief TB-12572-001, 2025);
    CUDA cores, highest clocks and Orin NX's bandwidth from copies of NVIDIA's table of its modules
    (developer.nvidia.com/embedded/jetson-modules).  None was checked against the originals, and
    nothing here was measured.  What none of them states is derived and says so.
    """

    name: str
    memory_gb_s: float
    fp16_tflops: float  # dense, of the tensor cores
    cuda_cores: int
    clock_ghz: float  # the highest of the GPU
    fp16_note: str = ""  # where the figure is not one of a data sheet

    @property
    def fp32_tflops(self) -> float:
        """Of the CUDA cores: one multiply-add a core and clock.  Derived: the sources lack it."""
        return 2 * self.cuda_cores * self.clock_ghz / 1000

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "memory_gb_s": self.memory_gb_s,
            "fp16_tensor_dense_tflops": self.fp16_tflops,
            "fp16_note": self.fp16_note or None,
            "fp32_cuda_tflops": round(self.fp32_tflops, 3),
            "fp32_note": f"derived: 2 x {self.cuda_cores} cores x {self.clock_ghz:g} GHz",
        }


DEVICES = (
    Device("Orin Nano Super", 102.0, 17.0, 1024, 1.020),
    Device(
        "Orin NX 16GB", 102.4, 15.3, 1024, 0.918,
        "derived: Orin Nano Super's 17 by the clocks, 0.918 / 1.020; the same 32 tensor cores",
    ),
    Device("AGX Orin 64GB", 204.8, 42.0, 2048, 1.3, "about 42"),
    Device("Thor T5000", 273.0, 258.0, 2560, 1.57),
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """What is launched at once."""

    name: str  # of the last value it makes
    operators: tuple[str, ...]
    tensor_flops: int  # fp16 matrix products
    cuda_flops: int  # everything else
    weight_bytes: int
    read_bytes: int  # of values that other kernels made, and of the graph's inputs
    written_bytes: int  # of values that others need, and of the graph's outputs

    @property
    def flops(self) -> int:
        return self.tensor_flops + self.cuda_flops

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.read_bytes + self.written_bytes

    def memory_s(self, device: Device) -> float:
        return self.bytes / (device.memory_gb_s * 1e9)

    def compute_s(self, device: Device) -> float:
        return max(
            self.tensor_flops / (device.fp16_tflops * 1e12),
            self.cuda_flops / (device.fp32_tflops * 1e12),
        )


def kernels(graph: Graph, *, fused: bool) -> list[Kernel]:
    """The graph's kernels in order: one a node, or fused.

    Where ``fused``, the nodes of a custom op's body are one kernel.  A node that works element by
    element or moves data joins the kernel of one of its inputs if that input leaves the kernel for
    this node alone and nothing else leaves it; so no kernel ever waits for itself.
    """
    consumers: dict[str, list[int]] = {}
    for i, cost in enumerate(graph.costs):
        for value in cost.reads:
            consumers.setdefault(value, []).append(i)
    groups: dict[int, list[int]] = {}  # number of the first node -> nodes
    made_in: dict[str, int] = {}  # value -> group
    bodies: dict[str, int] = {}  # custom op -> group

    def leaves(group: int) -> list[str]:
        inside = groups[group]
        return [
            value
            for i in inside
            for value in graph.costs[i].writes
            if value in graph.outputs or any(c not in inside for c in consumers.get(value, ()))
        ]

    def joined(i: int, cost: Cost) -> int:
        if not fused:
            return i
        if cost.custom:
            return bodies.setdefault(cost.custom, i)
        if cost.operator in POINTWISE or cost.operator in MOVES:
            for value in reversed(list(cost.reads)):
                group = made_in.get(value)
                if group is None or group in bodies.values():
                    continue
                alone = consumers[value] == [i] and value not in graph.outputs
                if alone and leaves(group) == [value]:
                    return group
        return i

    for i, cost in enumerate(graph.costs):
        group = joined(i, cost)
        groups.setdefault(group, []).append(i)
        made_in.update(dict.fromkeys(cost.writes, group))
    sizes = dict(graph.inputs)
    for cost in graph.costs:
        sizes.update(cost.writes)
    return [
        _kernel([graph.costs[i] for i in inside], sizes, set(leaves(group)))
        for group, inside in groups.items()
    ]


def _kernel(costs: Sequence[Cost], sizes: Mapping[str, int], leaving: set[str]) -> Kernel:
    made = {value for cost in costs for value in cost.writes}
    weights: dict[str, int] = {}
    reads: dict[str, int] = {}
    for cost in costs:
        weights.update(cost.weights)
        for value, part in cost.reads.items():
            if value not in made:  # several parts of a value are at most the whole of it
                reads[value] = min(reads.get(value, 0) + part, sizes[value])
    return Kernel(
        name=costs[-1].name,
        operators=tuple(cost.operator for cost in costs),
        tensor_flops=sum(cost.product_flops for cost in costs if cost.half),
        cuda_flops=sum(
            cost.other_flops + (0 if cost.half else cost.product_flops) for cost in costs
        ),
        weight_bytes=sum(weights.values()),
        read_bytes=sum(reads.values()),
        written_bytes=sum(sizes[value] for value in made & leaving),
    )


def once(graph: Graph) -> Kernel:
    """The whole graph as one kernel: the floor of what has to move."""
    weights: dict[str, int] = {}
    for cost in graph.costs:
        weights.update(cost.weights)
    return Kernel(
        name="once",
        operators=(),
        tensor_flops=sum(cost.product_flops for cost in graph.costs if cost.half),
        cuda_flops=sum(
            cost.other_flops + (0 if cost.half else cost.product_flops) for cost in graph.costs
        ),
        weight_bytes=sum(weights.values()),
        read_bytes=sum(graph.inputs.values()),
        written_bytes=sum(graph.outputs.values()),
    )


def totals(run: Sequence[Kernel]) -> dict[str, Any]:
    """Counts of kernels that run one after the other; JSON-ready."""
    flops, moved = sum(k.flops for k in run), sum(k.bytes for k in run)
    return {
        "kernels": len(run),
        "flops": flops,
        "tensor_core_flops": sum(k.tensor_flops for k in run),
        "weight_bytes": sum(k.weight_bytes for k in run),
        "activation_bytes_read": sum(k.read_bytes for k in run),
        "activation_bytes_written": sum(k.written_bytes for k in run),
        "bytes": moved,
        "flop_per_byte": flops / moved,
    }


def predict(run: Sequence[Kernel], device: Device) -> dict[str, Any]:
    """Predicted time of kernels that run one after the other, without launches; JSON-ready."""
    memory = [k.memory_s(device) for k in run]
    compute = [k.compute_s(device) for k in run]
    total = sum(map(max, memory, compute))
    held_up = sum(m for m, c in zip(memory, compute, strict=True) if m >= c)
    share = held_up / total
    return {
        "predicted_ms": total * 1000,
        "memory_bound_share": share,  # of that time, in kernels that wait for memory
        "bound": "memory" if share >= 0.5 else "compute",
    }
