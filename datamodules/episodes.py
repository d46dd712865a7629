"""The datamodule: episodes for training, and evaluation sets, for Lightning."""

from collections.abc import Mapping
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from ldis_lightning.datamodules import augment
from ldis_lightning.datamodules.augment import Photometric
from ldis_lightning.datamodules.clip_stream import ClipFetch, ClipSteps
from ldis_lightning.datamodules.damage import LEDGER, DamagePolicy, Ledger, Quarantine, Substitutes
from ldis_lightning.datamodules.decode import FrameReader
from ldis_lightning.datamodules.evaluation_set import EvaluationSet, EvaluationSource
from ldis_lightning.datamodules.fetch import Collate, Fetch
from ldis_lightning.datamodules.geometry import RandomCrop, TrainingGeometry
from ldis_lightning.datamodules.manifest import Manifest
from ldis_lightning.datamodules.mixture import Mixing, MixturePlan, PerSample, part_seed
from ldis_lightning.datamodules.plan import TrainingPlan
from ldis_lightning.datamodules.pools import describe
from ldis_lightning.datamodules.prepare import DataPreparation
from ldis_lightning.datamodules.remote import Prefetch, ShardCache, needs_of_plan, open_index
from ldis_lightning.datamodules.remote.address import is_address
from ldis_lightning.datamodules.source import EpisodeSource, TrainingSource
from ldis_lightning.datamodules.stream import EvaluationLoader, EvaluationSteps, TrainingLoader, TrainingSteps, Workers
from ldis_lightning.datamodules.stream_state import check_state, stream_state
from ldis_lightning.episode import ClipBatch, EpisodeBatch
from ldis_lightning.errors import UserError
from ldis_lightning.evaluation.scoring import Scoreboard
from ldis_lightning.suggestions import did_you_mean


class EpisodeDataModule(LightningDataModule):
    """Streams training episodes and serves fixed evaluation sets.

    What a global batch holds depends on the data, the seed and its number alone; ranks and workers only decide who
    fetches it. A checkpoint stores how many batches were processed, and a resumed run continues with the next one, on
    any number of ranks.

    Args:
        train: where training episodes come from: one source, or a mixture, name -> source with its weight. Opened only
            to train; null where there is no training.
        evaluation: name -> where the episodes of an evaluation set come from, and by what protocol.
        only: names of the evaluation sets to use; null for all.
        mixing: what the weights of a mixture mean; null for PerSample, the paper's.
        image_size: side of the squares that the model sees, in pixels.
        references: K, references of an episode.
        fewest_references: in training every batch has a number of references of its own, uniform from this to
            `references`; null for always `references`.
        batch_size: episodes of a training step over all ranks.
        eval_batch_size: episodes of an evaluation step on one rank.
        batches_per_epoch: batches of what Lightning counts as an epoch; null for one pass over all queries.
        num_workers: loading processes of each rank.
        start_method: how they start: fork, spawn or forkserver; null for the platform's own.
        seed: seed of training. Evaluation does not depend on it.
        geometry: how training squares are cut; null for RandomCrop.
        augmentation: changes of colour in training; null for none.
        prepare: makes the data before it is opened; null where it exists.
        damage: what training does about samples that cannot be read; null for Quarantine. Evaluation stops at them.
        cache: where data sets with an address are kept on this machine; null for ShardCache.
        val_episodes: validation takes an even subset of so many episodes of each set; null for all. Tests take all.
        window_shards: shards from which the references of a training batch are drawn where they suffice.
    """

    def __init__(
        self,
        train: TrainingSource | dict[str, TrainingSource] | None = None,
        evaluation: dict[str, EvaluationSource] | None = None,
        only: list[str] | None = None,
        mixing: Mixing | None = None,
        image_size: int = 64,
        references: int = 1,
        fewest_references: int | None = None,
        batch_size: int = 16,
        eval_batch_size: int = 64,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        start_method: str | None = None,
        seed: int = 0,
        geometry: TrainingGeometry | None = None,
        augmentation: Photometric | None = None,
        prepare: DataPreparation | None = None,
        val_episodes: int | None = None,
        window_shards: int = 16,
        damage: DamagePolicy | None = None,
        cache: ShardCache | None = None,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "references": references, "batch_size": batch_size}
        sizes |= {"eval_batch_size": eval_batch_size, "window_shards": window_shards}
        sizes |= {"batches_per_epoch": batches_per_epoch, "val_episodes": val_episodes}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}, and must be 1 or more.")
        for name, value in {"seed": seed, "num_workers": num_workers}.items():
            if value < 0:
                raise UserError(f"data.{name} is {value}, and must not be negative.")
        if fewest_references is not None and not 1 <= fewest_references <= references:
            raise UserError(
                f"data.fewest_references is {fewest_references}, and must be in 1 .. {references} (references)."
            )
        if start_method not in (None, *get_all_start_methods()):
            raise UserError(f"data.start_method is {start_method!r}, and must be one of {get_all_start_methods()}.")
        self.train, self.mixing = train, mixing or PerSample()
        self.evaluation = _chosen(evaluation or {}, only)
        self.configured_sets = list(evaluation or {})
        self.image_size, self.references, self.fewest_references = image_size, references, fewest_references
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.batches_per_epoch, self.val_episodes, self.window_shards = batches_per_epoch, val_episodes, window_shards
        self.num_workers, self.start_method, self.seed = num_workers, start_method, seed
        self.geometry, self.augmentation, self.prepare = geometry or RandomCrop(), augmentation, prepare
        self.damage, self.cache = damage or Quarantine(), cache
        self.training_plan: TrainingPlan | MixturePlan | None = None
        self.evaluation_sets: dict[str, EvaluationSet] = {}
        self._loader: TrainingLoader | None = None
        self._ledger: Ledger | None = None
        self._loaded: Mapping[str, Any] = {}

    # ---- Opening the data

    @property
    def evaluation_names(self) -> list[str]:
        """Names of the evaluation sets, in the order of the validation and test loaders."""
        return list(self.evaluation)

    @property
    def manifests(self) -> dict[str, Manifest]:
        """The episodes of each evaluation set, as tested; after `setup`."""
        return {name: opened.manifest for name, opened in self.evaluation_sets.items()}

    def class_names(self, name: str) -> dict[int, str]:
        """Class id -> name in an evaluation set, after `setup`."""
        return self.evaluation_sets[name].index.classes

    def scoreboard(self, stage: str, name: str) -> Scoreboard:
        """What a model needs to score an evaluation set.

        Args:
            stage: `val`, which takes `val_episodes` of each set, or `test`.
            name: of the set.
        """
        return self._part(stage, name).scoreboard()

    @property
    def trained_on(self) -> dict[str, list[str]] | None:
        """Data set -> names of the classes that training draws, or drew for the loaded checkpoint; None if unknown."""
        if self.training_plan is None:
            known = self._loaded.get("trained_on")
            return known if isinstance(known, dict) else None
        classes: dict[str, list[str]] = {}
        for catalogue in self.training_plan.catalogues:
            names = [catalogue.index.classes[class_id] for class_id in catalogue.classes]
            classes[catalogue.index.name] = sorted({*classes.get(catalogue.index.name, []), *names})
        return classes

    def prepare_data(self) -> None:
        """Make the data, once a machine."""
        if self.prepare is not None:
            self.prepare.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the indexes and draw up the plans.

        Raises:
            UserError: a data set is missing or damaged, allows no episode, or the batch cannot be divided among the
                ranks.
        """
        if stage in (None, "fit"):
            self._ledger, self._loaded = None, {}  # Lightning restores a checkpoint after this hook
            self._check_world()
            if self.training_plan is None:
                self.training_plan = self._draw_up_training()
        if not self.evaluation_sets:
            self.evaluation_sets = {name: self._open_set(name) for name in self.evaluation}

    def _open_set(self, name: str) -> EvaluationSet:
        source = self.evaluation[name]
        try:
            return EvaluationSet.open(source, self.references, self.cache)
        except UserError as error:
            is_folder = not is_address(source.shards)
            missing = is_folder and not Path(source.shards).is_dir() and len(self.evaluation) > 1
            hint = " To test on some of the sets, name them: --data.only '[...]'." if missing else ""
            raise UserError(f"data.evaluation.{name}: {error}{hint}") from error

    def _draw_up_training(self) -> TrainingPlan | MixturePlan:
        """The training plan of the source or of the mixture.

        Raises:
            UserError: there is no source, or one is missing, damaged or allows no episode.
        """
        if not self.train:
            raise UserError("data.train names no data set, and training needs one.")
        if isinstance(self.train, dict):
            parts = {
                name: self._plan_of(source, part_seed(self.seed, number))
                for number, (name, source) in enumerate(self.train.items())
            }
            weights = np.array([source.weight for source in self.train.values()], np.float64)
            queries = np.array([len(plan) for plan in parts.values()])
            return MixturePlan(parts, self.mixing.shares(weights, queries), self.seed, self.batch_size)
        return self._plan_of(self.train, self.seed)

    def _plan_of(self, source: EpisodeSource, seed: int) -> TrainingPlan:
        index = open_index(source.shards, self.cache)
        return TrainingPlan(index, source, seed, self.batch_size, self.references, self.window_shards)

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers."""
        if self._loader is not None:
            self._loader.close()

    # ---- Training

    def train_dataloader(self) -> TrainingLoader:
        """The stream of training batches, in passes of `batches_per_epoch`. With a trainer, call it on all ranks."""
        plan = self._plan()
        length = self.batches_per_epoch or -(-len(plan) // self.batch_size)
        self._ledger = self._open_ledger()
        self._loader = TrainingLoader(
            length, self._first_batch, self._open_stream, self._ledger.note, self._fetch_ahead
        )
        return self._loader

    def state_dict(self) -> dict[str, Any]:
        """See `stream_state`; nothing where there is no training."""
        if self.training_plan is None:
            return {}
        damaged = self._ledger.entries() if self._ledger is not None else []
        return stream_state(self._processed(), self._identity(), self.trained_on, damaged)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember where to continue. Only training uses it, and then checks that the stream is the same."""
        self._loaded = state_dict if isinstance(state_dict, Mapping) else {"version": None}

    def _plan(self) -> TrainingPlan | MixturePlan:
        if self.training_plan is None:
            raise RuntimeError("call setup('fit') first")
        return self.training_plan

    def _identity(self) -> dict[str, Any]:
        """All that decides the training batches as the model gets them, but not what is done about damage."""
        return {
            **self._plan().identity(),
            "fewest_references": self.fewest_references,
            "image_size": self.image_size,
            "geometry": describe(self.geometry),
            "augmentation": None if self.augmentation is None else describe(self.augmentation),
        }

    def _first_batch(self) -> int:
        """Number of the next global batch.

        Raises:
            UserError: a checkpoint was loaded whose stream is another.
        """
        if self._loaded or (self.trainer is not None and self.trainer.ckpt_path):
            check_state(self._loaded, self._identity())
        return self._processed()

    def _processed(self) -> int:
        """Global batches processed so far, those before the loaded checkpoint included."""
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
            done = progress.total.processed  # a batch in flight when training stops is not counted
        else:
            done = self._loader.position if self._loader is not None else 0
        return max(self._loaded.get("batches", 0), done)

    def _open_stream(self, start: int) -> DataLoader:
        plan = self._plan()
        steps = TrainingSteps(plan, start, self.fewest_references, *self._rank_and_world())
        readers = [FrameReader(catalogue.index) for catalogue in plan.catalogues]
        treatments = [catalogue.treatment for catalogue in plan.catalogues]
        fetch = Fetch(readers, treatments, self.image_size, self.geometry, Substitutes(self.damage, plan))
        return self._workers().load(steps, fetch, Collate(evaluation=False))

    def _fetch_ahead(self, start: int) -> Prefetch:
        """Fetches remote shards of the coming windows; does nothing about others."""
        needs = needs_of_plan(self._plan(), start, *self._rank_and_world())
        return Prefetch(needs, ahead=self.window_shards)

    def _open_ledger(self) -> Ledger:
        """The list of damaged samples, in the folder of the run's first logger where there is one.

        Lightning broadcasts the folder from rank 0, so every rank must be here.
        """
        logs = self.trainer is not None and self.trainer.loggers
        folder = self.trainer.log_dir if self.trainer is not None and logs else None
        file = Path(folder) / LEDGER if folder else None
        earlier = self._loaded.get("damaged") if self._ledger is None else self._ledger.entries()
        first = self._rank_and_world()[0] == 0
        return Ledger(file, self.damage.budget, earlier if isinstance(earlier, list) else (), writes_earlier=first)

    # ---- Evaluation

    def val_dataloader(self) -> list[EvaluationLoader]:
        """One loader for each evaluation set, cut to `val_episodes`."""
        return [self._evaluation_loader(self._part("val", name)) for name in self.evaluation_sets]

    def test_dataloader(self) -> list[EvaluationLoader]:
        """One loader for each evaluation set."""
        return [self._evaluation_loader(whole) for whole in self.evaluation_sets.values()]

    def predict_dataloader(self) -> list[EvaluationLoader]:
        """As for tests; batches of clips also hold the original pictures."""
        return [self._evaluation_loader(whole, originals=True) for whole in self.evaluation_sets.values()]

    def _part(self, stage: str, name: str) -> EvaluationSet:
        """What a stage takes of an evaluation set."""
        return self.evaluation_sets[name].subset(self.val_episodes if stage == "val" else None)

    def _evaluation_loader(self, opened: EvaluationSet, originals: bool = False) -> EvaluationLoader:
        episodes, reader = opened.manifest.episodes, FrameReader(opened.index)
        if opened.protocol.by_clip:
            clips = ClipSteps(episodes, self.eval_batch_size, *self._rank_and_world())
            fetch_clips = ClipFetch(reader, opened.treatment, self.image_size, originals)
            return EvaluationLoader(self._workers(), len(clips), clips, fetch_clips)
        steps = EvaluationSteps(episodes, self.eval_batch_size, *self._rank_and_world())
        fetch = Fetch([reader], [opened.treatment], self.image_size)
        return EvaluationLoader(self._workers(), len(steps), steps, fetch, Collate(evaluation=True))

    # ---- On the device

    def on_after_batch_transfer(self, batch: EpisodeBatch | ClipBatch, dataloader_idx: int) -> EpisodeBatch | ClipBatch:
        """Lightning's hook: see `to_model_range`."""
        training = self.trainer is not None and bool(self.trainer.training)
        ready = augment.to_model_range(batch) if "context" in batch else self.to_model_range(batch, training)
        # Lightning has done this once, when images were not floating point yet.
        return ready if self.trainer is None else self.trainer.precision_plugin.convert_input(ready)

    def to_model_range(self, batch: EpisodeBatch, training: bool = False) -> EpisodeBatch:
        """Images from uint8 to float32 in [-1, 1], augmented when training."""
        return augment.to_model_range(batch, self.augmentation if training else None)

    # ---- Ranks and workers

    def _rank_and_world(self) -> tuple[int, int]:
        return (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)

    def _check_world(self) -> None:
        _, world = self._rank_and_world()
        if self.batch_size % world:
            raise UserError(
                f"data.batch_size is {self.batch_size}, the number of episodes over all ranks, and cannot be divided "
                f"among {world} ranks: make it a multiple of {world}."
            )

    def _workers(self) -> Workers:
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Workers(self.num_workers, self.start_method, pin_memory=on_gpu)


def _chosen(evaluation: dict[str, EvaluationSource], only: list[str] | None) -> dict[str, EvaluationSource]:
    """The evaluation sets to use."""
    for name in evaluation:
        if "." in name or "/" in name:
            raise UserError(f"data.evaluation: `{name}` becomes part of a metric's name; no dots or slashes in it.")
    for name in only or ():
        if name not in evaluation:
            hint = did_you_mean(name, evaluation)
            raise UserError(f"data.only: there is no set `{name}`{hint}; there are {', '.join(evaluation)}.")
    return evaluation if only is None else {name: evaluation[name] for name in evaluation if name in only}
