"""Inference for people: pictures with masks of a concept in, masks of that concept in other pictures out."""

from ldis_lightning.pipeline.context import Context
from ldis_lightning.pipeline.in_context import InContextSegmentationPipeline, Settings
from ldis_lightning.pipeline.results import Segmentation, SegmentationOutput

__all__ = ["Context", "InContextSegmentationPipeline", "Segmentation", "SegmentationOutput", "Settings"]
