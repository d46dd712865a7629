import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ldis_lightning.datamodules.augment import Photometric, to_model_range
from ldis_lightning.episode import EpisodeBatch


def episodes(count: int = 4, references: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.rand(count, 3, 6, 8, generator=generator)
    return query, torch.rand(count, references, 3, 6, 8, generator=generator), torch.arange(count) + 100 * seed


def batch_of(query: Tensor, references: Tensor, seed: Tensor) -> EpisodeBatch:
    count = len(query)
    return EpisodeBatch(
        query_image=(query * 255).to(torch.uint8),
        query_mask=torch.full((count, 6, 8), 255, dtype=torch.uint8),
        reference_image=(references * 255).to(torch.uint8),
        reference_mask=torch.ones((*references.shape[:2], 6, 8), dtype=torch.uint8),
        class_id=torch.ones(count, dtype=torch.int64),
        valid=torch.ones(count, dtype=torch.bool),
        seed=seed,
        meta=[],
    )


def test_model_range() -> None:
    batch = batch_of(*episodes())
    batch["query_image"][0, 0, 0, :3] = torch.tensor([0, 128, 255], dtype=torch.uint8)
    ready = to_model_range(batch)
    assert ready["query_image"].dtype == ready["reference_image"].dtype == torch.float32
    assert ready["query_image"][0, 0, 0, :3].tolist() == pytest.approx([-1, 0.0039, 1], abs=1e-4)
    assert torch.equal(ready["reference_image"], batch["reference_image"] / 255 * 2 - 1)
    assert ready["query_mask"] is batch["query_mask"]
    assert batch["query_image"].dtype == torch.uint8


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 50),
    strengths=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    hue=st.floats(0, 0.5),
    shared=st.booleans(),
)
def test_range_is_kept_and_batches_do_not_matter(seed: int, strengths: list[float], hue: float, shared: bool) -> None:
    photometric = Photometric(*strengths, hue=hue, shared=shared)
    inputs = episodes(seed=seed)
    query, references = photometric(*inputs)
    assert query.shape == inputs[0].shape
    assert references.shape == inputs[1].shape
    assert min(query.min(), references.min()) >= 0
    assert max(query.max(), references.max()) <= 1
    alone = [photometric(*(tensor[i : i + 1] for tensor in inputs)) for i in range(4)]
    torch.testing.assert_close(torch.cat([q for q, _ in alone]), query)
    torch.testing.assert_close(torch.cat([r for _, r in alone]), references)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_each_strength_changes_pictures_and_zero_does_not(name: str) -> None:
    query, references, seed = episodes()
    none = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0}
    same, _ = Photometric(*none.values(), probability=1)(query, references, seed)
    changed, _ = Photometric(*(none | {name: 0.4}).values(), probability=1)(query, references, seed)
    assert torch.equal(same, query)
    assert ((changed - query).abs().amax((1, 2, 3)) > 1e-3).all()


def test_probability() -> None:
    query, references, seed = episodes(count=400, references=1)
    changed, changed_references = Photometric(probability=0.3)(query, references, seed)
    query_changed = (changed - query).abs().amax((1, 2, 3)) > 1e-5
    reference_changed = (changed_references - references).abs().amax((1, 2, 3, 4)) > 1e-5
    assert 0.2 < query_changed.float().mean() < 0.4
    assert 0.04 < (query_changed & reference_changed).float().mean() < 0.15  # independent: 0.09
    untouched, _ = Photometric(probability=0)(query, references, seed)
    torch.testing.assert_close(untouched, query)


@pytest.mark.parametrize("shared", [False, True])
def test_sharing_is_between_query_and_references(shared: bool) -> None:
    query, _, seed = episodes()
    same = query[:, None].expand(-1, 2, -1, -1, -1)
    changed, references = Photometric(probability=1, shared=shared)(query, same, seed)
    assert torch.allclose(changed, references[:, 0]) == shared
    assert torch.allclose(references[:, 0], references[:, 1]) == shared


def test_hue_goes_round_at_constant_luma() -> None:
    red = torch.tensor([0.6, 0.35, 0.35]).view(1, 3, 1, 1).expand(60, -1, -1, -1)
    turned, _ = Photometric(0, 0, 0, hue=0.5, probability=1)(red, red[:, None], torch.arange(60))
    luma = torch.einsum("bchw,c->b", turned, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(luma, torch.full((60,), 0.42475), atol=1e-5, rtol=0)
    hues = [colorsys.rgb_to_hsv(*colour)[0] for colour in turned.flatten(1).tolist()]
    assert np.histogram(hues, bins=4, range=(0, 1))[0].min() >= 5
