# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model: what ``torchrun`` starts, or one process alone.

    torchrun --nproc-per-node 2 -m trainer.fit --data prepared --output runs/two

Each process takes its part of every global batch; DistributedDataParallel adds the gradients up.
A loss that is a weighted mean over the batch is not the mean of the parts' weighted means, so its
denominators are summed over all processes first (:meth:`Group.mean`): the gradients are those of
one process on the whole batch, to rounding.

Batch normalisation: on GPUs SyncBatchNorm, whose statistics are the whole batch's.  Torch has none
for CPUs: there each process normalises by the statistics of its own part, and the running
statistics are the mean over the processes after every step, so all processes keep one model.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from runtime import interrupt
from runtime.errors import EXIT_ERROR, EXIT_INTERRUPTED, UsageError, UserError
from runtime.naming import plain

TIMEOUT = timedelta(hours=2)  # the others wait while the first process validates
FAREWELL_S = 10.0
STOPPED = "stopped; --resume continues from the last saved step"
_FAILED = "msct/failed"
_LOST = ("gloo", "NCCL", "Connection", "connection", "Broken pipe", "timed out")


@dataclass(frozen=True)
class Group:
    """This process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    store: Any = None  # torch.distributed.Store

    @property
    def first(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def part(self, count: int, pieces: int = 1) -> range:
        """This process's share of ``count`` rows; UsageError where they do not divide."""
        if count % (self.size * pieces):
            raise UsageError(
                f"a batch of {count} cannot be dealt to {self.size} processes in {pieces} "
                f"parts each; choose a multiple of {self.size * pieces}"
            )
        share = count // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes, without a gradient."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives in the first process, everywhere."""
        if self.size == 1:
            return make()
        box = [make() if self.first else None]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def claim_failure(self) -> bool:
        """True for the one process that is to say what went wrong."""
        if self.size == 1:
            return True
        try:
            value: bytes = self.store.compare_set(_FAILED, "", str(self.rank))
        except (RuntimeError, OSError):  # the process that held the store is gone, and has said why
            return False
        return value.decode() == str(self.rank)

    def leave(self) -> None:
        """Close the connections, then keep the store until the others have looked into it."""
        if self.size == 1:
            return
        key = "msct/left"
        try:
            self.store.add(key, 1)
            if dist.is_initialized():
                dist.destroy_process_group()
            deadline = time.monotonic() + FAREWELL_S
            while self.first and time.monotonic() < deadline:
                if self.store.add(key, 0) >= self.size:
                    break
                time.sleep(0.05)
        except (RuntimeError, OSError):
            return  # nobody is left to say goodbye to


@contextmanager
def joined(device: str) -> Iterator[Group]:
    """The group that ``torchrun`` describes in the environment, or this process alone.

    Raises UsageError where the environment describes none.
    """
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield Group()
        return
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    except (ValueError, RuntimeError) as err:
        raise UsageError(f"cannot join the other processes ({err}); start with torchrun") from err
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if cuda:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(
        "nccl" if cuda else "gloo",
        store=dist.PrefixStore("msct", store),
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
    )
    group = Group(rank, size, local_rank, store)
    try:
        yield group
    finally:
        group.leave()


def run_together(device: str, work: Callable[[Group], int], program: str) -> int:
    """``work`` in every process; what a person can put right is one line, from one process."""
    try:
        with joined(device) as group:
            return _guarded(group, work, program)
    except UserError as err:  # before anybody was joined
        print(f"{program}: {plain(str(err))}", file=sys.stderr)
        return err.exit_code


def _guarded(group: Group, work: Callable[[Group], int], program: str) -> int:
    who = f"{program}: " if group.size == 1 else f"{program}: process {group.rank}: "
    try:
        return work(group)
    except UserError as err:
        line, code = str(err), err.exit_code
    except OSError as err:
        place = f"{err.filename}: " if err.filename else ""
        line, code = f"{place}{err.strerror or err}", EXIT_ERROR
    except KeyboardInterrupt:
        line, code = STOPPED, EXIT_INTERRUPTED
    except RuntimeError as err:
        if group.size == 1 or not any(word in str(err) for word in _LOST):
            raise
        if interrupt.requested():  # the others were told, too, and some looked sooner
            line, code = STOPPED, EXIT_INTERRUPTED
        else:
            line, code = "another process is gone; --resume continues from the last saved step", 1
    if group.claim_failure():
        print(who + plain(line), file=sys.stderr, flush=True)
    return code


def data_parallel(module: nn.Module, *, some_unused: bool) -> nn.Module:
    """``module`` whose gradients are the mean over the processes; buffers are left to the caller.

    ``some_unused``: there are steps whose loss does not reach every parameter.
    """
    with warnings.catch_warnings():
        # torch 2.13 announces another name for the argument, which torch 2.9 does not know
        warnings.simplefilter("ignore", FutureWarning)
        return nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=some_unused
        )


@torch.no_grad()
def average_buffers(module: nn.Module, group: Group) -> None:
    """Running statistics become the mean over the processes."""
    if group.size == 1:
        return
    buffers = [b for b in module.buffers() if b.is_floating_point()]
    if not buffers:
        return
    flat = group.mean(torch.cat([b.flatten() for b in buffers]))
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
