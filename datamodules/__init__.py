"""The data side: shards and their index, the episode plan, fetching, geometry and augmentation, the datamodule.

Names are looked up when they are first used, so that data commands and the workers of a loader start without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "ldis_lightning.datamodules":
    # A second name would make a second copy of every class, which no isinstance check would recognise.
    raise ImportError(f"`import {__name__}` found the folder of a checkout: import ldis_lightning.datamodules instead.")

if TYPE_CHECKING:
    from ldis_lightning.datamodules.augment import Photometric
    from ldis_lightning.datamodules.damage import DamagedSample, DamagePolicy, Quarantine, Raise
    from ldis_lightning.datamodules.episodes import EpisodeDataModule
    from ldis_lightning.datamodules.evaluation_set import EvaluationSet, EvaluationSource
    from ldis_lightning.datamodules.geometry import RandomCrop, TrainingGeometry, WholePicture
    from ldis_lightning.datamodules.index import ShardIndex
    from ldis_lightning.datamodules.manifest import Manifest
    from ldis_lightning.datamodules.mixture import Mixing, MixturePlan, PerDataset, PerSample
    from ldis_lightning.datamodules.pairing import AcrossImages, FirstFrame, Itself, Pairing, WithinClip
    from ldis_lightning.datamodules.plan import TrainingPlan
    from ldis_lightning.datamodules.prepare import DataPreparation
    from ldis_lightning.datamodules.protocol import Protocol
    from ldis_lightning.datamodules.protocols import (
        BAMCOCO,
        BAMPASCAL,
        DAVIS,
        FSS1000,
        VSPW,
        Absence,
        FewShot,
        HSNetCOCO,
        HSNetPASCAL,
        OnePass,
        PFENetCOCO,
        PFENetPASCAL,
    )
    from ldis_lightning.datamodules.remote import ShardCache, open_index
    from ldis_lightning.datamodules.shards import ShardWriter
    from ldis_lightning.datamodules.source import Episode, EpisodeSource, TrainingSource
    from ldis_lightning.datamodules.synthetic import SyntheticWorld
    from ldis_lightning.datamodules.treatment import Hidden, Intact, ReferenceTreatment, ShiftedMask, Swapped

__all__ = [
    "BAMCOCO",
    "BAMPASCAL",
    "DAVIS",
    "FSS1000",
    "VSPW",
    "Absence",
    "AcrossImages",
    "DamagePolicy",
    "DamagedSample",
    "DataPreparation",
    "Episode",
    "EpisodeDataModule",
    "EpisodeSource",
    "EvaluationSet",
    "EvaluationSource",
    "FewShot",
    "FirstFrame",
    "HSNetCOCO",
    "HSNetPASCAL",
    "Hidden",
    "Intact",
    "Itself",
    "Manifest",
    "Mixing",
    "MixturePlan",
    "OnePass",
    "PFENetCOCO",
    "PFENetPASCAL",
    "Pairing",
    "PerDataset",
    "PerSample",
    "Photometric",
    "Protocol",
    "Quarantine",
    "Raise",
    "RandomCrop",
    "ReferenceTreatment",
    "ShardCache",
    "ShardIndex",
    "ShardWriter",
    "ShiftedMask",
    "Swapped",
    "SyntheticWorld",
    "TrainingGeometry",
    "TrainingPlan",
    "TrainingSource",
    "WholePicture",
    "WithinClip",
    "open_index",
]
_HOMES = (  # in the order of search: what is slow to import comes last
    "pairing",
    "treatment",
    "source",
    "prepare",
    "index",
    "shards",
    "plan",
    "mixture",
    "manifest",
    "protocols",
    "evaluation_set",
    "synthetic",
    "remote",
    "damage",
    "geometry",
    "augment",
    "episodes",
)


def __getattr__(name: str) -> Any:
    if name in __all__:
        for home in _HOMES:
            module = import_module(f"{__name__}.{home}")
            if hasattr(module, name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
