"""Instruction extraction (eq. 1): reference images and masks become tokens for the denoiser's cross-attention."""

from ldis_lightning.instruction.alpha_clip import AlphaCLIPPromptEncoder
from ldis_lightning.instruction.extractor import InstructionExtractor
from ldis_lightning.instruction.post_masks import CrossAttentionMask, NoPostMasking, PostMask, PrototypePooling
from ldis_lightning.instruction.pre_masks import AlphaChannel, CropToMask, NoPreMasking, PixelProduct, PreMask, Prompt
from ldis_lightning.instruction.prompt_encoder import PromptEncoder, TimmPromptEncoder
from ldis_lightning.instruction.reference_fusion import ConcatenatedTokens, MajorityVote, MeanLogits, ReferenceFusion
from ldis_lightning.instruction.tokens import Instruction, compact

__all__ = [
    "AlphaCLIPPromptEncoder",
    "AlphaChannel",
    "ConcatenatedTokens",
    "CropToMask",
    "CrossAttentionMask",
    "Instruction",
    "InstructionExtractor",
    "MajorityVote",
    "MeanLogits",
    "NoPostMasking",
    "NoPreMasking",
    "PixelProduct",
    "PostMask",
    "PreMask",
    "Prompt",
    "PromptEncoder",
    "PrototypePooling",
    "ReferenceFusion",
    "TimmPromptEncoder",
    "compact",
]
