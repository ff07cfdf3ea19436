"""Virtual devices: the parts of a global batch that BatchNorm takes its statistics over.

MoCo's published numbers come from 8 GPUs whose BatchNorm saw 32 images each (He et al. 2020, section 3.3). Here the
global batch of N rows is dealt out to G virtual devices, whatever the number of processes: device d holds rows
d, d + G, d + 2G, …, and rank r of W holds the devices d = r, r + W, … (so that its rows are the r, r + W, … that the
loader hands it). One GPU and eight then train alike, and a step may be taken in parts of whole devices (gradient
accumulation) without changing a number. G = 1 over several processes is SyncBN.

Shuffled BatchNorm: a key is normalised in other company than its query, else the encoder tells a positive by the
statistics the two share. The global batch is permuted by a function of (seed, step), the same on all ranks.

Several crops of a row may go through a network in one batch (multi-crop: Caron et al. 2020, SwAV). Then a device holds
all of them, its statistics are over its rows' crops, and parts of whole devices are still independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.to_device import sent
from objcrop.errors import UsageError
from objcrop.kernels.batch_norm import batch_norm, fits
from objcrop.ranks import gather_ranks, rank_and_world_size


class _SumOverRanks(torch.autograd.Function):
    """A sum over all ranks, whose gradient is the sum of theirs; torch.distributed.nn's is on its way out."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return _summed(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _summed(gradients[0])


def _summed(x: torch.Tensor) -> torch.Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    torch.distributed.all_reduce(total)
    return total


class VirtualBatchNorm(nn.modules.batchnorm._NormBase):
    """BatchNorm over the rows of one virtual device at a time; rows of a device lie side by side.

    The running statistics, which training does not use, follow the mean over the devices.

    Args:
        like: the BatchNorm it takes the place of, whose parameters and buffers it takes over.
        rows: of a virtual device in this process.
        synchronised: one device over all processes: the statistics are summed over them.
    """

    def __init__(self, like: nn.modules.batchnorm._BatchNorm, rows: int, synchronised: bool) -> None:
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        self.weight, self.bias = like.weight, like.bias
        for name, buffer in like.named_buffers():
            setattr(self, name, buffer)
        self.rows, self.synchronised = rows, synchronised

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any of 2 to 5 axes will do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise (n × rows, C, …)."""
        if not self.training:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        if self.synchronised and not fits(x, self.weight):
            return self._over_all_processes(x)
        y, mean, var = batch_norm(x, self.weight, self.bias, self.rows, self.eps, over_ranks=self.synchronised)
        self._follow(mean, var)
        return y

    def _over_all_processes(self, x: torch.Tensor) -> torch.Tensor:
        """Do what the kernels do over ranks, where there are none.

        Torch's SyncBatchNorm refuses tensors on the CPU, and on a GPU the host waits in every forward pass of it
        (pytorch/pytorch#78549).
        """
        axes = [0, *range(2, x.ndim)]
        wide = x.to(self.weight.dtype)
        _, world = rank_and_world_size()
        count = x.numel() // self.num_features * world
        mean = _SumOverRanks.apply(wide.sum(axes)) / count
        shape = (1, -1, *[1] * (x.ndim - 2))
        centred = wide - mean.view(shape)
        var = _SumOverRanks.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self._follow(mean, var * count / (count - 1))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        return (y * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, var: torch.Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        torch._foreach_lerp_([self.running_mean, self.running_var], [mean, var], self.momentum)


class VirtualDevices:
    """The lay-out of one step's rows over virtual devices and processes.

    Args:
        batch_size: N, global.
        bn_groups: G; a multiple of the processes, or 1 (SyncBN).

    Raises:
        UsageError: the numbers do not divide, or leave a device with a single row.
    """

    def __init__(self, batch_size: int, bn_groups: int) -> None:
        self.rank, self.world = rank_and_world_size()
        self.synchronised = bn_groups == 1 and self.world > 1
        if bn_groups % self.world and not self.synchronised:
            raise UsageError(
                f"bn_groups is {bn_groups}, but it must be a multiple of the {self.world} processes (where machines "
                "come and go, of each number of them), or 1 for SyncBN."
            )
        if batch_size % bn_groups or batch_size // bn_groups < 2:
            raise UsageError(
                f"bn_groups is {bn_groups}, but it must divide the batch_size {batch_size} into parts of 2 or more."
            )
        self.devices = max(bn_groups, self.world)
        self.rows = batch_size // self.devices
        self.here = self.devices // self.world  # devices in this process

    def normalise(self, network: nn.Module) -> None:
        """Replace every BatchNorm inside `network` by a `VirtualBatchNorm`, in place; parameters and names stay.

        Where a process is one device, torch's own does.
        """
        if self.here == 1 and not self.synchronised:
            return
        for name, child in network.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(network, name, VirtualBatchNorm(child, self.rows, self.synchronised))
            else:
                self.normalise(child)

    def together(self, network: nn.Module, crops: Sequence[torch.Tensor], *arguments: Any) -> tuple[torch.Tensor, ...]:
        """Pass several crops of the same rows through a network in one batch; a device's statistics are over them all.

        Args:
            network: `normalise`d; from (N, …) to (N, …).
            crops: each (n × rows, …), dealt, all of one shape.
            *arguments: for the network besides.

        Returns:
            What it makes of each of the crops.
        """
        many = len(crops)
        if many == 1:
            return (network(crops[0], *arguments),)
        by_device = zip(*(crop.split(self.rows) for crop in crops))
        joined = torch.cat([part for parts in by_device for part in parts])  # keeps channels last; stack would not
        norms = [module for module in network.modules() if isinstance(module, VirtualBatchNorm)]
        for norm in norms:
            norm.rows = many * self.rows
        try:
            made = network(joined, *arguments)
        finally:
            for norm in norms:
                norm.rows = self.rows
        return tuple(each.flatten(0, 1) for each in made.unflatten(0, (-1, many, self.rows)).unbind(1))

    def deal(self, local: torch.Tensor) -> torch.Tensor:
        """Reorder this rank's rows from the loader's order, so that rows of one device lie side by side."""
        if self.here == 1:
            return local
        order = torch.arange(len(local), device=local.device).view(self.rows, self.here).T.flatten()
        return local[order]

    def order(self, rows: int) -> NDArray[np.int64]:
        """Return which of the loader's rows stands at each place once they are dealt, on the host."""
        return np.arange(rows).reshape(-1, self.here).T.ravel()

    def gather(self, dealt: torch.Tensor) -> torch.Tensor:
        """Return the rows of all ranks in global row order; `dealt` as `deal` leaves them, without gradient."""
        if self.devices == 1:
            return dealt
        whole = gather_ranks(dealt.view(self.here, self.rows, *dealt.shape[1:]))
        return whole.movedim((2, 1, 0), (0, 1, 2)).flatten(0, 2)

    def mine(self, whole: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of a global batch, dealt: the inverse of `gather`."""
        if self.devices == 1:
            return whole
        by_device = whole.view(self.rows, self.devices, *whole.shape[1:])[:, self.rank :: self.world]
        return by_device.transpose(0, 1).flatten(0, 1)

    @torch.no_grad()
    def encode_shuffled(
        self, encode: Callable[[torch.Tensor], torch.Tensor], dealt: torch.Tensor, seed: int, step: int
    ) -> torch.Tensor:
        """Encode a global batch in shuffled company.

        Args:
            encode: (n × rows, 3, S, S) to (n × rows, dim), with BatchNorm over the rows of a device.
            dealt: this rank's views as `deal` leaves them.
            seed: the run's seed.
            step: the training step.

        Returns:
            (N, dim): the embeddings of the global batch in global row order, the same on all ranks.
        """
        if self.devices == 1:
            return encode(dealt)
        order = permutation(len(dealt) * self.world, seed, step)
        mine = order.view(self.devices, self.rows)[self.rank :: self.world].flatten()
        # One copy for both, from page-locked memory: from any other the host would wait for all that was launched.
        mine, back = sent(torch.cat([mine, order.argsort()]), dealt.device).split([len(mine), len(order)])
        encoded = encode(self.gather(dealt)[mine].contiguous(memory_format=_layout(dealt)))
        parts = gather_ranks(encoded.view(self.here, self.rows, -1))  # (world, here, rows, dim)
        return parts.transpose(0, 1).flatten(0, 2)[back]


def _layout(views: torch.Tensor) -> torch.memory_format:
    return torch.channels_last if views.ndim == 4 else torch.contiguous_format


def permutation(n: int, seed: int, step: int) -> torch.Tensor:
    """Return a permutation of 0..n-1, a pure function of (seed, step)."""
    return torch.from_numpy(np.argsort(uniforms(seed, step, np.arange(n), 0, "batch_shuffle")[:, 0], kind="stable"))
