"""Verbs that tell what is there: data, info, doctor, and extract."""

import sys

from crate_mae.cli.common import (
    WEIGHTS,
    add_data_options,
    add_device,
    counter_for,
    device_of,
    new_file,
    print_json,
    verb_parser,
    write_json,
)


def data(words: list[str]) -> int:
    """The exit status of `crate-mae data`."""
    parser = verb_parser("data", "Counts, sizes, modes, mean and std, unreadable files, classes.")
    parser.add_argument("address", help="such as imagefolder:PATH, parquet:PATH or digits")
    add_data_options(parser)
    parser.add_argument("--json", metavar="FILE", help="also write the report as JSON (new file)")
    given = parser.parse_args(words)

    from crate_mae.data.report import describe
    from crate_mae.data.sources import open_source

    target = new_file(given.json)
    source = open_source(given.address, split=given.data_split, limit=given.limit)
    report = describe(source, progress=counter_for("reading"))
    print(report.table())
    write_json(target, report.to_dict())
    return 0


def extract(words: list[str]) -> int:
    """The exit status of `crate-mae extract`."""
    parser = verb_parser("extract", "Features of images, with names, labels and preprocessing.")
    parser.add_argument("weights", help=f"{WEIGHTS}, ViT-MAE folder")
    parser.add_argument("images", nargs="+", help="one data address, or image files and folders")
    add_data_options(parser)
    parser.add_argument("--pool", default="mean", choices=["cls", "mean", "both", "tokens"])
    parser.add_argument(
        "--layer", type=int, help="encoder layers passed, from 0 (all, and the final norm)"
    )
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--out", required=True, help=".safetensors, .npz or .parquet")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    add_device(parser)
    given = parser.parse_args(words)

    from crate_mae.data.inputs import open_images
    from crate_mae.evaluation.backbones import load_backbone
    from crate_mae.evaluation.feature_files import check_target, save_features
    from crate_mae.evaluation.features import extract_features

    check_target(given.out, overwrite=given.overwrite)
    source = open_images(given.images, split=given.data_split, limit=given.limit)
    model, sha256 = load_backbone(given.weights)
    features = extract_features(
        model.to(device_of(given.device)),
        source,
        pool=given.pool,
        layer=given.layer,
        batch_size=given.batch_size,
        progress=counter_for("features"),
    )
    save_features(
        features,
        given.out,
        preprocess=model.preprocess,
        weights_hash=sha256,
        overwrite=given.overwrite,
    )
    for name, reason in features.unreadable:
        print(f"passed over: {name} ({reason})", file=sys.stderr)
    print(f"wrote {given.out}: {tuple(features.values.shape)} float32, pool {given.pool}")
    return 0


def info(words: list[str]) -> int:
    """The exit status of `crate-mae info`."""
    parser = verb_parser("info", "What a weights folder holds.")
    parser.add_argument("weights", help=WEIGHTS)
    parser.add_argument("--json", action="store_true", help="as JSON")
    given = parser.parse_args(words)

    from crate_mae.models.info import describe_weights, weights_table

    facts = describe_weights(given.weights)
    print_json(facts) if given.json else print(weights_table(facts))
    return 0


def weights(words: list[str]) -> int:
    """The exit status of `crate-mae weights`."""
    parser = verb_parser("weights", "Models that come with the package: list, card, verify.")
    parser.add_argument("action", nargs="?", default="list", choices=["list", "card", "verify"])
    parser.add_argument("name", nargs="?", help="of a shipped model; verify: all without a name")
    given = parser.parse_args(words)

    from crate_mae.models.config import did_you_mean
    from crate_mae.models.shipped import SHIPPED

    if given.name is not None and given.name not in SHIPPED:
        hint = did_you_mean(given.name, SHIPPED)
        raise ValueError(f"no shipped model {given.name!r}{hint}; shipped: {', '.join(SHIPPED)}")
    if given.action == "card" and given.name is None:
        raise ValueError(f"name the model whose card you want: {', '.join(SHIPPED)}")
    chosen = [SHIPPED[given.name]] if given.name else list(SHIPPED.values())
    damaged = []
    for one in chosen:
        if given.action == "list":
            print(f"{one.name:<16} {one.summary}")
        elif given.action == "card":
            print(one.card, end="")
        elif faults := one.damaged():
            damaged.append(f"{one.name} ({', '.join(faults)})")
        else:
            print(f"{one.name}: whole, SHA-256 {one.sha256}")
    if damaged:
        raise ValueError(f"other content than was shipped: {', '.join(damaged)}; install again")
    return 0


def doctor(words: list[str]) -> int:
    """The exit status of `crate-mae doctor`."""
    parser = verb_parser("doctor", "Versions, hardware and optional packages, for bug reports.")
    parser.add_argument("--json", action="store_true", help="as JSON, with every package")
    given = parser.parse_args(words)

    from crate_mae.environment import doctor_table, environment

    facts = environment()
    print_json(facts) if given.json else print(doctor_table(facts))
    return 0
