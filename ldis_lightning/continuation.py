"""What a run needs, beside weights, optimiser and the place in the data, to go on exactly where it was saved."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def seed_of_step(seed: int, number: int, rank: int) -> int:
    """Seed of torch's own random numbers, such as dropout's, in one training step of one rank: a pure function of its
    arguments, so that no generator's state has to be saved.

    Args:
        seed: of the run, >= 0.
        number: of the batch, counted over the whole run.
        rank: ranks drop different features.
    """
    return int(np.random.SeedSequence((seed, number, rank)).generate_state(1, np.uint64)[0])


def accumulated_gradients(module: nn.Module, ranks: int) -> dict[str, Tensor]:
    """The gradients that wait for the next step of the optimiser, by name, on the host; none between two windows of
    accumulation. Every rank must call it.

    Args:
        module: whose gradients are freed by every step of the optimiser.
        ranks: their number. Until the optimiser's step each has gradients of its own; their mean is what it would take,
            and what any number of ranks can go on with.
    """
    found = {name: one.grad.detach() for name, one in module.named_parameters() if one.grad is not None}
    return {name: _mean(gradient, ranks).cpu() for name, gradient in sorted(found.items())}


def restore_gradients(module: nn.Module, gradients: Mapping[str, Tensor]) -> None:
    """Give the parameters the gradients of `accumulated_gradients`."""
    parameters = dict(module.named_parameters())
    for name, gradient in gradients.items():
        parameter = parameters[name]
        value = gradient.to(parameter.device, parameter.dtype)
        if isinstance(parameter.data, DTensor):
            value = distribute_tensor(value, parameter.data.device_mesh, parameter.data.placements)
        parameter.grad = value


def _mean(gradient: Tensor, ranks: int) -> Tensor:
    if isinstance(gradient, DTensor):  # a sharded one is the mean already
        return gradient.full_tensor()
    if ranks > 1:
        gradient = gradient.clone()
        torch.distributed.all_reduce(gradient)
        gradient /= ranks
    return gradient
