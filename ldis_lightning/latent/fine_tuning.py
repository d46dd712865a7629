"""Which of the denoiser's parameters train: all of them, or low-rank adapters beside frozen ones."""

from diffusers import UNet2DConditionModel

from ldis_lightning.checkpoints import is_from_files
from ldis_lightning.errors import UserError
from ldis_lightning.latent.surgery import new_layers


class FineTuning:
    """Base class of the slot."""

    def apply(self, unet: UNet2DConditionModel) -> None:
        """Set what trains, in place; modules may be put around or beside those of the U-Net."""
        raise NotImplementedError(f"{type(self).__name__} must implement apply(unet)")

    def merge(self, unet: UNet2DConditionModel) -> None:
        """Make a plain U-Net again that computes the same, in place."""


class FullFineTuning(FineTuning):
    """Every parameter trains: the paper's choice."""

    def apply(self, unet: UNet2DConditionModel) -> None:
        """See `FineTuning`."""
        unet.requires_grad_(True)


class LoRA(FineTuning):
    """Low-rank adapters W + (alpha / rank) B A (Hu et al., ICLR 2022), by peft.

    Beside them train the layers that the pretrained weights lack: the projection F, and LDIS-n's wider `conv_in`. Only
    these and the adapters are in a checkpoint.

    Args:
        rank: r, >= 1; the paper's first version has 4.
        alpha: scale of the adapters, divided by the rank; null for the rank itself.
        targets: ends of the names of the linear layers that are adapted; the default is q, k, v and o of all attention.

    Raises:
        UserError: the rank is not positive; in `apply`, peft is missing, no layer is a target, or the U-Net has random
            weights, beside which adapters would be of no use to anyone.
    """

    def __init__(
        self,
        rank: int = 4,
        alpha: float | None = None,
        targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0"),
    ) -> None:
        if rank < 1:
            raise UserError(f"model.fine_tuning.rank: must be at least 1, got {rank}.")
        self.rank = rank
        self.alpha = rank if alpha is None else alpha
        self.targets = tuple(targets)

    def apply(self, unet: UNet2DConditionModel) -> None:
        """See `FineTuning`."""
        try:
            from peft import LoraConfig
        except ImportError as error:
            raise UserError("model.fine_tuning: LoRA needs peft; pip install 'ldis-lightning[lora]'.") from error
        if not is_from_files(unet):
            raise UserError(
                "model.fine_tuning: LoRA adapts a trained U-Net, but model.denoiser makes one with random weights; "
                "use PretrainedUNet, e.g. on a folder that `ldis convert` has written."
            )
        unet.requires_grad_(False)
        # peft types alpha as whole, and divides it by the rank as it is.
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))  # pyright: ignore
        try:
            unet.add_adapter(config)
        except ValueError as error:
            raise UserError(f"model.fine_tuning.targets: no layer's name ends in {', '.join(self.targets)}.") from error
        for name in new_layers(unet):
            unet.get_submodule(name).requires_grad_(True)

    def merge(self, unet: UNet2DConditionModel) -> None:
        """See `FineTuning`: W + (alpha / rank) B A becomes the weight."""
        unet.fuse_lora()
        unet.unload_lora()
