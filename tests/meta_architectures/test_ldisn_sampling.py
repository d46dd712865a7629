"""Sampling of LDIS-n: guidance, schedulers, seeds."""

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from ldis_lightning.instruction import Instruction
from ldis_lightning.meta_architectures import DualGuidance, LDISn

BATCH = tiny.batch()
ABAR = tiny.stable_diffusion_abar()

SCHEDULERS: list[Callable[..., Any]] = [
    lambda **options: DDPMScheduler(clip_sample=False, **options),
    lambda **options: DDIMScheduler(clip_sample=False, **options),
    lambda **options: DPMSolverMultistepScheduler(**options),
    lambda **options: EulerDiscreteScheduler(**options),
]
every_scheduler = pytest.mark.parametrize("build", SCHEDULERS, ids=["DDPM", "DDIM", "DPM-Solver++", "Euler"])


def sample(module: LDISn, batch: Any = BATCH, seed: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        instruction = module.eval().encode_references(batch)
        return module.sample_latent(batch["query_image"], instruction, batch["seed"] if seed is None else seed)


def first_noise(module: LDISn, batch: Any = BATCH) -> Tensor:
    """The noise that sampling starts from: what the U-Net is first given."""
    seen = []
    handle = module.unet.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    sample(module, batch)
    handle.remove()
    return seen[0][: len(batch["seed"]), :4]


def guided(module: LDISn, latent: Tensor, timestep: int) -> Tensor:
    """Eq. 10 with g_q = 1.5, g_tau = 7, from three calls of the U-Net."""
    with torch.no_grad():
        query = module.autoencoder.vae.encode(BATCH["query_image"]).latent_dist.mode()  # pyright: ignore
        told = module.encode_references(BATCH)
        blank = torch.zeros(3, 1, 3, tiny.PROMPT, tiny.PROMPT)
        null = module.instruction(blank, torch.ones(3, 1, tiny.PROMPT, tiny.PROMPT, dtype=torch.uint8))
        untold = null._replace(attention_mask=told.attention_mask)  # the released code keeps the sample's own mask

        def e(z: Tensor, instruction: Instruction) -> Tensor:
            return module.denoise(torch.cat([latent, z], 1), timestep, instruction)

        neither, query_only, both = e(torch.zeros_like(query), untold), e(query, untold), e(query, told)
    return neither + 1.5 * (query_only - neither) + 7.0 * (both - query_only)


def test_guidance_is_eq_10() -> None:
    e = [torch.full((1, 4, 1, 1), value) for value in (1.0, 10.0, 100.0)]
    assert DualGuidance()(*e).unique().tolist() == [1 + 1.5 * 9 + 7 * 90]
    assert torch.equal(DualGuidance(1, 1)(*e), e[2])
    assert torch.equal(DualGuidance(1, 0)(*e), e[1])
    assert torch.equal(DualGuidance(0, 0)(*e), e[0])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_ddim_sampling_by_hand(prediction_type: str) -> None:
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=prediction_type, **tiny.STABLE_DIFFUSION)  # pyright: ignore
    module = tiny.noisy_conv_in(tiny.ldisn(scheduler=scheduler, steps=4))
    latent = first_noise(module)
    for timestep in (750, 500, 250, 0):
        signal, sigma = ABAR[timestep].sqrt().float(), (1 - ABAR[timestep]).sqrt().float()
        output = guided(module, latent, timestep)
        if prediction_type == "epsilon":
            noise, clean = output, (latent - sigma * output) / signal
        elif prediction_type == "sample":
            noise, clean = (latent - signal * output) / sigma, output
        else:
            noise, clean = sigma * latent + signal * output, signal * latent - sigma * output
        before = ABAR[timestep - 250].float() if timestep else torch.tensor(1.0)
        latent = before.sqrt() * clean + (1 - before).sqrt() * noise
    torch.testing.assert_close(sample(module), latent, rtol=1e-3, atol=1e-3 * float(latent.abs().max()))


def test_one_step_of_a_model_that_predicts_the_sample_is_its_prediction() -> None:
    options: Any = {"prediction_type": "sample", **tiny.STABLE_DIFFUSION}
    module = tiny.ldisn(scheduler=DDIMScheduler(clip_sample=False, **options), steps=1)
    torch.testing.assert_close(sample(module), guided(module, first_noise(module), 0), rtol=1e-4, atol=1e-5)


def test_the_three_conditions_share_one_call() -> None:
    module = tiny.ldisn(steps=2)
    sizes = []
    module.unet.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    sample(module)
    assert sizes == [(9, 8, 8, 8)] * 2


@pytest.mark.parametrize("keeps_mask", [True, False])
def test_the_null_instruction_in_guidance(keeps_mask: bool) -> None:
    module = tiny.ldisn(steps=1, null_keeps_mask=keeps_mask)
    told = []
    module.unet.register_forward_pre_hook(lambda _, args, kwargs: told.append(kwargs), with_kwargs=True)
    sample(module)
    own = module.encode_references(BATCH)
    blank = torch.zeros(1, 1, 3, tiny.PROMPT, tiny.PROMPT)
    null = module.instruction(blank, torch.ones(1, 1, tiny.PROMPT, tiny.PROMPT, dtype=torch.uint8)).tokens[0]  # (16, 8)
    tokens, attended = told[0]["encoder_hidden_states"], told[0]["encoder_attention_mask"]
    for row in range(3):
        mask = own.attended[row]
        torch.testing.assert_close(tokens[6 + row, attended[6 + row]], own.tokens[row, mask])
        for untold in (row, 3 + row):
            torch.testing.assert_close(tokens[untold, attended[untold]], null[mask] if keeps_mask else null)


def test_guidance_of_one_and_one_is_the_plain_conditional() -> None:
    module = tiny.noisy_conv_in(tiny.ldisn(guidance=DualGuidance(1, 1), steps=2))
    sizes = []
    module.unet.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    plain = sample(module)
    assert sizes == [3, 3]
    module.guidance = DualGuidance(1, 1 + 1e-9)  # computes all three
    torch.testing.assert_close(plain, sample(module), rtol=1e-4, atol=1e-5)
    assert sizes[-1] == 9


@every_scheduler
def test_sampling_follows_the_seed_and_not_the_batch(build: Callable[..., Any]) -> None:
    module = tiny.noisy_conv_in(tiny.ldisn(scheduler=build(**tiny.STABLE_DIFFUSION)))
    together = sample(module)
    assert together.shape == (3, 4, 8, 8) and bool(together.isfinite().all())
    assert torch.equal(together, sample(module))
    scale = float(together.abs().max())
    alone = torch.cat([sample(module, tiny.rows(BATCH, slice(i, i + 1))) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * scale)
    other = sample(module, seed=BATCH["seed"] + 1)
    assert (together - other).abs().amax((1, 2, 3)).min() > 1e-2 * scale


@every_scheduler
def test_sampling_starts_from_standard_normal_noise_of_the_episode(build: Callable[..., Any]) -> None:
    """Whatever scale a scheduler works in, what the U-Net is first given has unit variance."""
    module = tiny.ldisn(scheduler=build(**tiny.STABLE_DIFFUSION))
    batch = tiny.batch(16)
    noise = first_noise(module, batch)
    n = noise.numel()
    assert abs(float(noise.mean())) < 5 / n**0.5 and abs(float(noise.var()) - 1) < 5 * (2 / n) ** 0.5
    torch.testing.assert_close(first_noise(module, tiny.rows(batch, slice(5, 6))), noise[5:6])


@every_scheduler
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_denoiser_finds_the_pseudo_mask(build: Callable[..., Any], prediction_type: str) -> None:
    """With the prediction that belongs to E(M) at every step, sampling must end at E(M), whatever the scheduler."""
    module = tiny.ldisn(
        scheduler=build(prediction_type=prediction_type, timestep_spacing="trailing", **tiny.STABLE_DIFFUSION),
        steps=10,
        guidance=DualGuidance(1, 1),
    )
    clean = tiny.pictures(3, 4, 8, 8, seed=6)

    def perfect(latent: Tensor, timestep: Tensor, instruction: Instruction) -> Tensor:
        abar = ABAR[int(timestep)]
        signal, sigma = abar.sqrt().float(), (1 - abar).sqrt().float()
        noise = (latent[:, :4] - signal * clean) / sigma
        return {"epsilon": noise, "v_prediction": signal * noise - sigma * clean, "sample": clean}[prediction_type]

    module.denoise = perfect  # pyright: ignore[reportAttributeAccessIssue]
    assert (sample(module) - clean).abs().max() < 0.05


def test_logits_are_the_decoded_sample_without_the_image() -> None:
    module = tiny.ldisn(steps=1)
    latent = sample(module)
    with torch.no_grad():
        instruction = module.encode_references(BATCH)
        logits = module.predict_logits(BATCH["query_image"], instruction, BATCH["seed"])
        picture = module.autoencoder.vae.decode(latent / 0.4).sample  # pyright: ignore
    clean = picture - 0.4 * BATCH["query_image"]
    torch.testing.assert_close(logits, clean[:, 1] - clean[:, 0])
