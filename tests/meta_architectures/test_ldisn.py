"""Training of LDIS-n: its input, condition dropout, the null instruction, targets."""

from typing import Any

import pytest
import tiny
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ldis_lightning.errors import UserError
from ldis_lightning.instruction import NoPostMasking
from ldis_lightning.instruction.tokens import repeated
from ldis_lightning.meta_architectures import ConditionDropout, LDISn
from ldis_lightning.meta_architectures.ldisn import Dropped

BATCH = tiny.batch()


def scheduler(prediction_type: str) -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, prediction_type=prediction_type, **tiny.STABLE_DIFFUSION)  # pyright: ignore


def watch(module: LDISn) -> list[dict[str, Any]]:
    """Fills with input, timestep and output of every call of the U-Net."""
    calls: list[dict[str, Any]] = []
    module.unet.register_forward_hook(
        lambda _, args, kwargs, output: calls.append(
            {"latent": args[0], "timestep": args[1], "output": output[0]} | kwargs
        ),
        with_kwargs=True,
    )
    return calls


def mode(module: LDISn, picture: Tensor) -> Tensor:
    """The mode of the encoder's distribution, not scaled."""
    with torch.no_grad():
        return module.autoencoder.vae.encode(picture).latent_dist.mode()  # pyright: ignore


def target_latent(module: LDISn, batch: Any) -> Tensor:
    """E(M) of eq. 3 with gamma 0.4."""
    foreground = (batch["query_mask"] == 1).float()
    vanilla = torch.stack([1 - 2 * foreground, 2 * foreground - 1, 0 * foreground], 1)
    return 0.4 * mode(module, 0.6 * vanilla + 0.4 * batch["query_image"])


def test_conv_in_is_widened_and_starts_blind_to_the_query() -> None:
    module = tiny.ldisn()
    assert torch.equal(module.unet.conv_in.weight[:, :4], tiny.ldis1().unet.conv_in.weight)  # the same seed built both
    assert module.unet.conv_in.weight.shape == (8, 8, 3, 3)
    assert not module.unet.conv_in.weight[:, 4:].any()
    instruction = module.encode_references(BATCH)
    noisy = tiny.pictures(3, 4, 8, 8)
    with torch.no_grad():
        outputs = [
            module.denoise(torch.cat([noisy, query], 1), 5, instruction)
            for query in (torch.zeros(3, 4, 8, 8), 100 * tiny.pictures(3, 4, 8, 8, seed=1))
        ]
    torch.testing.assert_close(outputs[0], outputs[1])


def test_condition_dropout_intervals() -> None:
    u = torch.tensor([0.0, 0.049, 0.051, 0.099, 0.101, 0.149, 0.151, 0.999])
    dropped = ConditionDropout()(u)  # p = 0.05: [0, p) instruction, [p, 2p) both, [2p, 3p) query
    assert dropped.instruction.tolist() == [True, True, True, True, False, False, False, False]
    assert dropped.query.tolist() == [False, False, True, True, True, True, False, False]


def test_condition_dropout_intervals_are_half_open() -> None:
    p = 0.25  # exact in binary, and so are its multiples
    u = torch.tensor([p, 2 * p, 3 * p])
    dropped = ConditionDropout(p)(torch.cat([u, torch.nextafter(u, torch.zeros(3))]))
    assert dropped.instruction.tolist() == [True, False, False, True, True, False]
    assert dropped.query.tolist() == [True, True, False, False, True, True]
    assert not any(part.any() for part in ConditionDropout(0.0)(torch.zeros(1)))


def test_condition_dropout_shares() -> None:
    """Each kind of dropping happens to p of the episodes, in training itself."""
    seen = []

    def dropout(u: Tensor) -> Dropped:
        seen.append(u)
        return ConditionDropout(0.2)(u)

    module = tiny.ldisn(dropout=dropout)
    instruction = module.encode_references(tiny.rows(BATCH, slice(0, 1)))
    many = repeated(instruction, 2000)
    _, latent = module.drop_conditions(many, torch.ones(2000, 4, 1, 1), torch.arange(2000))
    assert seen[0].shape == (2000,)
    assert float((latent == 0).all(1).float().mean()) == pytest.approx(0.4, abs=0.055)


@pytest.mark.parametrize("p", [-0.01, 0.34])
def test_dropout_out_of_range(p: float) -> None:
    with pytest.raises(UserError, match=r"^model\.dropout\.p"):
        ConditionDropout(p)


FATES = Dropped(instruction=torch.tensor([True, True, False]), query=torch.tensor([False, True, True]))


@pytest.mark.parametrize("keeps_mask", [True, False])
def test_dropped_conditions_are_replaced_in_training(keeps_mask: bool) -> None:
    module = tiny.ldisn(dropout=lambda u: FATES, null_keeps_mask=keeps_mask)
    batch = tiny.batch(references=2)
    calls = watch(module)
    module.training_loss(batch)
    blank = torch.zeros(1, 1, 3, tiny.PROMPT, tiny.PROMPT)
    whole = torch.ones(1, 1, tiny.PROMPT, tiny.PROMPT, dtype=torch.uint8)
    null = module.instruction(blank, whole)
    own = module.encode_references(batch)
    told, attended = calls[0]["encoder_hidden_states"], calls[0]["encoder_attention_mask"]
    for row in (0, 1):  # each reference's tokens are those of the blank one, and one blank one says it all
        kept = null.tokens[0].repeat(2, 1)[own.attended[row]] if keeps_mask else null.tokens[0]
        torch.testing.assert_close(told[row, attended[row]], kept)
    torch.testing.assert_close(told[2, attended[2]], own.tokens[2, own.attended[2]])
    assert not own.attended.all()
    query = calls[0]["latent"][:, 4:]
    torch.testing.assert_close(query[0], mode(module, batch["query_image"])[0])
    assert not query[1:].any()


@pytest.mark.parametrize("scaled", [True, False])
def test_the_query_latent_is_the_mode_scaled_or_not(scaled: bool) -> None:
    keep_all = ConditionDropout(0.0)
    module = tiny.ldisn(scale_query=scaled, dropout=keep_all, autoencoder=tiny.autoencoder(sample=True)).train()
    calls = watch(module)
    module.training_loss(BATCH)
    expected = mode(module, BATCH["query_image"]) * (0.4 if scaled else 1)
    torch.testing.assert_close(calls[0]["latent"][:, 4:], expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_training_loss_is_eq_9(prediction_type: str) -> None:
    module = tiny.ldisn(scheduler=scheduler(prediction_type), instruction=tiny.extractor(post_mask=NoPostMasking()))
    batch = tiny.batch(48)
    calls = watch(module)
    loss = module.training_loss(batch)["loss"]
    timestep, noisy = calls[0]["timestep"], calls[0]["latent"][:, :4]
    abar = tiny.stable_diffusion_abar()[timestep].float().view(-1, 1, 1, 1)
    clean = target_latent(module, batch)
    noise = (noisy - abar.sqrt() * clean) / (1 - abar).sqrt()
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 / n**0.5 and abs(float(noise.std()) - 1) < 5 / (2 * n) ** 0.5
    targets = {
        "epsilon": noise,
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean,
        "sample": clean,
    }
    expected = (calls[0]["output"] - targets[prediction_type]).square().mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-3)


def test_timesteps_are_uniform_and_belong_to_the_episode() -> None:
    module = tiny.ldisn()
    calls = watch(module)
    module.training_loss(tiny.batch(96))
    module.training_loss(tiny.rows(tiny.batch(96), slice(40, 42)))
    timestep = calls[0]["timestep"]
    assert timestep.dtype == torch.int64
    assert 0 <= int(timestep.min()) and int(timestep.max()) <= 999
    quarters = torch.bincount(timestep // 250, minlength=4)
    assert quarters.min() > 10
    assert torch.equal(calls[1]["timestep"], timestep[40:42])
    torch.testing.assert_close(calls[1]["latent"], calls[0]["latent"][40:42])


def test_padding_has_no_part_in_the_loss() -> None:
    module = tiny.ldisn()
    padded: Any = BATCH | {"valid": torch.tensor([True, True, False])}
    alone = module.training_loss(tiny.rows(BATCH, slice(0, 2)))["loss"]
    assert float(module.training_loss(padded)["loss"]) == pytest.approx(float(alone), rel=1e-5)
    nothing: Any = BATCH | {"valid": torch.zeros(3, dtype=torch.bool)}
    assert float(module.training_loss(nothing)["loss"]) == 0


def test_the_query_channels_learn() -> None:
    module = tiny.ldisn(dropout=ConditionDropout(0.0)).train()
    module.training_loss(BATCH)["loss"].backward()
    gradient = module.unet.conv_in.weight.grad
    assert gradient is not None and bool((gradient[:, 4:] != 0).any())
    assert all(weight.grad is None for weight in module.autoencoder.parameters())


def test_a_prediction_type_that_cannot_be_trained() -> None:
    with pytest.raises(UserError, match=r"^model\.scheduler\.prediction_type: 'flow_prediction'"):
        tiny.ldisn(scheduler=scheduler("flow_prediction"))


def test_a_scheduler_without_a_noise_schedule() -> None:
    with pytest.raises(UserError, match=r"^model\.scheduler: FlowMatchEulerDiscreteScheduler has no alphas_cumprod"):
        tiny.ldisn(scheduler=FlowMatchEulerDiscreteScheduler())
