"""The processes that train together, as `torchrun` or `accelerate launch` started them; alone without either.

Accelerate finds out who and where they are. Whole models go through DDP; with sharding, weights, gradients and
optimizer state are divided by FSDP2 (PyTorch FSDP, arXiv 2304.11277; `fully_shard`), block by block.
Left out: DeepSpeed, which wants to own optimizer and checkpoint; pipeline and tensor parallelism.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from attrs import frozen
from torch import nn

from andes_sdk.errors import TrainingError
from andes_training.state import whole

if TYPE_CHECKING:
    from andes_sdk.model import VisionLanguageModel


@frozen
class Processes:
    """This process among all that train together."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @classmethod
    def join(cls, device: str, timeout: float) -> Processes:
        """Find the others, if a launcher started any; `timeout` in seconds is for every exchange with them.

        Raises:
            TrainingError: the launcher asks for DeepSpeed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls(torch.device(device))
        if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
            raise TrainingError("DeepSpeed is not supported", fix='divide the model with sharding = "full" (FSDP2)')
        from accelerate import PartialState

        found = PartialState(cpu=device == "cpu", timeout=timedelta(seconds=timeout))
        return cls(found.device, found.process_index, found.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process writes files and tells observers."""
        return self.rank == 0

    def wrap(self, module: nn.Module, sharding: str) -> nn.Module:
        """A module whose gradients are means over all processes."""
        if self.world == 1:
            return module
        if sharding == "full":
            return _shard(module, self.device, self.world)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(module, device_ids=ids, forward_sync_buffers=False)

    def alone(self, module: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """For one of several packs of a step: DDP exchanges gradients at the last one only."""
        if last or not isinstance(module, nn.parallel.DistributedDataParallel):
            return nullcontext()
        return cast("AbstractContextManager[Any]", module.no_sync())

    def all(self, item: Any) -> list[Any]:
        """What every process has to say, by rank."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def leave_processes() -> None:
    """Take leave of the other processes at the end of a program, if there were any."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def losing_others_is_told() -> Iterator[None]:
    """Turn the transport's complaint about a process that died or hangs into an error that says so."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise TrainingError(
            "another process of this run failed or does not answer",
            why=str(error).splitlines()[0],
            fix="look at its output; the same command goes on from the last state",
        ) from error


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The layers of a model: members of its outermost `ModuleList`s."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks_of(child)
    return found


def divided_copy(model: VisionLanguageModel) -> VisionLanguageModel:
    """A copy to be divided, so that the model itself stays whole for sessions and for the checkpoint."""
    return copy.deepcopy(model, {id(model.tokenizer): model.tokenizer})


def _shard(module: nn.Module, device: torch.device, world: int) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world,))
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh)
    return cast("nn.Module", fully_shard(module, mesh=mesh))


@torch.no_grad()
def gather(divided: nn.Module, model: nn.Module) -> None:
    """Copy the weights and buffers of a divided model into the whole one, in every process."""
    if divided is not model:
        for weight, own in zip(divided.parameters(), model.parameters(), strict=True):
            own.copy_(whole(weight.detach()))
        for source, target in zip(divided.buffers(), model.buffers(), strict=True):
            target.copy_(source)
