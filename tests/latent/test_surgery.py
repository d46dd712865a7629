from typing import Any

import pytest
import tiny
import torch
from torch import nn

from ldis_lightning.latent import widen_input


def convolution(**changes: Any) -> nn.Conv2d:
    shape: dict[str, Any] = {"kernel_size": 3, "padding": 1}
    with tiny.seeded():
        return nn.Conv2d(3, 5, **(shape | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel_size": 4, "stride": 4, "padding": 0},
        {"bias": False},
        {"dilation": 2, "padding": 2, "padding_mode": "reflect"},
    ],
    ids=["plain", "patches", "no bias", "dilated"],
)
def test_new_channels_start_without_effect(changes: dict) -> None:
    conv = convolution(**changes)
    wide = widen_input(conv, 2)
    picture = tiny.pictures(2, 3, 16, 16)
    extra = 1000 * tiny.pictures(2, 2, 16, 16, seed=1)
    assert wide.in_channels == 5
    assert torch.equal(wide.weight[:, :3], conv.weight)
    assert not wide.weight[:, 3:].any()
    torch.testing.assert_close(wide(torch.cat([picture, extra], 1)), conv(picture))


def test_new_channels_learn() -> None:
    wide = widen_input(convolution(), 2)
    wide(tiny.pictures(2, 5, 16, 16)).square().sum().backward()
    assert wide.weight.grad is not None and bool((wide.weight.grad[:, 3:] != 0).any())


def test_new_channels_may_start_at_random() -> None:
    conv = convolution()
    wide = widen_input(conv, 2, zero=False)
    assert torch.equal(wide.weight[:, :3], conv.weight)
    assert bool((wide.weight[:, 3:] != 0).all())


def test_the_original_is_left_alone_and_its_type_kept() -> None:
    conv = convolution().to(torch.float64)
    before = conv.weight.clone()
    wide = widen_input(conv, 1)
    assert wide.weight.dtype == wide.bias.dtype == torch.float64  # pyright: ignore[reportOptionalMemberAccess]
    with torch.no_grad():
        wide.weight.add_(1)
    assert torch.equal(conv.weight, before)
