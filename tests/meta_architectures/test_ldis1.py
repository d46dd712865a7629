from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from ldis_lightning.alignment import Augmented
from ldis_lightning.errors import UserError
from ldis_lightning.instruction.tokens import repeated
from ldis_lightning.losses import Alignment, AlignmentLoss, DiceCrossEntropy, LatentLoss, PixelLoss
from ldis_lightning.meta_architectures import LDIS1

BATCH = tiny.batch()
EXACT = tiny.in_double(BATCH)


def watch(module: LDIS1) -> list[dict[str, Any]]:
    """Fills with input, timestep and output of every call of the U-Net."""
    calls: list[dict[str, Any]] = []
    module.unet.register_forward_hook(
        lambda _, args, kwargs, output: calls.append(
            {"latent": args[0], "timestep": args[1], "output": output[0]} | kwargs
        ),
        with_kwargs=True,
    )
    return calls


def predict(module: LDIS1, batch: Any = BATCH) -> Tensor:
    with torch.no_grad():
        return module.eval().predict_logits(batch["query_image"], module.encode_references(batch), batch["seed"])


def query_latent(module: LDIS1) -> Tensor:
    return module.autoencoder.vae.encode(BATCH["query_image"]).latent_dist.mode() * 0.4  # pyright: ignore


def test_without_noise_the_input_is_the_querys_latent_at_any_timestep() -> None:
    for timestep in (0, 500):
        module = tiny.ldis1(timestep=timestep)
        calls = watch(module)
        predict(module)
        assert len(calls) == 1  # one step
        assert int(calls[0]["timestep"]) == timestep
        torch.testing.assert_close(calls[0]["latent"], query_latent(module))


def test_the_noised_input_is_z_t() -> None:
    """z_t = sqrt(abar_t) z_q + sqrt(1 - abar_t) eps, so eps can be had from z_t, and must be the same for every t."""
    abar = tiny.stable_diffusion_abar()
    noises = []
    for timestep in (0, 300, 999):
        module = tiny.ldis1(timestep=timestep, add_noise=True)
        calls = watch(module)
        predict(module)
        signal, sigma = float(abar[timestep].sqrt()), float((1 - abar[timestep]).sqrt())
        noises.append((calls[0]["latent"] - signal * query_latent(module)) / sigma)
    for noise in noises[1:]:
        torch.testing.assert_close(noise, noises[0], rtol=1e-3, atol=1e-4)
    n = noises[0].numel()
    assert abs(float(noises[0].mean())) < 5 / n**0.5 and abs(float(noises[0].std()) - 1) < 5 / (2 * n) ** 0.5
    assert not torch.allclose(noises[0][0], noises[0][1], atol=0.1)  # each episode its own


def test_the_denoiser_is_told_the_instruction() -> None:
    module = tiny.ldis1()
    calls = watch(module)
    predict(module)
    own = module.encode_references(BATCH)
    for row in range(3):
        attended = calls[0]["encoder_attention_mask"][row]
        torch.testing.assert_close(calls[0]["encoder_hidden_states"][row, attended], own.tokens[row, own.attended[row]])
    assert calls[0]["encoder_hidden_states"].shape[1] == own.attended.sum(1).max() < 16


def test_logits_are_the_decoded_prediction_without_the_image() -> None:
    module = tiny.ldis1(pseudo_mask=Augmented(0.3))
    calls = watch(module)
    logits = predict(module)
    assert logits.shape == (3, tiny.PICTURE, tiny.PICTURE)
    with torch.no_grad():
        picture = module.autoencoder.vae.decode(calls[0]["output"] / 0.4).sample  # pyright: ignore
    clean = picture - 0.3 * BATCH["query_image"]
    torch.testing.assert_close(logits, clean[:, 1] - clean[:, 0])


def test_training_loss_is_eq_6_of_the_pseudo_masks_latent() -> None:
    module = tiny.ldis1(pseudo_mask=Augmented(0.3))
    calls = watch(module)
    losses = module.training_loss(BATCH)
    foreground = (BATCH["query_mask"] == 1).float()
    vanilla = torch.stack([1 - 2 * foreground, 2 * foreground - 1, 0 * foreground], 1)
    picture = 0.7 * vanilla + 0.3 * BATCH["query_image"]
    with torch.no_grad():
        target = module.autoencoder.vae.encode(picture).latent_dist.mode() * 0.4  # pyright: ignore
    expected = (target - calls[0]["output"]).square().mean()
    assert losses.keys() == {"loss", "LatentLoss"}
    assert losses["loss"].item() == losses["LatentLoss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_training_loss_is_eq_5_in_pixels() -> None:
    module = tiny.ldis1(losses=[PixelLoss()])
    calls = watch(module)
    loss = module.training_loss(BATCH)["loss"]
    mask = BATCH["query_mask"]
    vanilla = torch.where((mask == 1)[:, None], *(torch.tensor(c).view(3, 1, 1) for c in ([-1.0, 1, 0], [1.0, -1, 0])))
    with torch.no_grad():
        picture = module.autoencoder.vae.decode(calls[0]["output"] / 0.4).sample  # pyright: ignore
    squared = (vanilla - picture).square().mean(1)
    expected = sum(squared[i][mask[i] != 255].mean() for i in range(3)) / 3
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)


class Constant(AlignmentLoss):
    """A loss of a given value."""

    def __init__(self, value: float, weight: float) -> None:
        super().__init__(weight)
        self.value = value

    def forward(self, alignment: Alignment) -> Tensor:
        return alignment.latent.sum() * 0 + self.value


def test_the_loss_is_the_weighted_sum() -> None:
    terms = [LatentLoss(2.0), PixelLoss(0.5), DiceCrossEntropy(0.25)]
    losses = tiny.ldis1(losses=terms).training_loss(BATCH)
    assert losses.keys() == {"loss", "LatentLoss", "PixelLoss", "DiceCrossEntropy"}
    expected = sum(term.weight * float(losses[type(term).__name__]) for term in terms)
    assert float(losses["loss"]) == pytest.approx(expected)


def test_two_losses_of_a_class_both_count() -> None:
    losses = tiny.ldis1(losses=[Constant(1.0, weight=10), Constant(2.0, weight=100)]).training_loss(BATCH)
    assert float(losses["loss"]) == 10 * 1 + 100 * 2


def test_padding_has_no_part_in_the_loss() -> None:
    module = tiny.ldis1(losses=[LatentLoss(), DiceCrossEntropy()])
    padded: Any = BATCH | {"valid": torch.tensor([True, True, False])}
    alone = module.training_loss(tiny.rows(BATCH, slice(0, 2)))["loss"]
    assert float(module.training_loss(padded)["loss"]) == pytest.approx(float(alone), rel=1e-5)


def test_training_reaches_the_denoiser_and_a_trainable_encoder_only() -> None:
    module = tiny.ldis1(losses=[LatentLoss(), PixelLoss()]).train()
    module.training_loss(BATCH)["loss"].backward()
    with_gradient = {name.split(".")[0] for name, weight in module.named_parameters() if weight.grad is not None}
    assert with_gradient == {"unet", "instruction"}
    frozen = tiny.ldis1(instruction=tiny.extractor(trainable=False)).train()
    frozen.training_loss(BATCH)["loss"].backward()
    with_gradient = {name.split(".")[0] for name, weight in frozen.named_parameters() if weight.grad is not None}
    assert with_gradient == {"unet"}


def test_latents_are_sampled_in_training_and_not_in_prediction() -> None:
    module = tiny.ldis1(autoencoder=tiny.autoencoder(sample=True))
    calls = watch(module)
    module.train().training_loss(BATCH)
    predict(module)
    trained, predicted = (call["latent"] for call in calls)
    torch.testing.assert_close(predicted, query_latent(module))
    assert not torch.allclose(trained, predicted, atol=1e-3)


@pytest.mark.parametrize("add_noise", [False, True])
def test_a_prediction_does_not_depend_on_its_batch(add_noise: bool) -> None:
    module = tiny.ldis1(add_noise=add_noise, timestep=200).double()
    together = predict(module, EXACT)
    alone = torch.cat([predict(module, tiny.rows(EXACT, slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_references_encoded_once_serve_many_queries() -> None:
    module = tiny.ldis1().double()
    one = tiny.in_double(tiny.batch(1, references=3))
    with torch.no_grad():
        instruction = module.encode_references(one)
        thrice = repeated(instruction, 3)
        reused = module.predict_logits(EXACT["query_image"], thrice, EXACT["seed"])
        for i in range(3):
            query = EXACT["query_image"][i : i + 1]
            fresh = module.predict_logits(query, module.encode_references(one), EXACT["seed"][i : i + 1])
            torch.testing.assert_close(reused[i : i + 1], fresh, rtol=0, atol=1e-10)


def test_the_reference_matters() -> None:
    module = tiny.ldis1()
    other: Any = BATCH | {"reference_image": -BATCH["reference_image"]}
    assert not torch.allclose(predict(module), predict(module, other), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "name"), [({"timestep": 1000}, "timestep"), ({"timestep": -1}, "timestep"), ({"losses": []}, "losses")]
)
def test_mistakes_are_named(change: dict[str, Any], name: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.{name}"):
        tiny.ldis1(**change)
