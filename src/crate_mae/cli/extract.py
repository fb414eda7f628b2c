"""Verbs that take features out, for your own use: extract, merge."""

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from crate_mae.cli.early import FEATURE_FILES, PARTS, check_words, is_feature_file
from crate_mae.cli.options import (
    POOLS,
    CommandParser,
    add_after,
    add_batch_size,
    add_device,
    add_image_size,
    add_images,
    add_overwrite,
    add_pool,
    add_weights,
    counter_for,
    device_of,
    opened_images,
    reading_of,
    report_unreadable,
    single,
    verb_parser,
)
from crate_mae.common.extras import check_installed
from crate_mae.common.files import check_file_target

if TYPE_CHECKING:
    from crate_mae.evaluation.extracting import Extraction, PartExtractor
    from crate_mae.evaluation.feature_parts import FeatureParts
    from crate_mae.models.backbone import Backbone

ENGINES = ("torch", "onnx", "openvino", "ray")


def extract_parser() -> CommandParser:
    """The parser of `crate-mae extract`."""
    parser = verb_parser("extract", "Features of images, with names, labels and preprocessing.")
    add_weights(parser, ", ViT-MAE folder")
    add_images(parser)
    add_pool(parser, (*POOLS, "tokens"))
    add_after(parser)
    add_image_size(parser)
    add_batch_size(parser, 256)
    parser.add_argument(
        "--out", required=True, metavar="FILE",
        help=".safetensors, .npz or .parquet; without a suffix: a folder of parquet parts, for any"
        " number of images, where the same command goes on when it was stopped",
    )  # fmt: skip
    add_overwrite(parser)
    parser.add_argument(
        "--part-size", type=int, metavar="N", help="images of each part of a folder (10240)"
    )
    parser.add_argument(
        "--shard", type=shard_of, metavar="I/N",
        help="only the parts of shard I, from 0, of N equal ones: a job each, into one folder",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that read images ahead of this one, which computes (as suits machine and"
        " images; on a CPU the same processes then compute, too)",
    )  # fmt: skip
    parser.add_argument(
        "--engine",
        default="torch",
        choices=ENGINES,
        help="what computes them: torch, onnx or openvino (for CPUs, checked before they start)"
        " here, or ray: torch in the workers of a Ray cluster, a part each (torch)",
    )
    parser.add_argument(
        "--ray-workers", type=int, metavar="N",
        help="with --engine ray: workers (as many as the cluster has room for)",
    )  # fmt: skip
    parser.add_argument(
        "--ray-cpus", type=int, metavar="N", help="with --engine ray: CPUs of each worker (1)"
    )
    add_device(parser)
    return parser


def extract(argv: list[str]) -> int:
    """The exit status of `crate-mae extract`."""
    given = extract_parser().read(argv)
    check_words(given)
    in_parts = _wants_parts(given)
    if not in_parts:
        check_file_target(given.out, FEATURE_FILES, what="features", overwrite=given.overwrite)
    if given.workers is not None and given.workers < 0:
        raise ValueError(f"--workers must be at least 0, not {given.workers}")
    _check_ray(given, in_parts=in_parts)

    if not in_parts:
        return _extract_file(given, _extractor(given))

    from crate_mae.evaluation.feature_parts import check_parts_target

    check_parts_target(given.out)
    return _extract_parts(given, _extractor(given))


def merge_parser() -> CommandParser:
    """The parser of `crate-mae merge`."""
    parser = verb_parser("merge", "One file of features out of a complete folder of parts.")
    parser.add_argument("folder", help="what crate-mae extract --out FOLDER has filled")
    parser.add_argument(
        "--out", required=True, metavar="FILE", help=".safetensors, .npz or .parquet"
    )
    add_overwrite(parser)
    return parser


def merge(argv: list[str]) -> int:
    """The exit status of `crate-mae merge`."""
    given = merge_parser().read(argv)
    check_file_target(given.out, FEATURE_FILES, what="features", overwrite=given.overwrite)
    if not is_feature_file(given.folder, folder=True):
        raise FileNotFoundError(f"{given.folder} holds no parts of features: there is no {PARTS}")

    from crate_mae.evaluation.feature_files import merge_parts

    features = merge_parts(given.folder, given.out, overwrite=given.overwrite)
    shape = tuple(features.values.shape)
    print(f"wrote {given.out}: {shape} float32, pool {features.pool}")
    if features.unreadable:
        print(f"{len(features.unreadable):,} images had been passed over; the file names them")
    return 0


def shard_of(text: str) -> tuple[int, int]:
    """The shard that "I/N" names, I from 0 to N - 1; an argparse error for other words."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    if found is None or not int(found[1]) < int(found[2]):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no shard I/N: I is from 0 to N - 1, so that 0/4 is the first of four"
        )
    return int(found[1]), int(found[2])


def _wants_parts(given: argparse.Namespace) -> bool:
    """Whether --out is a folder of parts; ValueError for options of the other kind of output."""
    suffix = Path(given.out).suffix.lower()
    folder = not suffix or given.out.endswith("/") or is_feature_file(given.out, folder=True)
    for option, value in (("--part-size", given.part_size), ("--shard", given.shard)):
        if value is None:
            continue
        if suffix in FEATURE_FILES and not folder:
            raise ValueError(f"{option} is for a folder of parts: name one, not {given.out}")
        folder = True
    if folder and given.overwrite:
        raise ValueError(
            "--overwrite is for files: a folder of parts is gone on with; for other features name"
            " another folder"
        )
    return folder


def _check_ray(given: argparse.Namespace, *, in_parts: bool) -> None:
    """Raise for options of a cluster without one, and for a cluster where it cannot be used."""
    if given.engine == "ray":
        check_installed("ray")
        if not in_parts:
            raise ValueError(
                f"--engine ray writes a folder of parts: name one, not {given.out}; merge makes one"
                " file of it"
            )
    for option, value in (("--ray-workers", given.ray_workers), ("--ray-cpus", given.ray_cpus)):
        if value is not None and given.engine != "ray":
            raise ValueError(f"{option} is for --engine ray")
        if value is not None and value < 1:
            raise ValueError(f"{option} must be at least 1, not {value}")


def _wanted(given: argparse.Namespace) -> "Extraction":
    """Which features are wanted."""
    from crate_mae.evaluation.extracting import Extraction

    return Extraction(
        weights=given.weights,
        images=tuple(given.images),
        split=given.split,
        limit=given.limit,
        reading=reading_of(given),
        pool=single(given.pool, "mean"),
        layer=single(given.after, None),
        image_size=given.image_size,
        batch_size=given.batch_size,
        workers=given.workers,
    )


def _extractor(given: argparse.Namespace) -> "PartExtractor":
    """What computes the features, with weights and images open; of a cluster, what it is to do."""
    from crate_mae.evaluation.extracting import PartExtractor

    pool, layer = single(given.pool, "mean"), single(given.after, None)
    if given.engine in ("torch", "ray"):
        return _wanted(given).open("cpu" if given.engine == "ray" else device_of(given.device))

    from crate_mae.export.engines import engine_for
    from crate_mae.weights.weights_folder import weights_hash

    if layer is not None or pool == "layers":
        raise ValueError(
            f"engine {given.engine} gives features after the last layer alone: other layers, and"
            " the pool 'layers', need the engine torch"
        )
    if given.image_size is not None:
        raise ValueError(f"engine {given.engine} takes images of the model's own size alone")
    source = opened_images(given)
    place = None if given.device == "auto" else given.device
    model: Backbone = engine_for(given.weights, given.engine, images=source, device=place)
    return PartExtractor(
        model,
        source,
        weights_hash=weights_hash(given.weights),
        pool=pool,
        engine=given.engine,
        batch_size=given.batch_size,
        workers=given.workers,
    )


def _extract_file(given: argparse.Namespace, extractor: "PartExtractor") -> int:
    from crate_mae.evaluation.feature_files import save_features
    from crate_mae.evaluation.features import extract_features

    features = extract_features(
        extractor.model,
        extractor.source,
        pool=extractor.pool,
        layer=extractor.layer,
        batch_size=given.batch_size,
        workers=given.workers,
        progress=counter_for("features"),
    )
    save_features(
        features,
        given.out,
        preprocess=extractor.model.preprocess,
        weights_hash=extractor.weights_hash,
        overwrite=given.overwrite,
    )
    report_unreadable(features.unreadable)
    print(f"wrote {given.out}: {tuple(features.values.shape)} float32, pool {features.pool}")
    return 0


def _extract_parts(given: argparse.Namespace, extractor: "PartExtractor") -> int:
    from crate_mae.evaluation.extracting import begin_parts

    parts, missing = begin_parts(extractor, given.out, shard=given.shard, part_size=given.part_size)
    rows = broken = 0
    if given.engine == "ray":
        from crate_mae.evaluation.on_ray import write_on_ray

        written = write_on_ray(
            _wanted(given),
            parts,
            missing,
            device=given.device,
            workers=given.ray_workers,
            cpus=given.ray_cpus or 1,
            progress=counter_for("features"),
        )
    else:
        written = extractor.write(parts, missing, counter_for("features"))
    for facts in written:
        report_unreadable(facts.unreadable)
        rows, broken = rows + facts.rows, broken + len(facts.unreadable)
    _tell(given, parts, len(missing), rows, broken)
    if missing and not rows:
        raise ValueError(f"none of the {broken:,} images of these parts can be read")
    return 0


def _tell(
    given: argparse.Namespace, parts: "FeatureParts", written: int, rows: int, broken: int
) -> None:
    """Say what was written, which images were passed over, and what there is to do now."""
    if written:
        passed = f", {broken:,} passed over" if broken else ""
        print(f"wrote {written} parts of {given.out}: features of {rows:,} images{passed}")
    else:
        print(f"{given.out}: all parts asked for are there")
    if named := parts.write_unreadable(None if given.shard is None else given.shard[0]):
        print(
            f"images that could not be read have no features: {', '.join(map(str, named))}; the"
            " same command tries them again"
        )
    left = len(parts.missing())
    if left:
        print(f"{left} of {len(parts.parts)} parts are missing still")
    else:
        command = shlex.join(["crate-mae", "merge", given.out, "--out", "features.safetensors"])
        print(f"complete; one file of it: {command}")
