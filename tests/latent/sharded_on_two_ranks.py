"""A rank of `test_sharding.py`, given a file to meet in and its number. Fails if two ranks differ from one."""

import sys
from copy import deepcopy
from datetime import timedelta

import tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from ldis_lightning.latent.sharding import gather, scatter, shard


def loss(unet: torch.nn.Module, seed: int) -> torch.Tensor:
    latent, tokens = tiny.pictures(2, 4, 8, 8, seed=seed), tiny.pictures(2, 6, 8, seed=seed + 10)
    return unet(latent, 3, encoder_hidden_states=tokens, return_dict=False)[0].square().mean()


def main() -> None:
    meeting, rank = sys.argv[1], int(sys.argv[2])
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=wait)
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    plain = tiny.unet()
    sharded = shard(deepcopy(plain), mesh)
    gather(sharded)
    with torch.no_grad():
        for seed in range(1 + 2 * rank):  # one call on the first rank, three on the second
            torch.testing.assert_close(loss(sharded, seed), loss(plain, seed))
    scatter(sharded)
    assert sharded.conv_in.weight.to_local().numel() < plain.conv_in.weight.numel()  # pyright: ignore
    loss(sharded, rank).backward()
    torch.stack([loss(plain, 0), loss(plain, 1)]).mean().backward()
    for name, parameter in sharded.named_parameters():
        torch.testing.assert_close(parameter.grad.full_tensor(), plain.get_parameter(name).grad)  # pyright: ignore
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
