"""The pipeline: from pictures with masks of a concept to the masks of that concept in other pictures."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldis_lightning.conversion.building import Spec, build
from ldis_lightning.conversion.folder import write_folder
from ldis_lightning.errors import UserError, first_line
from ldis_lightning.evaluation.rows import ResultRow
from ldis_lightning.execution import blocks
from ldis_lightning.meta_architectures import LDIS1, LDISn
from ldis_lightning.meta_architectures.base import InContextSegmenter
from ldis_lightning.pipeline.card import model_card
from ldis_lightning.pipeline.context import Context
from ldis_lightning.pipeline.encoding import Several, as_list, read_concepts, reference_squares
from ldis_lightning.pipeline.engine import Engine
from ldis_lightning.pipeline.inputs import PictureLike, Pixels, read_picture
from ldis_lightning.pipeline.results import Segmentation, SegmentationOutput
from ldis_lightning.pipeline.settings import Settings, chosen
from ldis_lightning.pipeline.source import find_model, read_model
from ldis_lightning.pipeline.tiles import Blend, tile_boxes
from ldis_lightning.pipeline.video import frames_of


@dataclass(frozen=True)
class Query:
    """A query that has been read."""

    picture: Pixels  # (H0, W0, 3)
    source: Any

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.shape[0], self.picture.shape[1]


class InContextSegmentationPipeline:
    """Segments pictures by example.

    ```python
    pipe = InContextSegmentationPipeline.from_pretrained("tiny")
    context = pipe.encode("reference.jpg", "mask.png")
    masks = pipe(["query-1.jpg", "query-2.jpg"], context).masks
    ```

    It has the habits of diffusers' pipelines (`from_pretrained`, `save_pretrained`, `push_to_hub`, `to`, `components`)
    and is none of them: `DiffusionPipeline` describes a model by a `model_index.json`, whose parts must load in
    diffusers' own way. Prompt encoder, pre-mask, post-mask and pseudo-mask do not, and the folder of `ldis convert`
    describes them already. So that is the one format; `ldis test --config FOLDER/config.yaml` scores the same folder.

    What comes out for a query is what `ldis test` and `ldis predict` compute for the same episode: the long side
    becomes the model's size, mid-grey pads the rest, and the padding is cut off before the logits are resized to the
    query's size. It depends neither on the other queries nor on `batch_size`, beyond rounding. Pictures are turned
    upright by their EXIF orientation, and results fit them as they are then.

    Calls from several threads wait for each other, batch by batch.

    Args:
        model: an `LDIS1` or `LDISn`.
        image_size: side of the squares that it sees, in pixels.
        spec: what the model was built from; without it, it cannot be saved.
    """

    def __init__(self, model: InContextSegmenter, image_size: int, spec: Spec | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.image_size = image_size
        self._spec = spec
        self._engine = Engine(self.model, image_size)
        self._identity = uuid.uuid4().hex

    # ---- Where it comes from and goes to

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        torch_dtype: torch.dtype = torch.float32,
        revision: str | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        trust_classes: bool = False,
    ) -> InContextSegmentationPipeline:
        """A pipeline on the CPU.

        Nothing in the folder is executed: its config may name components of this package, schedulers of diffusers and
        optimizers of torch, and weights are read from safetensors inside the folder alone.

        Args:
            source: a folder of `ldis convert` or `save_pretrained`, `tiny` for the model that comes with the package,
                or a hub id.
            torch_dtype: `torch.float32` or `torch.bfloat16`, in which weights are held and networks compute.
            revision: branch, tag or commit on the hub.
            token: for the hub.
            local_files_only: take what the hub's cache has.
            trust_classes: import whatever the folder's config names, and read whatever files it names. Only for a
                folder that you would run a program of.

        Raises:
            UserError: there is no such model, it is damaged, or it asks for more than it may.
        """
        folder = find_model(source, revision, token, local_files_only)
        spec, image_size = read_model(folder, trust_classes)
        return cls(build(spec), image_size, spec).to(torch_dtype)

    def save_pretrained(
        self, folder: str | os.PathLike[str], *, rows: Sequence[ResultRow] = (), overwrite: bool = False
    ) -> None:
        """Write the model as a folder of safetensors with its config and a card (README.md): all of it or nothing.

        Args:
            folder: where to.
            rows: of `ldis test` (`ldis_lightning.evaluation.rows.read_rows`), which the card shows.
            overwrite: replace a folder of this kind.

        Raises:
            UserError: it may not be written there, or the pipeline was not made by `from_pretrained`, or is not, or
                was once not, in float32.
        """
        out = Path(folder).expanduser().absolute()
        self._write(out, out.name, rows, overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        rows: Sequence[ResultRow] = (),
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str = "Add an in-context segmentation model",
    ) -> str:
        """Upload the folder of `save_pretrained` to the hub, and make the repository where there is none.

        Args:
            repo_id: `owner/name`.
            rows: see `save_pretrained`.
            private: of a new repository.
            token: for the hub; None for the one that `hf auth login` keeps.
            revision: branch to commit to.
            commit_message: of the commit.

        Returns:
            The commit's address.

        Raises:
            UserError: as `save_pretrained`, or the hub does not take it.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "model")
            self._write(folder, repo_id, rows, overwrite=False)
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                done = api.upload_folder(
                    repo_id=repo_id, folder_path=str(folder), revision=revision, commit_message=commit_message
                )
            except Exception as error:  # the errors of its network clients have no class in common
                raise UserError(f"the hub does not take `{repo_id}` ({first_line(error)}).") from error
        return str(getattr(done, "commit_url", done))

    def _write(self, folder: Path, name: str, rows: Sequence[ResultRow], overwrite: bool) -> None:
        if self._spec is None:
            raise UserError("only a pipeline of from_pretrained can be saved: this one was made of parts.")
        if self.dtype != torch.float32:
            raise UserError(f"weights are saved in float32, and these are {self.dtype}: load them without torch_dtype.")
        if self._engine.rounded:
            raise UserError(
                "weights are saved as they were trained, and these were rounded to bfloat16: load them again."
            )
        card = model_card(name, self.model, self.image_size, rows)
        with self._engine.lock:
            try:
                write_folder(self.model, self._spec, self.image_size, folder, overwrite, card)
            finally:  # safetensors takes contiguous tensors alone
                nn.Module.to(self.model.autoencoder.vae, memory_format=torch.channels_last)  # pyright: ignore

    # ---- Where and how it computes

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        """In which weights are held and networks compute."""
        return self._engine.dtype

    @property
    def components(self) -> dict[str, nn.Module]:
        """The networks by name."""
        parts: dict[str, nn.Module] = {"unet": self.model.unet, "vae": self.model.autoencoder.vae}
        return {**parts, "prompt_encoder": self.model.instruction.encoder}

    def to(self, *args: str | torch.device | torch.dtype) -> InContextSegmentationPipeline:
        """Move to a device (`"cuda"`, `"mps"`, `"cpu"`) or a dtype (`torch.float32`, `torch.bfloat16`), or both.

        Returns:
            The pipeline itself.

        Raises:
            UserError: there is no such device here, or another dtype is asked for.
        """
        with self._engine.lock:
            for argument in args:
                if isinstance(argument, torch.dtype):
                    self._engine.cast(argument)
                else:
                    self.model.to(_device(argument))
        return self

    def compile(self, **options: Any) -> InContextSegmentationPipeline:
        """`torch.compile` the networks, in place. The first calls take minutes; results stay the same but for rounding.

        Args:
            options: of `torch.compile`.

        Returns:
            The pipeline itself.
        """
        networks = (self.model.autoencoder, self.model.instruction.encoder)
        for module in (*blocks(self.model.unet), *(stage for network in networks for stage in network.stages)):
            module.compile(**options)
        self.model.execution = replace(self.model.execution, compile=True)
        return self

    def export_onnx(self, folder: str | os.PathLike[str], overwrite: bool = False) -> list[Path]:
        """Write the one-step model as ONNX: see `ldis_lightning.pipeline.onnx_export`."""
        from ldis_lightning.pipeline.onnx_export import export

        with self._engine.lock:
            return export(self, Path(folder), overwrite)

    # ---- What it does

    def encode(
        self,
        references: Several | Mapping[str, tuple[Several, Several]],
        masks: Several | None = None,
        *,
        names: Mapping[int, str] | None = None,
    ) -> Context:
        """Encode what to look for, once for any number of queries.

        ```python
        pipe.encode("cat.jpg", "cat.png")                              # one concept, one reference
        pipe.encode(["a.jpg", "b.jpg"], ["a.png", "b.png"])            # one concept, two references
        pipe.encode({"cat": ("a.jpg", "a.png"), "dog": ([...], [...])})  # several concepts
        pipe.encode("a.jpg", "labels.png", names={1: "cat", 2: "dog"})   # several, in one label map
        ```

        Args:
            references: pictures (see `read_picture`), one or K; or concept name -> (references, masks).
            masks: for each reference, its mask (see `read_mask`) of its size, or label map.
            names: the masks are label maps, and these of their labels are concepts.

        Raises:
            UserError: a picture cannot be read, a mask is empty or of another size, or a concept is shown nowhere.
        """
        concepts = read_concepts(references, masks, names)
        parts = []
        for concept in concepts:
            images, marked = reference_squares(concept, self.image_size)
            parts.append(self._engine.instruction(images, marked))
        counts = tuple(len(concept.references) for concept in concepts)
        return Context(tuple(parts), counts, tuple(concept.name for concept in concepts), self._identity)

    def __call__(self, queries: Several, context: Context, **settings: Any) -> SegmentationOutput:
        """Segment pictures.

        Args:
            queries: a picture or a list of them (see `read_picture`).
            context: of `encode`.
            settings: see `Settings`.

        Returns:
            Lists with an entry a query, also where there is one.

        Raises:
            UserError: a picture cannot be read, or a setting is wrong.
        """
        return SegmentationOutput.of(list(self.stream(as_list(queries), context, **settings)))

    def video(
        self, frames: str | os.PathLike[str] | Iterable[PictureLike], context: Context, **settings: Any
    ) -> Generator[Segmentation, None, None]:
        """Segment a video, frame by frame: memory does not grow with its length.

        Args:
            frames: a video file, a folder of pictures in the order of their names, or pictures.
            context: of `encode`.
            settings: see `Settings`.

        Yields:
            The result of each frame, in order.

        Raises:
            UserError: there is no such video, or it does not decode to its end.
        """
        return self.stream(frames_of(frames), context, **settings)

    def stream(
        self,
        queries: Iterable[PictureLike],
        context: Context,
        *,
        on_error: Callable[[PictureLike, UserError], object] | None = None,
        **settings: Any,
    ) -> Generator[Segmentation, None, None]:
        """Segment any number of pictures, one after the other: memory does not grow with their number.

        Args:
            queries: pictures (see `read_picture`).
            context: of `encode`.
            on_error: told of a picture that cannot be read, which is then left out; None raises.
            settings: see `Settings`.

        Yields:
            The result of each query, in order.

        Raises:
            UserError: see `on_error`; a setting is wrong, or the context is another pipeline's.
        """
        checked = chosen(settings)
        self._check(context, checked)
        return self._stream(_read(queries, on_error), context.to(self.device), checked)

    def _stream(
        self, queries: Iterator[Query], context: Context, settings: Settings
    ) -> Generator[Segmentation, None, None]:
        waiting: list[Query] = []
        broken: list[UserError] = []
        most = max(1, settings.batch_size // len(context))
        for query in _until_broken(queries, broken):
            tiled = settings.tile is not None and max(query.size) > settings.tile
            if tiled or len(waiting) == most:
                yield from self._segment(waiting, context, settings)
                waiting = []
            if tiled:
                yield self._segment_tiled(query, context, settings)
            else:
                waiting.append(query)
        yield from self._segment(waiting, context, settings)
        if broken:
            raise broken[0]

    def _segment(self, queries: Sequence[Query], context: Context, settings: Settings) -> list[Segmentation]:
        """Queries at once, each as a whole."""
        if not queries:
            return []

        def results(logits: Tensor) -> list[Segmentation]:  # (Q, C, S, S)
            return [
                _result(query, self._engine.restored(of_query, query.size), context, settings)
                for query, of_query in zip(queries, logits, strict=True)
            ]

        squares = self._engine.squares([query.picture for query in queries])
        return results(self._engine.logits(squares, context, settings, results))

    def _segment_tiled(self, query: Query, context: Context, settings: Settings) -> Segmentation:
        assert settings.tile is not None
        boxes = tile_boxes(query.size, settings.tile)
        blend = Blend(len(context), query.size)
        most = max(1, settings.batch_size // len(context))
        for start in range(0, len(boxes), most):
            some = boxes[start : start + most]
            parts = [query.picture[top : top + height, left : left + width] for top, left, height, width in some]
            for box, logits in zip(
                some, self._engine.logits(self._engine.squares(parts), context, settings), strict=True
            ):
                blend.add(box, self._engine.restored(logits, box[2:]))
        return _result(query, blend.result(), context, settings)

    def _check(self, context: Context, settings: Settings) -> None:
        if not isinstance(context, Context):
            raise UserError(f"context: what `encode` returns is needed, got a {type(context).__name__}.")
        if context.model != self._identity:
            raise UserError("context: it was encoded by another pipeline, whose tokens mean nothing to this one.")
        if isinstance(self.model, LDISn):
            if settings.on_step is not None and len(context) > settings.batch_size:
                raise UserError("on_step: all concepts must be computed at once: raise batch_size.")
            if settings.on_step is not None and self.model.reference_fusion.separate:
                raise UserError(
                    f"on_step: {type(self.model.reference_fusion).__name__} has an answer at the end alone."
                )
            return
        for name in ("steps", "guidance", "on_step"):
            if getattr(settings, name) is not None:
                kind = "LDIS-1" if isinstance(self.model, LDIS1) else type(self.model).__name__
                raise UserError(
                    f"{name}: this model is an {kind}, which takes one step without guidance: leave it out."
                )


def _result(query: Query, logits: Tensor, context: Context, settings: Settings) -> Segmentation:
    return Segmentation(logits.numpy(), context.names, settings.threshold, query.picture, query.source)


def _read(
    queries: Iterable[PictureLike], on_error: Callable[[PictureLike, UserError], object] | None
) -> Iterator[Query]:
    for number, source in enumerate(queries, start=1):
        try:
            picture = read_picture(source, f"query {number}")
        except UserError as error:
            if on_error is None:
                raise
            on_error(source, error)
            continue
        yield Query(picture, source)


def _until_broken(queries: Iterator[Query], broken: list[UserError]) -> Iterator[Query]:
    """Queries up to one that cannot be read, whose error is put into `broken`: those before it still have to be
    computed."""
    try:
        yield from queries
    except UserError as error:
        broken.append(error)


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"device: `{name}` is none; use cpu, cuda or mps.") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("device: torch finds no GPU here; use cpu.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: torch finds no Metal (mps) here; use cpu.")
    if device.type == "meta":
        raise UserError("device: nothing is computed on `meta`; use cpu, cuda or mps.")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # such as a second GPU where there is one
        raise UserError(f"device: torch cannot use `{name}` here ({first_line(error)}); use another.") from error
    return device
