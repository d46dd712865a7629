"""The denoiser: a diffusers U-Net that fits the autoencoder's latents and the instruction's tokens."""

from typing import Any

from diffusers import UNet2DConditionModel
from torch import nn

from ldis_lightning.checkpoints import from_files
from ldis_lightning.errors import UserError
from ldis_lightning.latent.surgery import new_layers, widen_input
from ldis_lightning.weights.known import STABLE_DIFFUSION_UNET
from ldis_lightning.weights.loading import architecture, build

KEY = "model.denoiser.path"


class Denoiser:
    """Base class of the denoiser slot: a recipe that is built once the latents and the tokens are known.

    The projection F of eq. 1 is the U-Net's own `encoder_hid_proj`, as in the released code, so that widths are linked
    here and written in no config.
    """

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """A U-Net from latents (B, latent_channels, h, w) and tokens (B, L, token_width) to latents of that shape."""
        raise NotImplementedError(f"{type(self).__name__} must implement build(latent_channels, token_width)")


class ScratchUNet(Denoiser):
    """A U-Net with random weights.

    Args:
        block_out_channels: channels of each level, from the finest to the coarsest.
        layers_per_block: residual and transformer blocks of each level.
        attention_head_dim: channels of one attention head.
        cross_attention_dim: width of the projected tokens.
        norm_num_groups: groups of the group norms; must divide every entry of `block_out_channels`.
    """

    def __init__(
        self,
        block_out_channels: tuple[int, ...] = (64, 128),
        layers_per_block: int = 1,
        attention_head_dim: int = 32,
        cross_attention_dim: int = 64,
        norm_num_groups: int = 16,
    ) -> None:
        if any(channels % norm_num_groups for channels in block_out_channels):
            raise UserError(
                f"model.denoiser.norm_num_groups: {norm_num_groups} does not divide every one of block_out_channels "
                f"{tuple(block_out_channels)}."
            )
        self.config = {
            "block_out_channels": tuple(block_out_channels),
            "layers_per_block": layers_per_block,
            # diffusers' `attention_head_dim` is the number of heads of each level, for historical reasons.
            "attention_head_dim": tuple(max(1, channels // attention_head_dim) for channels in block_out_channels),
            "cross_attention_dim": cross_attention_dim,
            "norm_num_groups": norm_num_groups,
            "down_block_types": ("CrossAttnDownBlock2D",) * len(block_out_channels),
            "up_block_types": ("CrossAttnUpBlock2D",) * len(block_out_channels),
        }

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """See `Denoiser`."""
        return UNet2DConditionModel(
            in_channels=latent_channels,
            out_channels=latent_channels,
            encoder_hid_dim=token_width,
            encoder_hid_dim_type="text_proj",
            **self.config,
        )


class StableDiffusionUNet(Denoiser):
    """Stable Diffusion 1.5's architecture with random weights: what training from scratch starts from."""

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """See `Denoiser`."""
        channels = {"in_channels": latent_channels, "out_channels": latent_channels}
        projection = {"encoder_hid_dim": token_width, "encoder_hid_dim_type": "text_proj"}
        config = {**STABLE_DIFFUSION_UNET.architecture, **channels, **projection}
        return UNet2DConditionModel.from_config(config)  # pyright: ignore[reportReturnType]


class PretrainedUNet(Denoiser):
    """A U-Net from a folder in diffusers' format or from the hub, e.g. Stable Diffusion 1.5's.

    Any `UNet2DConditionModel` that is conditioned by cross-attention alone. A projection that the weights lack
    (`encoder_hid_proj`) starts at random. On the meta device nothing is read: the architecture alone is built (see
    `ldis_lightning.weights.loading`).

    Args:
        path: a local folder with `config.json` and the weights, or a hub id.
        subfolder: folder inside it, e.g. `unet` for a Stable Diffusion pipeline.
    """

    def __init__(self, path: str, subfolder: str | None = None) -> None:
        self.path = path
        self.subfolder = subfolder

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """See `Denoiser`.

        Raises:
            UserError: there is nothing loadable at `path`, or nothing that fits the latents, or it has
                other conditions.
        """
        config, folder = architecture(self.path, self.subfolder, KEY)
        _check_conditions(config)
        unet = build({"UNet2DConditionModel": UNet2DConditionModel}, config, folder, KEY)
        if unet.config["out_channels"] != latent_channels:
            raise UserError(
                f"{KEY}: the U-Net in '{self.path}' has {unet.config['out_channels']} latent channels, "
                f"but model.autoencoder has {latent_channels}."
            )
        projection = unet.encoder_hid_proj
        if not isinstance(projection, nn.Linear) or projection.in_features != token_width:
            unet.encoder_hid_proj = nn.Linear(token_width, unet.config["cross_attention_dim"])
            unet.register_to_config(encoder_hid_dim=token_width, encoder_hid_dim_type="text_proj")
            new_layers(unet).add("encoder_hid_proj")
        return from_files(unet)


def widen_unet_input(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """Give a U-Net `extra` input channels beside those of the latent, with weights that start at zero, in place.

    These are LDIS-n's query latent. A U-Net that has them already, e.g. a trained LDIS-n's, is left as it is.

    Raises:
        UserError: it has another number of them, e.g. a trained LDIS-n's U-Net in LDIS-1, where `extra` is 0.
    """
    latent, present = unet.config["out_channels"], unet.config["in_channels"]
    if present not in (latent, latent + extra):
        raise UserError(
            f"model.denoiser: the U-Net takes {present} channels, but the model has {latent + extra} for it. LDIS1 "
            f"gives the latent alone ({latent}), LDISn the query's latent too ({2 * latent})."
        )
    if present != latent + extra:
        unet.conv_in = widen_input(unet.conv_in, extra)
        new_layers(unet).add("conv_in")
        unet.register_to_config(in_channels=latent + extra)
    return unet


def _check_conditions(config: dict[str, Any]) -> None:
    """Refuse a U-Net that needs more than a latent, a timestep and tokens.

    A config that names another class is refused where it is built.
    """
    blocks = [*config.get("down_block_types", ()), config.get("mid_block_type") or ""]
    if config.get("_class_name") == "UNet2DConditionModel" and not any("CrossAttn" in block for block in blocks):
        raise UserError(f"{KEY}: the U-Net has no cross-attention, by which it could be instructed.")
    for name in ("addition_embed_type", "class_embed_type", "num_class_embeds"):
        if config.get(name) is not None:
            raise UserError(f"{KEY}: the U-Net needs another condition beside its tokens ({name}: {config[name]}).")
    if not isinstance(config.get("cross_attention_dim", 0), int):
        raise UserError(f"{KEY}: the U-Net's blocks take tokens of different widths ({config['cross_attention_dim']}).")
