"""Sharding of networks, on a mesh of one rank in this process and on two ranks in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import tiny
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ldis_lightning.checkpoints import from_files
from ldis_lightning.latent.fine_tuning import LoRA
from ldis_lightning.latent.sharding import gather, scatter, shard, unsharded

TESTS = Path(__file__).resolve().parent.parent


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
    dist.destroy_process_group()


def call(unet: torch.nn.Module, rows: int = 2) -> torch.Tensor:
    latent, tokens = tiny.pictures(rows, 4, 8, 8), tiny.pictures(rows, 6, 8, seed=1)
    return unet(latent, 3, encoder_hidden_states=tokens, return_dict=False)[0]


def test_blocks_are_groups_and_the_network_holds_the_rest(mesh: DeviceMesh) -> None:
    plain = tiny.unet()
    sharded = shard(deepcopy(plain), mesh)
    groups = {name for name, module in sharded.named_modules() if isinstance(module, FSDPModule)}
    assert groups == {"", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"}
    assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
    assert sharded.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(call(sharded), call(plain))


def test_the_layers_of_a_prompt_encoder_are_groups(mesh: DeviceMesh) -> None:
    encoder = shard(tiny.prompt_encoder(depth=2), mesh)
    assert {name for name, module in encoder.named_modules() if isinstance(module, FSDPModule)} == {
        "",
        "vit.blocks.0",
        "vit.blocks.1",
    }


def test_what_is_frozen_stays_whole(mesh: DeviceMesh) -> None:
    encoder = shard(tiny.prompt_encoder(trainable=False), mesh)
    assert not any(isinstance(parameter, DTensor) for parameter in encoder.parameters())


def test_a_second_time_changes_nothing(mesh: DeviceMesh) -> None:
    unet = shard(tiny.unet(), mesh)
    before = list(unet.parameters())
    assert all(a is b for a, b in zip(before, shard(unet, mesh).parameters(), strict=True))


def test_channels_last_stays_in_the_activations(mesh: DeviceMesh) -> None:
    plain = tiny.unet()
    expected = call(plain)
    unet = shard(plain.to(memory_format=torch.channels_last), mesh)  # pyright: ignore[reportCallIssue]
    seen: list[torch.Tensor] = []
    unet.down_blocks[0].resnets[0].conv1.register_forward_hook(lambda *args: seen.append(args[-1]))  # pyright: ignore
    torch.testing.assert_close(call(unet), expected)
    assert seen[0].is_contiguous(memory_format=torch.channels_last) and not seen[0].is_contiguous()


def test_adapters_beside_frozen_weights_get_the_same_gradients(mesh: DeviceMesh) -> None:
    plain = from_files(tiny.unet())
    LoRA(rank=2).apply(plain)
    sharded = shard(deepcopy(plain), mesh)
    for unet in (plain, sharded):
        call(unet).square().mean().backward()
    found = {name: parameter.grad for name, parameter in sharded.named_parameters() if parameter.requires_grad}
    assert found and len(found) < len(list(plain.parameters()))
    for name, gradient in found.items():
        assert isinstance(gradient, DTensor)
        torch.testing.assert_close(gradient.full_tensor(), plain.get_parameter(name).grad)


def test_trained_parameters_that_are_not_sharded_are_named(mesh: DeviceMesh) -> None:
    model = tiny.ldis1()
    shard(model.unet, mesh)
    left = unsharded(model)
    assert left and all(name.startswith("instruction.encoder.") for name in left)
    shard(model.instruction.encoder, mesh)
    assert unsharded(model) == []


def test_gathered_networks_are_whole_until_they_are_scattered(mesh: DeviceMesh) -> None:
    model = tiny.ldis1()
    expected = call(model.unet)
    shard(model.unet, mesh)
    gather(model)
    with torch.no_grad():
        torch.testing.assert_close(call(model.unet), expected)
    assert not any(isinstance(parameter, DTensor) for parameter in model.unet.parameters())
    scatter(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.unet.parameters())
    call(model.unet).square().mean().backward()
    assert isinstance(model.unet.conv_in.weight, DTensor)
    assert not any(isinstance(p, torch.nn.Parameter) and not isinstance(p, DTensor) for p in model.unet.parameters())


@pytest.mark.timeout(200)
def test_two_ranks_average_gradients_and_may_be_called_unevenly_when_gathered(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    command = [sys.executable, str(Path(__file__).with_name("sharded_on_two_ranks.py")), str(tmp_path / "meeting")]
    ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    try:
        assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    finally:
        for rank in ranks:
            rank.kill()
