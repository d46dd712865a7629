"""An evaluation set: a data set, the rules and the protocol of its episodes, and the list that follows from them."""

from dataclasses import dataclass, fields, replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from ldis_lightning.datamodules.index import ShardIndex
from ldis_lightning.datamodules.manifest import Manifest
from ldis_lightning.datamodules.pools import Catalogue, describe
from ldis_lightning.datamodules.protocol import Protocol
from ldis_lightning.datamodules.protocols import PROTOCOLS, OnePass
from ldis_lightning.datamodules.remote import open_index
from ldis_lightning.datamodules.source import EpisodeSource
from ldis_lightning.datamodules.treatment import Intact, ReferenceTreatment
from ldis_lightning.errors import UserError

if TYPE_CHECKING:  # the data commands draw manifests and should not wait for torch
    from ldis_lightning.datamodules.remote import ShardCache
    from ldis_lightning.evaluation.scoring import Scoreboard


@dataclass
class EvaluationSource(EpisodeSource):
    """Where the episodes of an evaluation set come from; otherwise as `EpisodeSource`.

    Args:
        protocol: how they are drawn and scored; null for OnePass, the paper's.
        references: K, references of an episode; null for that of the datamodule.
        manifest: a file of `ldis data episodes` with the episodes, instead of drawing them.
        shards: see `EpisodeSource`, as are pairing, treatment, classes, min_pixels, episodes and seed.
    """

    protocol: Protocol | None = None
    references: int | None = None
    manifest: str | None = None


@dataclass(frozen=True)
class EvaluationSet:
    """An opened evaluation set."""

    index: ShardIndex
    manifest: Manifest
    protocol: Protocol
    treatment: ReferenceTreatment

    @classmethod
    def open(cls, source: EvaluationSource, references: int = 1, cache: "ShardCache | None" = None) -> "EvaluationSet":
        """Open the data set and draw or read the episodes.

        Args:
            source: the rules.
            references: K, where the source does not say.
            cache: where a remote data set is kept; None for the default one.

        Raises:
            UserError: the data set is missing or damaged, or does not allow such episodes.
        """
        index = open_index(source.shards, cache)
        treatment = source.treatment or Intact()
        if source.manifest is None:
            protocol = source.protocol or OnePass()
            manifest = draw_manifest(index, source, references)
        else:
            manifest = Manifest.load(Path(source.manifest))
            protocol = source.protocol or _protocol_of(manifest, source.manifest)
            _check_fits(manifest, source, protocol, index)
        return cls(index, manifest, protocol, treatment)

    def scoreboard(self) -> "Scoreboard":
        """What a model needs to score the episodes."""
        from ldis_lightning.evaluation.scoring import Scoreboard

        return Scoreboard(self.protocol.measure, self.manifest.table(), self.manifest.score_size)

    def subset(self, queries: int | None) -> "EvaluationSet":
        """The same set cut to an even, seeded subset of at most so many queries; None: all."""
        return replace(self, manifest=self.manifest.subset(queries))


def draw_manifest(index: ShardIndex, source: EvaluationSource, references: int = 1) -> Manifest:
    """Draw the episodes of a source.

    Args:
        index: the source's data set.
        source: the rules and the protocol.
        references: K, where the source does not say.

    Raises:
        UserError: the data set allows no such episodes.
    """
    protocol = source.protocol or OnePass()
    if protocol.by_clip and (source.pairing is not None or (source.references or 1) > 1):
        raise UserError(
            f"the protocol {protocol.name} takes the first frame of a clip as its one reference: leave `pairing` and "
            "`references` out."
        )
    if source.references is not None and source.references < 1:
        raise UserError(f"{source.shards}: `references` is {source.references}, and must be 1 or more.")
    references = 1 if protocol.by_clip else source.references or references
    asked = protocol.classes(index.classes)
    if source.classes is not None:  # classes that do not exist stay in, for the catalogue to name them
        asked = sorted(set(source.classes) - (set(index.classes) - set(asked)))
    plain = EpisodeSource(**{field.name: getattr(source, field.name) for field in fields(EpisodeSource)})
    every_class = asked == sorted(index.classes) and source.classes is None
    rules = replace(plain, pairing=source.pairing or protocol.pairing(), classes=None if every_class else asked)
    catalogue = Catalogue(index, rules)
    episodes = protocol.draw(catalogue, references)
    return Manifest(
        protocol=protocol.name,
        settings=protocol.settings(),
        rules=catalogue.rules(),
        dataset=index.name,
        index_hash=index.hash,
        references=references,
        treatment=describe(catalogue.treatment),
        classes={class_id: index.classes[class_id] for class_id in asked},
        episodes=episodes,
        clip=[int(index.clip[episode.query]) for episode in episodes],
        score_size=protocol.score_size,
        runs=protocol.runs,
    )


def _protocol_of(manifest: Manifest, path: str) -> Protocol:
    """The protocol that a manifest names; never a class of its own choosing."""
    if manifest.protocol not in PROTOCOLS:
        raise UserError(
            f"{path} was drawn by the protocol `{manifest.protocol}`, which is none of ours "
            f"({', '.join(PROTOCOLS)}): name its class as the set's `protocol`."
        )
    kind = PROTOCOLS[manifest.protocol]
    taken = signature(kind).parameters  # the others are its own constants; `_check_fits` compares them
    try:
        return kind(**{name: value for name, value in manifest.settings.items() if name in taken})
    except TypeError as error:
        raise UserError(f"{path} has settings that the protocol {manifest.protocol} does not know: {error}.") from error


def _check_fits(manifest: Manifest, source: EvaluationSource, protocol: Protocol, index: ShardIndex) -> None:
    """A manifest from elsewhere must be of this data set, this protocol and this treatment."""
    path = source.manifest
    if manifest.index_hash != index.hash:
        raise UserError(
            f"{path} was drawn from another version of `{manifest.dataset}` than {source.shards} (the hashes of their "
            "indexes differ): pack the data as it was then, or draw the episodes again."
        )
    rows = [row for episode in manifest.episodes for row in (episode.query, *episode.references)]
    shown = {number for episode in manifest.episodes for number in (episode.class_id, episode.reference_class)}
    if max(rows, default=0) >= len(index) or not shown <= set(index.classes):
        raise UserError(f"{path} names frames or classes that {source.shards} does not have: draw the episodes again.")
    if manifest.clip != [int(index.clip[episode.query]) for episode in manifest.episodes]:
        raise UserError(f"{path} names other clips than {source.shards} has: draw the episodes again.")
    if (manifest.protocol, manifest.settings) != (protocol.name, protocol.settings()):
        raise UserError(f"{path} was drawn by {manifest.protocol} {manifest.settings}, not by the set's `protocol`.")
    if manifest.treatment != describe(source.treatment or Intact()):
        raise UserError(f"{path} was drawn for the treatment {manifest.treatment}: give the set the same `treatment`.")
    drawn = ("pairing", "classes", "min_pixels", "episodes", "seed", "references")
    of_drawing = [field for field in fields(source) if field.name in drawn]
    if given := [field.name for field in of_drawing if getattr(source, field.name) != field.default]:
        raise UserError(f"{path} fixes the episodes, so `{given[0]}` would have no effect: leave it out.")
