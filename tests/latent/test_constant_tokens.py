"""Work that depends on the tokens alone, done once for many calls."""

from collections import Counter

import pytest
import tiny
import torch

from ldis_lightning.latent.constant_tokens import constant_tokens


def test_the_same_output_from_fewer_computations() -> None:
    unet, tokens = tiny.unet(), tiny.pictures(2, 5, 8, seed=1)
    calls: Counter[str] = Counter()
    weights = {parameter.data_ptr(): name for name, parameter in unet.named_parameters()}
    linear = torch.nn.functional.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        calls[weights[weight.data_ptr()]] += 1
        return linear(x, weight, bias)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "linear", counted)
        plain = [unet(tiny.pictures(2, 4, 8, 8, seed=step), step, tokens).sample for step in range(3)]
        often = Counter(calls)
        calls.clear()
        with constant_tokens(unet):
            once = [unet(tiny.pictures(2, 4, 8, 8, seed=step), step, tokens).sample for step in range(3)]
    for expected, found in zip(plain, once, strict=True):
        assert torch.equal(expected, found)
    remembered = {name for name, count in calls.items() if count == 1}
    assert {name.rsplit(".", 1)[0].rsplit(".", 2)[-1] for name in remembered} == {"to_k", "to_v", "encoder_hid_proj"}
    assert all(often[name] == 3 for name in remembered)
    assert all(calls[name] == often[name] == 3 for name in calls.keys() - remembered)
    assert all(".attn2." in name or name.startswith("encoder_hid_proj") for name in remembered)


def test_nothing_stays_behind_even_after_an_error() -> None:
    unet, latent = tiny.unet(), tiny.pictures(2, 4, 8, 8)
    before = [set(vars(module)) for module in unet.modules()]
    with torch.no_grad():
        first, second = tiny.pictures(2, 5, 8, seed=1), tiny.pictures(2, 5, 8, seed=2)
        expected = unet(latent, 1, second).sample
        with pytest.raises(RuntimeError), constant_tokens(unet):
            unet(latent, 1, first)
            unet(latent[:, :2], 1, first)
        assert torch.equal(unet(latent, 1, second).sample, expected)
    assert [set(vars(module)) for module in unet.modules()] == before
