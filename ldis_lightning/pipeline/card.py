"""The README.md of a model's folder: what it is, how it is used, and how it scored."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace

from ldis_lightning.evaluation.rows import ResultRow, describe
from ldis_lightning.meta_architectures.base import InContextSegmenter

TEXT = """---
library_name: ldis-lightning
pipeline_tag: image-segmentation
tags: [in-context-segmentation, latent-diffusion]
---

# In-context segmentation

Shown pictures with masks of a concept, this model finds the concept in other pictures. The Python package
`ldis-lightning`, which trained it, loads it:

```python
from ldis_lightning.pipeline import InContextSegmentationPipeline

pipe = InContextSegmentationPipeline.from_pretrained("{name}")
context = pipe.encode("reference.jpg", "mask.png")
mask = pipe("query.jpg", context).masks[0]  # (H, W) bool
```

- model: `{model}`
- U-Net: {parameters:,} parameters
- sees pictures as squares of {size} pixels

## Scores

{scores}
"""
NO_SCORES = "None were given."


def model_card(name: str, model: InContextSegmenter, size: int, rows: Sequence[ResultRow] = ()) -> str:
    """The card as Markdown.

    Args:
        name: of the folder or the hub repository.
        model: what it describes.
        size: side of the squares that it sees, in pixels.
        rows: of `ldis test`; the tables are those of `ldis results`, without published rows.
    """
    parameters = sum(parameter.numel() for parameter in model.unet.parameters())
    described = describe(model).replace("`", "'")
    return TEXT.format(name=name, model=described, parameters=parameters, size=size, scores=_tables(rows) or NO_SCORES)


def _tables(rows: Sequence[ResultRow]) -> str:
    if not rows:
        return ""
    from ldis_lightning.evaluation.comparison import compare
    from ldis_lightning.evaluation.tables import write_markdown

    stream = io.StringIO()
    rows = [replace(row, path=None) for row in rows]  # where they lay on this machine is nobody's business
    write_markdown(compare(rows, False), stream)
    return stream.getvalue().strip()
