"""What a checkpoint holds: what was trained, and nothing that can be read again where the model was read from."""

import hashlib
from typing import Any, TypeVar

from torch import Tensor, nn

from ldis_lightning.errors import UserError

M = TypeVar("M", bound=nn.Module)
FINGERPRINTED = 64
"""Elements of each tensor that go into a fingerprint."""


def from_files(module: M) -> M:
    """Mark a module whose weights come from files that whoever builds the model reads again.

    Its frozen parameters and its buffers are then left out of checkpoints (see `keep_trained`).
    """
    module.is_from_files = True  # pyright: ignore
    return module


def is_from_files(module: nn.Module) -> bool:
    """Whether `from_files` marked the module."""
    return getattr(module, "is_from_files", False)


def left_out(root: nn.Module) -> dict[str, Tensor]:
    """By their names, the frozen parameters and the buffers of `root` that files hold."""
    names: dict[str, Tensor] = {}
    for prefix, module in root.named_modules():
        if is_from_files(module):
            for name, parameter in module.named_parameters(prefix):
                if not parameter.requires_grad:
                    names[name] = parameter
            names.update(module.named_buffers(prefix))
    return names


def keep_trained(root: nn.Module) -> None:
    """From now on, leave out of the state dict of `root` what `left_out` names, and accept its absence in loading.

    Everything else must be there: loading stays strict.
    """
    root.register_state_dict_post_hook(_drop)
    root.register_load_state_dict_post_hook(_forgive)


def _drop(root: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in left_out(root):
        state.pop(prefix + name, None)


def _forgive(root: nn.Module, incompatible: Any) -> None:
    names = left_out(root)
    # The root may lie in another module, e.g. in that of an average, which puts its own prefix before the names.
    forgiven = {key for key in incompatible.missing_keys if key in names or key.removeprefix("module.") in names}
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in forgiven]


def fingerprints(root: nn.Module) -> dict[str, str]:
    """For each module that `from_files` marked, a short hash of samples of what `left_out` names of it.

    A checkpoint keeps them, because it is worth nothing beside other frozen weights than those it was trained with.
    Empty for a module on the meta device.
    """
    found = {}
    for name, module in root.named_modules():
        if is_from_files(module) and (tensors := left_out(module)):
            digest = hashlib.sha256()
            for key, tensor in sorted(tensors.items()):
                if tensor.is_meta:
                    return {}
                sample = tensor.detach().flatten()[:: max(1, tensor.numel() // FINGERPRINTED)]
                digest.update(f"{key} {tuple(tensor.shape)}".encode() + sample.float().cpu().numpy().tobytes())
            found[name] = digest.hexdigest()[:16]
    return found


def check_fingerprints(saved: dict[str, str], present: dict[str, str]) -> None:
    """Compare those of a checkpoint with those of the model that is to take its weights.

    Raises:
        UserError: a part was read from other weights than in training; the message names it.
    """
    for name, fingerprint in saved.items():
        if present.get(name, fingerprint) != fingerprint:
            raise UserError(
                f"the checkpoint was trained with other weights of `{name}` than those that the config names now "
                f"({fingerprint}, now {present[name]}): use the files that it was trained with."
            )
