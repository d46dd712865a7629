"""The one-step model as two ONNX graphs: the prompt encoder, and the segmenter that takes its tokens.

`prompt_encoder.onnx`: `image` (N, 3, P, P) in [-1, 1] and `mask` (N, P, P) in {0, 1} of N references, both already
resized to the encoder's side P, to `tokens` (N, T, C) and `attended` (N, T) bool. The K references of a concept are
put one behind the other along the token axis.

`segmenter.onnx`: `query` (B, 3, S, S) in [-1, 1], `tokens` (B, L, C) and `attended` (B, L) bool to `logits` (B, S, S).

B, N and L are free. `onnx.json` says the sizes.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldis_lightning.errors import UserError, first_line
from ldis_lightning.instruction import Instruction, InstructionExtractor
from ldis_lightning.meta_architectures import LDIS1

if TYPE_CHECKING:
    from ldis_lightning.pipeline.in_context import InContextSegmentationPipeline

SEGMENTER, PROMPT_ENCODER, SIZES = "segmenter.onnx", "prompt_encoder.onnx", "onnx.json"
OPSET = 20


class Segmenter(nn.Module):
    """LDIS-1 without what depends on data: no token is dropped, those outside the mask are masked."""

    def __init__(self, model: LDIS1) -> None:
        super().__init__()
        self.model = model

    def forward(self, query: Tensor, tokens: Tensor, attended: Tensor) -> Tensor:
        """See the module."""
        autoencoder: Any = self.model.autoencoder
        encoded = autoencoder.vae.encode(query)
        mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
        instruction = Instruction(tokens, attended, torch.zeros_like(attended, dtype=torch.int64))
        latent = self.model.denoise(mean * autoencoder.scaling_factor, self.model.timestep, instruction)
        return self.model.decode_logits(latent, query)


class PlainAttention:
    """Attention of a U-Net's transformer blocks, whose shapes can be followed with any batch and number of tokens.

    diffusers' own processors reshape through the batch's size, which the exporter takes for one that is fixed.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: Any,
    ) -> Tensor:
        """(B, N, C), tokens (B, L, D) and what to add to the scores (B, 1, L) -> (B, N, C)."""
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(part).unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, N or L, d)
            for layer, part in ((attn.to_q, hidden_states), (attn.to_k, source), (attn.to_v, source))
        )
        bias = None if attention_mask is None else attention_mask[:, None]  # (B, 1, 1, L)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attn.to_out[0](found.transpose(1, 2).flatten(2))


@contextlib.contextmanager
def _plain_attention(unet: Any) -> Iterator[None]:
    own = unet.attn_processors
    unet.set_attn_processor(PlainAttention())
    try:
        yield
    finally:
        unet.set_attn_processor(own)


class PromptEncoderGraph(nn.Module):
    """Pre-mask, encoder and post-mask, of references at the encoder's size."""

    def __init__(self, extractor: InstructionExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See the module."""
        prompt = self.extractor.pre_mask(image, mask)
        return self.extractor.post_mask(self.extractor.encoder(prompt), prompt.mask)


def export(pipe: InContextSegmentationPipeline, folder: Path, overwrite: bool = False) -> list[Path]:
    """Write both graphs and their sizes to a folder: nothing where one of them cannot be exported.

    Args:
        pipe: of an LDIS-1, in float32. It is moved to the CPU while it is traced.
        folder: made where it is missing.
        overwrite: replace files of these names.

    Returns:
        The files.

    Raises:
        UserError: the model takes many steps, draws noise or puts several answers together, `onnx` is not
            installed, or a part has no ONNX.
    """
    model = pipe.model
    if not isinstance(model, LDIS1):
        raise UserError(f"ONNX: {type(model).__name__} takes many steps, which no graph holds: export an LDIS-1.")
    if model.add_noise:
        raise UserError("ONNX: this model adds noise to the query (model.add_noise), which no graph can draw.")
    if model.reference_fusion.separate:
        fusion = type(model.reference_fusion).__name__
        raise UserError(
            f"ONNX: {fusion} puts the answers of several references together, which no graph does: set "
            "model.reference_fusion to null."
        )
    if pipe.dtype != torch.float32:
        raise UserError(f"ONNX: the model is held in {pipe.dtype}: load it without torch_dtype.")
    if model.execution.compile:
        raise UserError("ONNX: the model is compiled: load it again and export it before `compile`.")
    _need_onnx()
    names = (SEGMENTER, PROMPT_ENCODER, SIZES)
    if not overwrite and (taken := [name for name in names if (folder / name).exists()]):
        raise UserError(f"{folder / taken[0]} exists: pass overwrite=True, or choose another folder.")
    device = pipe.device
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".onnx.") as hidden:
            _write(model.to("cpu"), pipe.image_size, Path(hidden))
            made = sorted(Path(hidden).iterdir())
            for file in made:
                os.replace(file, folder / file.name)
    finally:
        model.to(device)
    return [folder / file.name for file in made]


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"ONNX: {error.name} is missing: run `pip install 'ldis-lightning[onnx]'`.") from error


def _write(model: LDIS1, size: int, folder: Path) -> None:
    encoder = model.instruction.encoder
    side = encoder.image_size
    image, mask = torch.zeros(2, 3, side, side), torch.zeros(2, side, side)
    mask[:, side // 4 : side // 2, side // 4 : side // 2] = 1
    rows, length = torch.export.Dim("rows", min=1, max=4096), torch.export.Dim("length", min=1, max=2**20)
    prompts = PromptEncoderGraph(model.instruction).eval()
    with torch.no_grad():
        tokens, attended = prompts(image, mask)
    in_rows = {0: rows}
    _trace(prompts, (image, mask), folder / PROMPT_ENCODER, ["tokens", "attended"], (in_rows, in_rows))
    query = torch.zeros(2, 3, size, size)
    # An example of a length of its own: where two sizes are equal, they would be taken for one.
    tokens, attended = (torch.cat([part, part, part[:, :1]], 1) for part in (tokens, attended))
    in_both = {0: rows, 1: length}
    inputs = (query, tokens, attended)
    with _plain_attention(model.unet):
        _trace(Segmenter(model).eval(), inputs, folder / SEGMENTER, ["logits"], (in_rows, in_both, in_both))
    sizes = {"query_size": size, "prompt_size": side, "token_width": encoder.width, "range": [-1, 1], "padding": 0.0}
    (folder / SIZES).write_text(json.dumps(sizes, indent=2) + "\n", encoding="utf-8")


def _trace(module: nn.Module, inputs: Any, path: Path, outputs: list[str], shapes: Any) -> None:
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # of the exporter's own making
            torch.onnx.export(
                module,
                inputs,
                str(path),
                output_names=outputs,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except Exception as error:  # the exporter's errors have no class in common
        part = path.stem.replace("_", " ")
        cause = first_line(error.__cause__ or error)
        raise UserError(f"ONNX: torch cannot export the {part} of this model ({cause}).") from error
    finally:
        quiet.setLevel(level)
