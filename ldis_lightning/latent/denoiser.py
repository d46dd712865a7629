"""The denoiser: a diffusers U-Net that fits the autoencoder's latents and the instruction's tokens."""

from diffusers import UNet2DConditionModel
from torch import nn

from ldis_lightning.errors import UserError
from ldis_lightning.latent.surgery import widen_input


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


class PretrainedUNet(Denoiser):
    """A U-Net from a folder in diffusers' format or from the hub, e.g. Stable Diffusion 1.5's.

    A projection that the weights lack (`encoder_hid_proj`) starts at random.

    Args:
        path: a local folder with `config.json` and the weights in safetensors, or a hub id.
        subfolder: folder inside it, e.g. `unet` for a Stable Diffusion pipeline.
    """

    def __init__(self, path: str, subfolder: str | None = None) -> None:
        self.path = path
        self.subfolder = subfolder

    def build(self, latent_channels: int, token_width: int) -> UNet2DConditionModel:
        """See `Denoiser`.

        Raises:
            UserError: there is nothing loadable at `path`, or its latents have another number of channels.
        """
        try:
            unet = UNet2DConditionModel.from_pretrained(
                self.path, subfolder=self.subfolder, use_safetensors=True, low_cpu_mem_usage=False
            )
        except (OSError, ValueError) as error:
            raise UserError(f"model.denoiser.path: cannot load a U-Net from '{self.path}': {error}") from error
        if unet.config["out_channels"] != latent_channels:
            raise UserError(
                f"model.denoiser.path: the U-Net in '{self.path}' has {unet.config['out_channels']} latent channels, "
                f"but model.autoencoder has {latent_channels}."
            )
        projection = unet.encoder_hid_proj
        if not isinstance(projection, nn.Linear) or projection.in_features != token_width:
            unet.encoder_hid_proj = nn.Linear(token_width, unet.config["cross_attention_dim"])
            unet.register_to_config(encoder_hid_dim=token_width, encoder_hid_dim_type="text_proj")
        return unet


def widen_unet_input(unet: UNet2DConditionModel, extra: int) -> UNet2DConditionModel:
    """Give a U-Net `extra` more input channels whose weights start at zero, in place (LDIS-n's query latent)."""
    unet.conv_in = widen_input(unet.conv_in, extra)
    unet.register_to_config(in_channels=unet.config["in_channels"] + extra)
    return unet
