"""The baseline: the method computed as the released script does, over the same networks and the same inputs.

Query and target are encoded in two calls. References are encoded anew for every query. All K * 256 tokens go through
cross-attention, which masks inside. Nothing is compiled, fused or held in another precision than the run's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldis_lightning.instruction import PromptEncoder
from ldis_lightning.instruction.pre_masks import Prompt
from ldis_lightning.meta_architectures import InContextSegmenter
from ldis_lightning.randomness import normal

ALPHA_MEAN, ALPHA_STD = 0.5, 0.26
"""Alpha-CLIP's normalisation of the mask (METHOD section 1)."""


@dataclass(frozen=True)
class Networks:
    """A diffusers U-Net and `AutoencoderKL`, and a prompt encoder (METHOD section 1)."""

    unet: Any
    vae: Any
    encoder: PromptEncoder

    @classmethod
    def of(cls, module: InContextSegmenter, frozen: torch.dtype = torch.float32) -> Networks:
        """Those of a module that has not been set up for execution, the frozen ones cast to `frozen`."""
        for network in (module.autoencoder, module.instruction.encoder):
            network.to(frozen, memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
        return cls(module.unet, module.autoencoder.vae, module.instruction.encoder)


def training_loss(networks: Networks, batch: Any) -> Tensor:
    """LDIS-1's loss in latent space (eq. 6), t = 0, no noise; latents of query and target are sampled. -> ()"""
    query, seed = batch["query_image"], batch["seed"]
    latent = encode(networks.vae, query, seed)  # (B, 4, h, w)
    target = encode(networks.vae, pseudo_mask(batch["query_mask"]), seed + 1)  # (B, 4, h, w)
    tokens, mask = instruction(networks.encoder, batch["reference_image"], batch["reference_mask"])
    return F.mse_loss(denoise(networks.unet, latent, 0, tokens, mask).float(), target.float())


@torch.no_grad()
def ldis1_logits(networks: Networks, batch: Any) -> Tensor:
    """LDIS-1's logits for every query of a context of one row, one after the other: (Q, H, W)."""
    logits = []
    for query in batch["query_image"].split(1):
        tokens, mask = instruction(networks.encoder, batch["reference_image"], batch["reference_mask"])
        latent = denoise(networks.unet, encode(networks.vae, query), 0, tokens, mask)
        logits.append(difference(decode(networks.vae, latent)))
    return torch.cat(logits)


@torch.no_grad()
def ldisn_logits(
    networks: Networks,
    null: Tensor,
    scheduler: Any,
    steps: int,
    gamma: float,
    batch: Any,
    g_query: float = 1.5,
    g_tau: float = 7.0,
) -> Tensor:
    """LDIS-n's logits (eq. 10) for every query of a context of one row, one after the other: (Q, H, W).

    `null` is `null_tokens`, which the script computes once. The query's latent is not scaled, and the null instruction
    keeps the sample's own mask, as in the released code.
    """
    logits = []
    for query, seed in zip(batch["query_image"].split(1), batch["seed"].split(1), strict=True):
        tokens, mask = instruction(networks.encoder, batch["reference_image"], batch["reference_mask"])
        nothing = null.repeat(1, len(tokens[0]) // len(null[0]), 1)  # (1, K*g*g, D)
        tokens, mask = torch.cat([nothing, nothing, tokens]), mask.repeat(3, 1)  # e(0,0), e(z_q,0), e(z_q,tau)
        condition = encode(networks.vae, query) / networks.vae.config["scaling_factor"]
        condition = torch.cat([torch.zeros_like(condition), condition, condition])
        latent = normal(seed, "sampling", tuple(condition.shape[1:]))
        scheduler.set_timesteps(steps, device=query.device)
        for timestep in scheduler.timesteps:
            noisy = torch.cat([latent.repeat(3, 1, 1, 1), condition], 1)  # (3, 8, h, w)
            neither, query_only, both = denoise(networks.unet, noisy, timestep, tokens, mask).chunk(3)
            guided = neither + g_query * (query_only - neither) + g_tau * (both - query_only)
            latent = scheduler.step(guided, timestep, latent).prev_sample
        logits.append(difference(decode(networks.vae, latent) - gamma * query))
    return torch.cat(logits)


def denoise(unet: Any, latent: Tensor, timestep: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """The U-Net with the mask inside cross-attention: (B, C, h, w), tokens (B, L, D), mask (B, L) -> (B, 4, h, w)."""
    return unet(latent, timestep, encoder_hidden_states=tokens, encoder_attention_mask=mask).sample


@torch.no_grad()
def instruction(encoder: PromptEncoder, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Two-stage masking: (B, K, 3, H, W), (B, K, H, W) uint8 -> tokens (B, K*g*g, D) and their mask, bool."""
    batch, side = len(image), encoder.image_size
    image = F.interpolate(image.flatten(0, 1), (side, side), mode="bilinear", antialias=True)  # (B*K, 3, S, S)
    mask = F.interpolate((mask.flatten(0, 1) == 1).float()[:, None], (side, side))  # (B*K, 1, S, S)
    tokens = encoder(Prompt(image, (mask - ALPHA_MEAN) / ALPHA_STD, mask[:, 0]))  # (B*K, g*g, D)
    grid = round(tokens.shape[1] ** 0.5)
    attended = F.interpolate(mask, (grid, grid)) > 0.5  # (B*K, 1, g, g)
    return tokens.unflatten(0, (batch, -1)).flatten(1, 2), attended.reshape(batch, -1)


def null_tokens(encoder: PromptEncoder, device: str) -> Tensor:
    """Tokens of an all-zero image with an all-one mask: (1, g*g, D)."""
    side = encoder.image_size
    blank = torch.zeros(1, 1, 3, side, side, device=device)
    return instruction(encoder, blank, torch.ones(1, 1, side, side, dtype=torch.uint8, device=device))[0]


def pseudo_mask(mask: Tensor) -> Tensor:
    """Eq. 2 with a = -1, b = 1: (B, H, W), foreground where 1 -> (B, 3, H, W), background red, foreground green."""
    foreground = (mask == 1).float() * 2 - 1
    return torch.stack([-foreground, foreground, torch.zeros_like(foreground)], 1)


@torch.no_grad()
def encode(vae: Any, picture: Tensor, seed: Tensor | None = None) -> Tensor:
    """(B, 3, H, W) -> scaled latents (B, 4, h, w): a draw where there are seeds (B,), else the mode."""
    distribution = vae.encode(picture.to(vae.dtype)).latent_dist
    latent = distribution.mean
    if seed is not None:
        latent = latent + distribution.std * normal(seed, "autoencoder", tuple(latent.shape[1:]))
    return latent * vae.config["scaling_factor"]


def decode(vae: Any, latent: Tensor) -> Tensor:
    """Scaled latents (B, 4, h, w) -> pictures (B, 3, H, W)."""
    return vae.decode((latent / vae.config["scaling_factor"]).to(vae.dtype)).sample


def difference(picture: Tensor) -> Tensor:
    """Channel 1 minus channel 0: (B, 3, H, W) -> (B, H, W)."""
    return picture[:, 1] - picture[:, 0]
