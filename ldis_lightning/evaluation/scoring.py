"""From a model's logits to scored episodes: undo the geometry, threshold, count."""

import torch.nn.functional as F
from torch import Tensor

from ldis_lightning.episode import EpisodeBatch
from ldis_lightning.evaluation.metrics import EpisodeIoU


def restore_logits(logits: Tensor, content: tuple[int, int, int, int], original_size: tuple[int, int]) -> Tensor:
    """Undo a query's geometry: cut the padding off, then resize to the original size, bilinear on the logits.

    Args:
        logits: (H, W), foreground where > 0.
        content: top, left, height, width of the picture inside the padded square, in pixels.
        original_size: (H0, W0).

    Returns:
        (H0, W0) float32.
    """
    top, left, height, width = content
    picture = logits[None, None, top : top + height, left : left + width].float()  # (1, 1, height, width)
    return F.interpolate(picture, size=tuple(original_size), mode="bilinear", align_corners=False)[0, 0]


def score_batch(metric: EpisodeIoU, logits: Tensor, batch: EpisodeBatch) -> None:
    """Add a batch to `metric`, at the pictures' original sizes if the batch has those masks.

    Pictures that all had the model's size to begin with are scored in one vectorised step.

    Args:
        metric: of the evaluation set that the batch belongs to.
        logits: (B, H, W), foreground where > 0.
        batch: on the device. `query_mask_original` and `meta` are read where original sizes differ from the model's.
    """
    originals = batch.get("query_mask_original", [])
    if all(mask.shape == logits.shape[1:] for mask in originals):
        metric.update_batch(logits > 0, batch["query_mask"], batch["class_id"], batch["valid"])
        return
    for episode, valid in enumerate(batch["valid"].tolist()):
        if valid:
            meta = batch["meta"][episode]
            restored = restore_logits(logits[episode], meta["content"], meta["original_size"])  # (H0, W0)
            metric.update(restored > 0, originals[episode].to(logits.device), batch["class_id"][episode])
