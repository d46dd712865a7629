"""The exported graphs give what the model gives, with any number of rows and tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import many_steps, one_step
from tiny import PICTURE, PROMPT, masks, pictures

from ldis_lightning.errors import UserError
from ldis_lightning.instruction import MeanLogits
from ldis_lightning.pipeline.onnx_export import PROMPT_ENCODER, SEGMENTER, SIZES

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
LOGIT_TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    pipe, folder = one_step(), tmp_path_factory.mktemp("onnx")
    assert [path.name for path in pipe.export_onnx(folder)] == [SIZES, PROMPT_ENCODER, SEGMENTER]
    return pipe, folder


@pytest.mark.timeout(600)  # the exporter takes its time on a busy machine
@pytest.mark.parametrize(("rows", "references"), [(1, 1), (2, 3), (5, 2)])
def test_it_agrees_with_torch(rows: int, references: int, exported: tuple[Any, Path]) -> None:
    pipe, folder = exported
    encoder, segmenter = (onnxruntime.InferenceSession(folder / name) for name in (PROMPT_ENCODER, SEGMENTER))
    image, mask = pictures(rows * references, 3, PROMPT, PROMPT, seed=1), masks(rows * references, PROMPT) == 1
    query = pictures(rows, 3, PICTURE, PICTURE, seed=2)
    tokens, attended = encoder.run(None, {"image": image.numpy(), "mask": mask.float().numpy()})
    tokens, attended = tokens.reshape(rows, -1, tokens.shape[-1]), attended.reshape(rows, -1)
    (found,) = segmenter.run(None, {"query": query.numpy(), "tokens": tokens, "attended": attended})
    with torch.inference_mode():
        shape = (rows, references)
        instruction = pipe.model.instruction(image.unflatten(0, shape), mask.to(torch.uint8).unflatten(0, shape))
        expected = pipe.model.predict_logits(query, instruction, torch.zeros(rows, dtype=torch.int64)).numpy()
    np.testing.assert_array_equal(attended, instruction.attended.numpy())
    assert np.abs(found - expected).max() < LOGIT_TOLERANCE
    clear = np.abs(expected) > LOGIT_TOLERANCE
    assert clear.mean() > 0.9
    np.testing.assert_array_equal((found > 0)[clear], (expected > 0)[clear])


def test_the_folder_says_its_sizes(exported: tuple[Any, Path]) -> None:
    pipe, folder = exported
    sizes = json.loads((folder / SIZES).read_text())
    assert sizes == {"query_size": PICTURE, "prompt_size": PROMPT, "token_width": 8, "range": [-1, 1], "padding": 0.0}
    with pytest.raises(UserError, match="exists: pass overwrite=True"):
        pipe.export_onnx(folder)
    assert "PlainAttention" not in {type(p).__name__ for p in pipe.model.unet.attn_processors.values()}


def test_models_that_no_graph_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="LDISn takes many steps, which no graph holds: export an LDIS-1"):
        many_steps().export_onnx(tmp_path)
    with pytest.raises(UserError, match="adds noise to the query"):
        one_step(add_noise=True, timestep=10).export_onnx(tmp_path)
    with pytest.raises(UserError, match="MeanLogits puts the answers of several references together"):
        one_step(reference_fusion=MeanLogits()).export_onnx(tmp_path)
    with pytest.raises(UserError, match=r"held in torch\.bfloat16"):
        one_step().to(torch.bfloat16).export_onnx(tmp_path)
    with pytest.raises(UserError, match="the model is compiled"):
        one_step().compile(backend="eager").export_onnx(tmp_path)
    assert not list(tmp_path.iterdir())
