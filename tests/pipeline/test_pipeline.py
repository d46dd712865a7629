"""What the pipeline computes: what `ldis test` does, for each query alone, at its own size."""

import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import many_steps, mask, one_step, picture
from tiny import PICTURE

from ldis_lightning.datamodules import EpisodeDataModule, EvaluationSource, ShardWriter
from ldis_lightning.datamodules.augment import to_model_range
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.fusion import concept_probabilities, fuse_concepts
from ldis_lightning.evaluation.scoring import restore_logits
from ldis_lightning.instruction import MajorityVote, MeanLogits
from ldis_lightning.pipeline import InContextSegmentationPipeline

CLASSES = {1: "ring", 2: "star"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and aspect ratios, with two classes in each."""
    folder = tmp_path_factory.mktemp("pipeline") / "set"
    with ShardWriter(folder, "mixed", CLASSES) as writer:
        for number, (height, width) in enumerate([(48, 70), (90, 41), (32, 32), (64, 33), (31, 80), (50, 50)]):
            labels = np.zeros((height, width), np.uint8)
            labels[4 : height // 2, 5:20], labels[height // 2 :, -12:] = 1, 2
            labels[-1] = 255
            jpg, png = BytesIO(), BytesIO()
            Image.fromarray(picture(height, width, number)).save(jpg, "JPEG", quality=90)
            Image.fromarray(labels).save(png, "PNG")
            writer.add_image(f"p{number}", jpg.getvalue(), png.getvalue())
    return folder


@pytest.mark.parametrize("make", [one_step, many_steps], ids=["LDIS-1", "LDIS-n"])
@pytest.mark.parametrize("fusion", [None, MeanLogits()], ids=["tokens", "answers"])
def test_it_computes_what_ldis_test_does(make: Any, fusion: Any, shards: Path) -> None:
    pipe = make(reference_fusion=fusion)
    data = EpisodeDataModule(
        evaluation={"mixed": EvaluationSource(str(shards), references=2)},
        image_size=PICTURE,
        eval_batch_size=4,
        num_workers=0,
    )
    data.setup("test")
    index = ShardIndex.open(shards)
    reader = FrameReader(index)
    rows = {index.key(row): row for row in range(len(index))}
    compared = 0
    loader: Any = data.test_dataloader()
    for batch in loader[0] if isinstance(loader, list) else loader:
        batch = to_model_range(batch)
        with torch.inference_mode():
            logits = pipe.model.batch_logits(batch)
        for number, meta in enumerate(batch["meta"]):
            expected = restore_logits(logits[number], meta["content"], meta["original_size"])
            shown = [reader.read(rows[key]) for key in meta["reference_keys"]]
            class_id = int(batch["class_id"][number])
            masks = [labels == class_id for _, labels in shown]
            context = pipe.encode([image for image, _ in shown], masks)
            query, _ = reader.read(rows[meta["query_key"]])
            found = pipe(query, context, seed=int(batch["seed"][number])).logits[0]
            assert found.shape == meta["original_size"]
            torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-5, rtol=1e-4)
            compared += 1
    assert compared == 6 and len({picture.shape for picture, _ in map(reader.read, range(len(index)))}) == 6


@pytest.mark.parametrize("make", [one_step, many_steps], ids=["LDIS-1", "LDIS-n"])
def test_a_query_does_not_depend_on_its_neighbours(make: Any) -> None:
    pipe = make()
    context = pipe.encode({"a": (picture(), mask()), "b": (picture(seed=1), mask())})
    queries = [picture(20 + 5 * i, 50 - 3 * i, 10 + i) for i in range(5)]
    together = pipe(queries, context, batch_size=10).logits
    for batch_size in (1, 3, 4):
        again = pipe(list(reversed(queries)), context, batch_size=batch_size).logits[::-1]
        for one, other, query in zip(together, again, queries, strict=True):
            assert one.shape == (2, *query.shape[:2])
            np.testing.assert_allclose(one, other, atol=2e-5, rtol=1e-4)


def test_a_concept_does_not_depend_on_the_others() -> None:
    pipe = one_step()
    pairs = {"a": (picture(), mask()), "b": ([picture(seed=1), picture(seed=2)], [mask(), mask()])}
    both = pipe(picture(seed=3), pipe.encode(pairs))
    for number, pair in enumerate(pairs.values()):
        alone = pipe(picture(seed=3), pipe.encode(*pair))
        np.testing.assert_allclose(both.logits[0][number], alone.logits[0], atol=2e-5)
    assert not np.allclose(both.logits[0][0], both.logits[0][1], atol=1e-3)


def test_several_concepts_are_fused_by_equation_7() -> None:
    pipe = one_step()
    context = pipe.encode({"a": (picture(), mask()), "b": (picture(seed=1), mask())})
    out = pipe([picture(33, 21, seed=3)], context)
    logits = torch.from_numpy(out.logits[0])
    assert out.masks[0].shape == (2, 33, 21) and out.masks[0].dtype == bool and out.labels[0].shape == (33, 21)
    np.testing.assert_array_equal(out.labels[0], fuse_concepts(logits[None])[0])
    np.testing.assert_allclose(out.probabilities[0], concept_probabilities(logits[None])[0, 1:], rtol=1e-6)
    np.testing.assert_array_equal(out.masks[0][1], out.labels[0] == 2)
    middle = float(logits.amax(0).median())
    raised = pipe([picture(33, 21, seed=3)], context, threshold=middle)
    np.testing.assert_array_equal(raised.labels[0] > 0, (logits > middle).any(0))


def test_one_concept_without_a_name_has_no_axis_of_concepts() -> None:
    pipe = one_step()
    out = pipe(picture(25, 37), pipe.encode(picture(), mask()))
    assert {out.masks[0].shape, out.logits[0].shape, out.probabilities[0].shape} == {(25, 37)}
    np.testing.assert_allclose(out.probabilities[0], 1 / (1 + np.exp(-out.logits[0])), rtol=1e-5)
    np.testing.assert_array_equal(out.masks[0], out.logits[0] > 0)
    np.testing.assert_array_equal(out["masks"][0], out[0][0])  # as diffusers' outputs are read


def test_label_maps_are_several_concepts() -> None:
    pipe = one_step()
    labels = np.zeros((40, 30), np.uint8)
    labels[5:15, 3:20], labels[20:30, 10:25], labels[-1] = 4, 9, 255
    context = pipe.encode(picture(), labels, names={4: "cat", 9: "dog"})
    assert context.names == ("cat", "dog") and len(context) == 2
    by_name = pipe.encode({"cat": (picture(), labels == 4), "dog": (picture(), labels == 9)})
    for one, other in zip(context.parts, by_name.parts, strict=True):
        torch.testing.assert_close(one.tokens, other.tokens)


def test_references_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = one_step()
    calls = []
    encoder: Any = pipe.model.instruction.encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda prompt: calls.append(len(prompt.image)) or forward(prompt))
    context = pipe.encode([picture(), picture(seed=1)], [mask(), mask()])
    pipe([picture(seed=2)] * 3, context, batch_size=2)
    pipe(picture(seed=3), context.to("cpu"))
    assert calls == [2]


def test_references_that_answer_for_themselves() -> None:
    pipe = one_step(reference_fusion=MajorityVote())
    pair = ([picture(seed=1), picture(seed=2), picture(seed=3)], [mask()] * 3)
    both = pipe(picture(), pipe.encode({"a": (picture(), mask()), "b": pair})).logits[0]  # K of 1 and of 3
    np.testing.assert_allclose(both[1], pipe(picture(), pipe.encode(*pair)).logits[0], atol=1e-6)


# ---- Tiles


def test_tiles_answer_as_the_pictures_that_they_are() -> None:
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    large = picture(64, 48, seed=5)
    whole = pipe(large, context, tile=64).logits[0]
    np.testing.assert_array_equal(whole, pipe(large, context).logits[0])  # no larger than a tile
    tiled = pipe(large, context, tile=32, batch_size=3).logits[0]
    assert tiled.shape == (64, 48) and np.isfinite(tiled).all()
    corner = pipe(large[:32, :32], context).logits[0]
    np.testing.assert_allclose(tiled[0, 0], corner[0, 0], atol=1e-5)  # where one tile alone has a say
    np.testing.assert_allclose(tiled, pipe(large, context, tile=32, batch_size=1).logits[0], atol=1e-4)


def test_queries_keep_their_order_between_tiles() -> None:
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    queries = [picture(20, 20, 1), picture(20, 21, 2), picture(70, 40, 3), picture(20, 22, 4)]
    shapes = [logits.shape for logits in pipe(queries, context, tile=32, batch_size=2).logits]
    assert shapes == [query.shape[:2] for query in queries]


# ---- LDIS-n


def test_steps_guidance_and_seed_are_of_the_call() -> None:
    pipe = many_steps(steps=3)
    context = pipe.encode(picture(), mask())
    plain = pipe(picture(seed=1), context).logits[0]
    for changed in ({"steps": 2}, {"guidance": (1.0, 1.0)}, {"seed": 5}):
        assert not np.allclose(pipe(picture(seed=1), context, **changed).logits[0], plain, atol=1e-4), changed
    np.testing.assert_array_equal(pipe(picture(seed=1), context).logits[0], plain)
    assert pipe.model.steps == 3


def test_the_denoising_can_be_watched() -> None:
    pipe = many_steps(steps=3)
    context = pipe.encode(picture(), mask())
    seen: list[tuple[int, int, np.ndarray]] = []
    watched = pipe(
        [picture(30, 20)] * 2,
        context,
        on_step=lambda step, steps, results: seen.append((step, steps, results[1].logits)),
    )
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(logits.shape == (30, 20) for _, _, logits in seen)
    np.testing.assert_allclose(seen[-1][2], watched.logits[1], atol=1e-4)  # DDIM ends at what it expects
    assert not np.allclose(seen[0][2], seen[-1][2], atol=1e-3) and pipe.model.on_step is None


def test_two_callers_at_once_do_not_disturb_each_other() -> None:
    pipe = many_steps(steps=2)
    context = pipe.encode(picture(), mask())
    expected = {steps: pipe(picture(seed=1), context, steps=steps).logits[0] for steps in (1, 4)}
    found: dict[int, list[Any]] = {1: [], 4: []}

    def call(steps: int) -> None:
        for _ in range(4):
            found[steps].append(pipe(picture(seed=1), context, steps=steps).logits[0])

    threads = [threading.Thread(target=call, args=(steps,)) for steps in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for steps, results in found.items():
        assert len(results) == 4
        for result in results:
            np.testing.assert_array_equal(result, expected[steps])


# ---- Precision and compilation


def test_bfloat16_is_near_float32() -> None:
    pipe = one_step()
    exact = pipe(picture(seed=1), pipe.encode(picture(), mask())).logits[0]
    assert pipe.to(torch.bfloat16) is pipe and pipe.dtype == torch.bfloat16
    assert pipe.model.unet.dtype == torch.bfloat16
    rough = pipe(picture(seed=1), pipe.encode(picture(), mask())).logits[0]
    assert rough.dtype == np.float32 and not np.array_equal(rough, exact)
    assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_a_context_outlives_a_cast() -> None:
    pipe = one_step().to(torch.bfloat16)
    context = pipe.encode(picture(), mask())
    rough = pipe(picture(seed=1), context).logits[0]
    exact = pipe.to(torch.float32)(picture(seed=1), context).logits[0]
    assert np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    "make", [pytest.param(one_step, id="LDIS-1"), pytest.param(many_steps, id="LDIS-n", marks=pytest.mark.slow)]
)
def test_a_compiled_pipeline_gives_the_same(make: Any) -> None:
    pipe = make()
    context = pipe.encode(picture(), mask())
    plain = pipe([picture(seed=1), picture(seed=2)], context).logits
    names = list(pipe.model.state_dict())
    pipe.compile(backend="aot_eager")  # traces as the default does, and writes no code
    again = pipe([picture(seed=1), picture(seed=2)], pipe.encode(picture(), mask())).logits
    assert any(module._compiled_call_impl is not None for module in pipe.model.unet.modules())
    assert list(pipe.model.state_dict()) == names
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


# ---- Mistakes


def test_settings_that_cannot_be() -> None:
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    for settings, message in [
        ({"tresh": 1}, "did you mean `threshold`"),
        ({"batch_size": 0}, "batch_size: a whole number from 1"),
        ({"tile": 3}, "tile: a whole number from 16"),
        ({"seed": -1}, "seed"),
        ({"threshold": float("nan")}, "threshold: a number"),
        ({"threshold": np.float32("inf")}, "threshold: a number"),
        ({"guidance": 7.5}, "guidance: two numbers are needed"),
        ({"guidance": ("a", "b")}, "guidance: two numbers are needed"),
        ({"guidance": (1.0, float("nan"))}, "guidance: two numbers are needed"),
        ({"steps": 5}, "steps: this model is an LDIS-1, which takes one step"),
        ({"guidance": (1.0, 2.0)}, "guidance: this model is an LDIS-1"),
    ]:
        with pytest.raises(UserError, match=message):
            pipe(picture(), context, **settings)
    of_numpy = {"threshold": np.float32(0.5), "batch_size": np.int64(2), "seed": np.uint8(1)}
    assert pipe(picture(), context, **of_numpy).masks[0].shape == (40, 30)
    with pytest.raises(UserError, match="encoded by another pipeline"):
        one_step()(picture(), context)
    with pytest.raises(UserError, match="what `encode` returns is needed, got a list"):
        pipe(picture(), [picture()])  # pyright: ignore[reportArgumentType]


def test_devices_and_types_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pipe: InContextSegmentationPipeline = one_step()
    with pytest.raises(UserError, match="torch finds no GPU here"):
        pipe.to("cuda")
    with pytest.raises(UserError, match="`gpu` is none"):
        pipe.to("gpu")
    with pytest.raises(UserError, match="torch cannot use `xpu:9` here"):
        pipe.to("xpu:9")
    with pytest.raises(UserError, match="nothing is computed on `meta`"):
        pipe.to("meta")
    with pytest.raises(UserError, match=r"torch\.float32 or torch\.bfloat16, not torch\.float16"):
        pipe.to(torch.float16)
    assert pipe.to("cpu").device.type == "cpu"


def test_a_stream_goes_on_after_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    pipe = one_step()
    context = pipe.encode(picture(), mask())
    queries = [picture(), tmp_path / "text.png", picture(21, 22)]
    with pytest.raises(UserError, match=r"text\.png is no picture"):
        list(pipe.stream(queries, context))
    errors: list[Any] = []
    results = list(pipe.stream(queries, context, on_error=lambda source, error: errors.append((source, str(error)))))
    assert [result.picture.shape for result in results] == [(40, 30, 3), (21, 22, 3)]
    assert [source for source, _ in errors] == [tmp_path / "text.png"] and "is no picture" in errors[0][1]
