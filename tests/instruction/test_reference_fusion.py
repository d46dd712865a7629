"""K references of one concept: what becomes of their tokens in training, and of their answers in evaluation."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ldis_lightning.instruction import (
    ConcatenatedTokens,
    MajorityVote,
    MeanLogits,
    NoPostMasking,
    PrototypePooling,
    ReferenceFusion,
)
from ldis_lightning.meta_architectures import InContextSegmenter
from ldis_lightning.optim import WarmupConstant

BUILDS: list[Any] = [tiny.ldis1, lambda **changes: tiny.noisy_conv_in(tiny.ldisn(steps=2, **changes))]
both_models = pytest.mark.parametrize("build", BUILDS, ids=["LDIS1", "LDISn"])


def three_answers(module: InContextSegmenter, batch: Any) -> Tensor:
    """The answers of an episode's references, each by itself: (B, K, H, W)."""
    answers = []
    with torch.no_grad():
        for k in range(batch["reference_image"].shape[1]):
            one = module.instruction(batch["reference_image"][:, k : k + 1], batch["reference_mask"][:, k : k + 1])
            answers.append(module.predict_logits(batch["query_image"], one, batch["seed"]))
    return torch.stack(answers, 1)


def answer(module: InContextSegmenter, batch: Any) -> Tensor:
    with torch.no_grad():
        return module.logits(batch)


# ---- The rules


def test_mean_of_logits() -> None:
    logits = torch.tensor([[[[1.0, -4]], [[2, 1]], [[-6, 2]]]])  # (1, 3, 1, 2)
    assert MeanLogits().merge(logits).tolist() == [[[-1.0, pytest.approx(-1 / 3)]]]


def test_majority_vote() -> None:
    logits = torch.tensor([[[[1.0, -4, 0]], [[2, 1, 5]], [[-60, 2, -1]]]])  # 0 is no vote
    assert (MajorityVote().merge(logits) > 0).tolist() == [[[True, True, False]]]
    half = torch.tensor([[[[9.0, 9]], [[-1, 9]]]])
    assert (MajorityVote().merge(half) > 0).tolist() == [[[False, True]]]  # half is no majority
    assert MajorityVote().merge(half).tolist() == [[[0.0, 0.5]]]


def test_the_slot_says_what_is_missing() -> None:
    with pytest.raises(NotImplementedError, match=r"ReferenceFusion must implement merge\(logits\)"):
        ReferenceFusion().merge(torch.zeros(1, 1, 1, 1))


# ---- In a model


@both_models
@pytest.mark.parametrize("fusion", [MeanLogits(), MajorityVote()], ids=lambda fusion: type(fusion).__name__)
def test_three_answers_become_one(build: Any, fusion: ReferenceFusion) -> None:
    module = build(reference_fusion=fusion).eval()
    batch = tiny.batch(2, references=3)
    alone = three_answers(module, batch)
    if isinstance(fusion, MajorityVote):
        votes = (alone > 0).sum(1)
        assert {1, 2} & set(votes.unique().tolist())  # the references do disagree
        assert torch.equal(answer(module, batch) > 0, votes >= 2)
    else:
        torch.testing.assert_close(answer(module, batch), alone.sum(1) / 3, rtol=1e-4, atol=1e-5)


@both_models
def test_concatenated_tokens_are_one_instruction(build: Any) -> None:
    module = build(instruction=tiny.extractor(post_mask=NoPostMasking())).eval()
    assert isinstance(module.reference_fusion, ConcatenatedTokens)
    batch = tiny.batch(2, references=3)
    told: list[Tensor] = []
    handle = module.unet.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    answer(module, batch)
    handle.remove()
    own = [
        module.instruction(batch["reference_image"][:, k : k + 1], batch["reference_mask"][:, k : k + 1])
        for k in range(3)
    ]
    tokens = torch.cat([one.tokens for one in own], 1)  # (2, 3 * 16, 8)
    torch.testing.assert_close(told[0][-2:], tokens)
    assert not torch.allclose(answer(module, batch), three_answers(module, batch).mean(1), atol=1e-4)


@both_models
@pytest.mark.parametrize("fusion", [ConcatenatedTokens(), MeanLogits(), MajorityVote()], ids=lambda f: type(f).__name__)
def test_one_reference_is_the_same_to_all_rules(build: Any, fusion: ReferenceFusion) -> None:
    module, plain = build(reference_fusion=fusion).eval(), build().eval()
    assert torch.equal(answer(module, tiny.batch(2)), answer(plain, tiny.batch(2)))


@both_models
@pytest.mark.parametrize("fusion", [None, MeanLogits(), MajorityVote()], ids=["tokens", "mean", "vote"])
def test_twenty_references(build: Any, fusion: ReferenceFusion | None) -> None:
    module = build(reference_fusion=fusion).eval()
    batch = tiny.batch(1, references=20)
    logits = answer(module, batch)
    assert logits.shape == (1, tiny.PICTURE, tiny.PICTURE)
    assert bool(logits.isfinite().all())
    with torch.no_grad():
        assert module.encode_references(batch).tokens.shape == (1, 20 * 16, 8)


@both_models
def test_order_does_not_matter_where_answers_are_put_together(build: Any) -> None:
    module = build(reference_fusion=MajorityVote()).eval()
    batch = tiny.batch(2, references=3)
    turned: Any = batch | {name: batch[name].roll(1, 1) for name in ("reference_image", "reference_mask")}
    assert torch.equal(answer(module, batch) > 0, answer(module, turned) > 0)


def test_prototypes_can_be_put_together_too() -> None:
    """One token a reference."""
    module = tiny.ldis1(instruction=tiny.extractor(post_mask=PrototypePooling()), reference_fusion=MeanLogits()).eval()
    batch = tiny.batch(2, references=3)
    torch.testing.assert_close(answer(module, batch), three_answers(module, batch).mean(1), rtol=1e-4, atol=1e-5)


@both_models
@pytest.mark.parametrize("fusion", [None, MeanLogits()], ids=["tokens", "mean"])
def test_a_clip_of_several_references_a_concept(build: Any, fusion: ReferenceFusion | None) -> None:
    """No protocol has them yet, and the shapes allow them."""
    module = build(reference_fusion=fusion).eval().double()
    step = tiny.in_double(tiny.clip(frames=2, concepts=2, references=3))
    logits = answer(module, step)
    for frame in range(2):
        for concept in range(2):
            one: Any = {
                "query_image": step["query_image"][frame : frame + 1],
                "reference_image": step["reference_image"][concept : concept + 1],
                "reference_mask": step["reference_mask"][concept : concept + 1],
                "seed": step["seed"][frame, concept].view(1),
            }
            torch.testing.assert_close(logits[frame, concept], answer(module, one)[0], rtol=0, atol=1e-9)


# ---- Training


def loader(batches: Any) -> DataLoader:
    return DataLoader(batches, batch_size=None)


@both_models
@pytest.mark.parametrize("numbers", [[3, 3, 3], [1, 3, 2]], ids=["three", "random"])
def test_training_with_several_references(build: Any, numbers: list[int], tmp_path: Path) -> None:
    """Answers are put together in evaluation only: training attends to all tokens at once."""
    everything = tiny.extractor(post_mask=NoPostMasking())
    module = build(instruction=everything, reference_fusion=MajorityVote(), schedule=WarmupConstant(0))
    before = [weight.detach().clone() for weight in module.unet.parameters()]
    quiet: Any = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    run = L.Trainer(accelerator="cpu", default_root_dir=tmp_path, max_steps=3, enable_model_summary=False, **quiet)
    widths: list[int] = []
    module.unet.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    run.fit(module, loader([tiny.batch(2, references=k, seed=k) for k in numbers]))
    assert widths == [16 * k for k in numbers]
    assert float(run.callback_metrics["train/loss"]) > 0
    assert any(not torch.equal(old, new) for old, new in zip(before, module.unet.parameters(), strict=True))


@both_models
def test_every_reference_gets_a_gradient(build: Any) -> None:
    batch = tiny.batch(2, references=3)
    batch["reference_image"].requires_grad_()
    build().train().training_loss(batch)["loss"].backward()
    gradient = batch["reference_image"].grad
    assert gradient is not None
    assert bool((gradient.abs().amax((-1, -2, -3)) > 0).all())  # (2, 3)
