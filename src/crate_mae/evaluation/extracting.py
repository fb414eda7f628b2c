"""Features of any number of images into a folder of parts, in constant memory.

`PartExtractor` holds model and images and computes one part after another; one process does all
parts with it, or every process of a job array or cluster some of them.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from crate_mae.batches.prepared import read_stretch, stretches
from crate_mae.common.escaping import printable
from crate_mae.common.progress import Progress
from crate_mae.evaluation.backbones import at_size, evaluating, load_backbone
from crate_mae.evaluation.encoding import Encoded, Key, encoded_stretches
from crate_mae.evaluation.feature_parts import FeatureParts, check_parts_target, is_parts_folder
from crate_mae.evaluation.features import FeaturePool, pooled_features
from crate_mae.evaluation.part_files import PartFacts, PartRows, utf8, write_part
from crate_mae.evaluation.part_settings import PART_SIZE, Part, PartSettings, parts_of
from crate_mae.models.backbone import Backbone
from crate_mae.sources.base import ImageSource
from crate_mae.sources.found import AS_USUAL, Reading
from crate_mae.sources.inputs import open_images

logger = logging.getLogger(__name__)


class PartExtractor:
    """Computes parts of the features of a source: model and images once, then any parts of them.

    `weights_hash` names the weights, `state_digest` where it is None; `engine` is what runs them.
    Raises ValueError for an unknown pool or layer.
    """

    def __init__(
        self,
        model: Backbone,
        source: ImageSource,
        *,
        weights_hash: str | None,
        pool: FeaturePool = "mean",
        layer: int | None = None,
        engine: str = "torch",
        batch_size: int = 256,
        device: str | torch.device | None = None,
        workers: int | None = None,
    ) -> None:
        # Parts of weights without a name would be gone on with by any other model.
        self.weights_hash = state_digest(model) if weights_hash is None else weights_hash
        if device is not None:
            model.to(device)
        self.model, self.source, self.engine = model, source, engine
        self.pool, self.layer = pool, None if layer == -1 else layer
        self.batch_size, self.workers = batch_size, workers
        self._encode = pooled_features(model, pools=(pool,), layers=(layer,))
        stretches(range(0), batch_size)  # raises for a batch size below 1

    def settings(self, *, shards: int = 1, part_size: int = PART_SIZE) -> PartSettings:
        """What stands in the parts that this computes; reads names and sizes of all images."""
        source = self.source
        parts_of(len(source), shards, part_size)  # raises before long work
        prepared = self.model.preprocess
        (row,) = self._encoded(torch.zeros(1, prepared.channels, *prepared.size)).values()
        return PartSettings(
            weights_sha256=self.weights_hash,
            engine=self.engine,
            pool=self.pool,
            layer=self.layer,
            preprocess=prepared.to_dict(),
            row_shape=tuple(row.shape[1:]),
            class_names=source.class_names,
            address=source.address,
            split=source.split,
            fingerprint=source.fingerprint(),
            images=len(source),
            shards=shards,
            part_size=part_size,
        )

    def write(
        self, folder: FeatureParts, parts: Sequence[Part], progress: Progress | None = None
    ) -> Iterator[PartFacts]:
        """What each of these parts says of itself, once it is written into the folder.

        Later batches and parts are read, or read and computed, while one is written
        (`encoded_stretches`). `progress` hears how many of the images of these parts are done.
        Whatever stops it leaves whole parts.
        """
        cuts = [stretches(range(part.start, part.stop), self.batch_size) for part in parts]
        every = [cut for part in cuts for cut in part]
        read = encoded_stretches(
            self.model, self.source, self._encoded, every, workers=self.workers
        )
        total, done = sum(map(len, every)), 0

        def told(entries: Iterator[Encoded]) -> Iterator[Encoded]:
            nonlocal done
            for entry in entries:
                yield entry
                done += len(entry.names) + len(entry.broken)
                if progress is not None:
                    progress(done, total)

        for part, own in zip(parts, cuts, strict=True):
            unreadable: list[tuple[str, str]] = []
            yield write_part(
                folder.path(part),
                self._batches(told(islice(read, len(own))), unreadable),
                PartFacts(
                    settings=folder.settings.digest,
                    number=part.number,
                    start=part.start,
                    stop=part.stop,
                ),
                unreadable,
                row_shape=folder.settings.row_shape,
                labelled=folder.labelled,
            )

    def readable_now(self, folder: FeatureParts, part: Part) -> list[str]:
        """The names of images that a part has no row of, and that can be read now.

        Raises what `FeatureParts.facts` raises, and ValueError for images whose channels do not fit
        the model.
        """
        left_out = {name for name, _ in folder.facts(part).unreadable}
        if not left_out:
            return []
        found: list[str] = []
        for index in range(part.start, part.stop):
            if utf8(self.source.name(index)) in left_out:
                alone = range(index, index + 1)
                found += read_stretch(self.source, self.model.preprocess, alone).names
        return found

    def _batches(
        self, read: Iterator[Encoded], unreadable: list[tuple[str, str]]
    ) -> Iterator[PartRows]:
        for stretch in read:
            unreadable += stretch.broken
            for values in stretch.rows.values():
                yield PartRows(
                    indices=stretch.indices,
                    names=stretch.names,
                    labels=stretch.labels,
                    values=values,
                )

    def _encoded(self, images: torch.Tensor) -> dict[Key, torch.Tensor]:
        with evaluating(self.model):
            return self._encode(images)


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """Which features are wanted, in plain values that any process of any machine can open."""

    weights: str
    images: tuple[str, ...]
    """One data address, or image files and folders."""
    split: str | None = None
    limit: int | None = None
    reading: Reading = AS_USUAL
    pool: FeaturePool = "mean"
    layer: int | None = None
    image_size: tuple[int, int] | None = None
    batch_size: int = 256
    workers: int | None = None

    def open(self, device: str | torch.device | None = None) -> PartExtractor:
        """What computes them, with weights and images open.

        Raises what `load_backbone`, `at_size` and `open_images` raise.
        """
        source = open_images(self.images, split=self.split, limit=self.limit, reading=self.reading)
        model, sha256 = load_backbone(self.weights)
        return PartExtractor(
            at_size(model, self.image_size),
            source,
            weights_hash=sha256,
            pool=self.pool,
            layer=self.layer,
            batch_size=self.batch_size,
            device=device,
            workers=self.workers,
        )


Shard = tuple[int, int]
"""Which shard, from 0, of how many."""


def state_digest(model: Backbone) -> str:
    """What names the weights of a model whose file is not known: a digest of the model itself.

    It is of kind and configuration, and of name, type, shape and bytes of each tensor, on whichever
    device. It begins with `state:`, as it is not the digest of a weights file.
    """
    # Two numbers of heads may share all shapes: the configuration counts as well.
    found = hashlib.sha256(repr((model.kind, model.config, model.match)).encode())
    for name, tensor in cast("nn.Module", model).state_dict().items():
        if isinstance(tensor, Tensor):
            found.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
            # As bytes, because numpy does not know every type.
            values = tensor.detach().cpu().contiguous().reshape(-1)
            found.update(values.view(torch.uint8).numpy().data)
    return f"state:{found.hexdigest()}"


def begin_parts(
    extractor: PartExtractor,
    folder: str | Path,
    *,
    shard: Shard | None = None,
    part_size: int | None = None,
) -> tuple[FeatureParts, list[Part]]:
    """(The folder, new or gone on with, the parts that are missing), of one shard or of all.

    Images that could not be read are tried again: a part with one that can be read now is removed,
    which is told, and counts as missing. What is not given is taken from parts that are there: so a
    folder of many shards is completed without naming one. Raises what `FeatureParts.begin`,
    `FeatureParts.missing` and `PartExtractor.readable_now` raise, and ValueError for a shard that
    does not exist.
    """
    number, shards = (None, None) if shard is None else checked_shard(shard)
    there = FeatureParts.open(folder).settings if is_parts_folder(folder) else None
    if shards is None:
        shards = 1 if there is None else there.shards
    if part_size is None:
        part_size = PART_SIZE if there is None else there.part_size
    parts = FeatureParts.begin(folder, extractor.settings(shards=shards, part_size=part_size))
    missing = set(parts.missing(number))
    for part in parts.of(number):
        names = [] if part in missing else extractor.readable_now(parts, part)
        if not names:
            continue
        logger.warning(
            "%s is made again: %d of its images could not be read and can be now, such as %s",
            parts.path(part), len(names), printable(names[0]),
        )  # fmt: skip
        # Whoever computes it, here or in a cluster, leaves parts alone that are there.
        parts.path(part).unlink(missing_ok=True)
        missing.add(part)
    return parts, sorted(missing)


def extract_parts(
    model: Backbone,
    source: ImageSource,
    folder: str | Path,
    *,
    weights_hash: str | None = None,
    pool: FeaturePool = "mean",
    layer: int | None = None,
    shard: Shard | None = None,
    part_size: int | None = None,
    batch_size: int = 256,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> FeatureParts:
    """The folder of parts that holds the features of a source, or of one shard of it.

    As `extract_features`, but a batch at a time is in memory, beside the source itself. Parts that
    are there with the same settings stay, and missing ones are computed: so it goes on where it was
    stopped, and shards may run at once, on all machines that share the folder. Images that could
    not be read are tried again, and a part with one that can be is made anew. Parts of another
    model are refused: weights are known by `weights_hash`, or, without one, by `state_digest`.
    Raises what `check_parts_target` and `begin_parts` raise.
    """
    check_parts_target(folder)
    extractor = PartExtractor(
        model,
        source,
        weights_hash=weights_hash,
        pool=pool,
        layer=layer,
        batch_size=batch_size,
        device=device,
        workers=workers,
    )
    parts, missing = begin_parts(extractor, folder, shard=shard, part_size=part_size)
    for _ in extractor.write(parts, missing, progress):
        pass
    parts.write_unreadable(None if shard is None else shard[0])
    return parts


def checked_shard(shard: Shard) -> Shard:
    """The shard; ValueError for one that does not exist."""
    number, shards = shard
    if not 0 <= number < shards:
        raise ValueError(
            f"shard {number}/{shards} does not exist: they are numbered from 0, so that the last"
            f" of {max(shards, 1)} is {max(shards, 1) - 1}/{max(shards, 1)}"
        )
    return shard
