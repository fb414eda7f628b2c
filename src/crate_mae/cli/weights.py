"""Verbs about weights themselves: info, weights, push, export, convert."""

import argparse
import sys
from dataclasses import asdict
from typing import Any

from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_json,
    add_overwrite,
    add_part,
    add_reading,
    add_weights,
    counter_for,
    data_facts,
    image_size,
    new_file,
    opened_images,
    refuse_beside,
    verb_parser,
)


def info_parser() -> CommandParser:
    """The parser of `crate-mae info`."""
    parser = verb_parser("info", "What a weights folder holds; of a run, who writes to it.")
    add_weights(parser)
    add_json(parser, "the facts")
    return parser


def info(argv: list[str]) -> int:
    """The exit status of `crate-mae info`."""
    given = info_parser().read(argv)

    from crate_mae.common.files import user_path
    from crate_mae.common.folder_lock import holder_of
    from crate_mae.evaluation.backbones import describe_weights
    from crate_mae.weights.info import weights_table

    output = Output(given.json)
    held = holder_of(user_path(given.weights))
    if held is not None:  # told first: a run that has just begun has no weights yet
        holder, alive = held
        output.say(f"being written by {holder}" if alive else f"left behind by {holder}, now gone")
    facts = describe_weights(given.weights)
    if held is not None:
        facts["written_by"] = {**asdict(held[0]), "alive": held[1]}
    output.say(weights_table(facts))
    output.write(facts)
    return 0


def weights_parser() -> CommandParser:
    """The parser of `crate-mae weights`."""
    parser = verb_parser("weights", "Models that come with the package: list, card, verify.")
    parser.add_argument("action", nargs="?", default="list", choices=["list", "card", "verify"])
    parser.add_argument("name", nargs="?", help="of a shipped model; verify: all without a name")
    return parser


def weights(argv: list[str]) -> int:
    """The exit status of `crate-mae weights`."""
    given = weights_parser().read(argv)

    from crate_mae.common.hints import did_you_mean
    from crate_mae.weights.shipped import SHIPPED

    if given.name is not None and given.name not in SHIPPED:
        hint = did_you_mean(given.name, SHIPPED)
        raise ValueError(f"no shipped model {given.name!r}{hint}; shipped: {', '.join(SHIPPED)}")
    if given.action == "card" and given.name is None:
        raise ValueError(f"name the model whose card you want: {', '.join(SHIPPED)}")
    chosen = [SHIPPED[given.name]] if given.name else list(SHIPPED.values())
    damaged = []
    width = max(map(len, SHIPPED))
    for one in chosen:
        if given.action == "list":
            print(f"{one.name:<{width}}  {one.summary}")
        elif given.action == "card":
            print(one.card, end="")
        elif faults := one.damaged():
            damaged.append(f"{one.name} ({', '.join(faults)})")
        else:
            print(f"{one.name}: whole, SHA-256 {one.sha256}")
    if damaged:
        raise ValueError(f"other content than was shipped: {', '.join(damaged)}; install again")
    return 0


def push_parser() -> CommandParser:
    """The parser of `crate-mae push`."""
    parser = verb_parser("push", "Weights with a model card to the Hugging Face Hub, or a folder.")
    add_weights(parser)
    parser.add_argument("repo", nargs="?", metavar="OWNER/REPO", help="where they go")
    parser.add_argument("--private", action="store_true", help="only the owner can see it")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--revision", metavar="BRANCH", help="branch (main)")
    parser.add_argument("--licence", metavar="ID", help="such as mit or cc-by-4.0")
    parser.add_argument(
        "--data-name", metavar="TEXT", help="what the training images are, in words"
    )
    parser.add_argument(
        "--dataset", metavar="NAME", help="what the images of the results are called on the Hub"
    )
    parser.add_argument(
        "--base-model", metavar="NAME", help="model on the Hub whose weights training began with"
    )
    parser.add_argument(
        "--trained-on",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets of the training images, as the Hub calls them (what the run tells)",
    )
    parser.add_argument(
        "--results",
        nargs="+",
        default=[],
        metavar="FILE",
        help="results for the card, from probe --json or knn --json",
    )
    parser.add_argument("--notes", metavar="FILE", help="Markdown of your own, put into the card")
    parser.add_argument("--card", metavar="FILE", help="a card of your own in place of ours")
    parser.add_argument(
        "--with-code",
        action="store_true",
        help="add the two files that transformers needs where this package is not installed",
    )
    add_overwrite(parser, "another model")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be sent, and send nothing"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", help="write what would be sent into a new folder instead"
    )
    return parser


def push(argv: list[str]) -> int:
    """The exit status of `crate-mae push`."""
    parser = push_parser()
    given = parser.read(argv)
    if given.repo is None and given.out is None:
        parser.error("name OWNER/REPO, or write to a folder with --out FOLDER")
    if given.out is not None:
        refuse_beside(
            parser,
            "--out writes a new folder on this machine and sends nothing to the Hub",
            {
                "--private": given.private,
                "--message": given.message,
                "--revision": given.revision,
                "--overwrite": given.overwrite,
            },
        )
    ours = (
        given.notes, given.results, given.data_name, given.dataset, given.base_model,
        given.trained_on,
    )  # fmt: skip
    if given.card and any(ours):
        parser.error(
            "--card is the whole card: --notes, --results, --data-name, --dataset, --base-model and"
            " --trained-on go into ours"
        )

    from huggingface_hub import HfApi

    from crate_mae.common.files import check_new_folder
    from crate_mae.publish import hub
    from crate_mae.publish.card import Origin
    from crate_mae.publish.package import build_package, write_folder

    origin = Origin(base_model=given.base_model, trained_on=tuple(given.trained_on))
    sends = not (given.dry_run or given.out)
    api = HfApi()
    if given.repo is not None:
        hub.check_repository(given.repo)
    folder = None if given.out is None else check_new_folder(given.out)
    if sends:
        print(f"as {hub.check_token(api)}")
    package = build_package(
        given.weights,
        name=given.repo if folder is None or given.repo else folder.name,
        licence=given.licence,
        data_name=given.data_name,
        dataset=given.dataset,
        card=given.card,
        notes=given.notes,
        results=given.results,
        with_code=given.with_code,
        origin=origin,
    )
    for name, size in package.sizes().items():
        print(f"{size:>14,}  {name}")
    print(f"SHA-256 {package.sha256}")
    for sentence in (*package.left_out, *package.doubts):
        print(f"note: {sentence}", file=sys.stderr)
    if given.dry_run:
        print("nothing was sent")
    elif folder is not None:
        print(f"wrote {write_folder(package, folder)}")
    else:
        sent = hub.push(
            package,
            given.repo,
            api=api,
            private=given.private,
            message=given.message,
            revision=given.revision,
            overwrite=given.overwrite,
        )
        print(f"sent to {sent.url}\ncommit  {sent.commit_url}")
    return 0


def export_parser() -> CommandParser:
    """The parser of `crate-mae export`."""
    parser = verb_parser("export", "A model in a file that other programs run, checked by theirs.")
    add_weights(parser)
    parser.add_argument(
        "--format",
        required=True,
        choices=["pt2", "onnx", "openvino", "executorch"],
        help="pt2: torch.export; the others need packages of their own",
    )
    parser.add_argument(
        "--what",
        default="encode",
        choices=["encode", "classify", "reconstruct"],
        help="features, class scores, or patches completed under a mask (encode)",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="new folder for the file")
    parser.add_argument(
        "--mask-ratio",
        type=float,
        nargs="+",
        metavar="SHARE",
        help="one share, of reconstruct (0.75)",
    )
    parser.add_argument("--int8", action="store_true", help="onnx: matrices in eight bits")
    parser.add_argument(
        "--probe",
        metavar="ADDRESS",
        help="with --int8: labelled data; what rounding costs a linear probe (digits)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders or one data address to compare on (squares of two photographs)",
    )
    add_part(parser, limit=8)
    add_reading(parser)
    add_json(parser, "the comparison")
    return parser


def export(argv: list[str]) -> int:
    """The exit status of `crate-mae export`."""
    parser = export_parser()
    given = parser.read(argv)
    if given.probe and not given.int8:
        parser.error("--probe measures what --int8 costs: give both")
    if given.what != "reconstruct":
        refuse_beside(
            parser,
            f"--what {given.what} hides no patches, only reconstruct does",
            {"--mask-ratio": given.mask_ratio},
        )
    mask_ratio, *more = given.mask_ratio or [0.75]
    if more:
        parser.error("one file hides one share of the patches: --mask-ratio takes one here")
    if given.int8 and given.what != "encode":
        parser.error("--int8 is measured by a probe of features: export --what encode")
    if not given.images and (given.split or given.image_key or given.label_key):
        parser.error("--split, --image-key and --label-key choose from --images: give these, too")
    if not given.images and given.follow_links:
        parser.error("--follow-links enters folders of --images: give these, too")

    from crate_mae.export.exporting import describe_export, export_model
    from crate_mae.sources.photographs import photograph_squares
    from crate_mae.weights.weights_folder import weights_hash

    output = Output(given.json)
    source = opened_images(given) if given.images else None
    exported = export_model(
        given.weights,
        given.out,
        format=given.format,
        what=given.what,
        mask_ratio=mask_ratio,
        int8=given.int8,
        images=source,
        limit=given.limit,
    )
    output.say(describe_export(exported))
    facts: dict[str, Any] = {
        "difference": exported.difference,
        "images": exported.images,
        "int8_loss": None,
        "format": given.format,
        "what": given.what,
        "weights_sha256": weights_hash(given.weights),
    }
    if output.wants_json:  # a fingerprint reads every name and size
        compared = photograph_squares() if source is None else source
        facts["data"] = data_facts(compared, given.images or ())
    if given.int8:
        from crate_mae.export.int8_loss import measure_int8_loss

        loss = measure_int8_loss(
            given.weights, exported.folder, given.probe or "digits", progress=counter_for
        )
        output.say(loss.sentence())
        facts["int8_loss"] = loss.to_dict()
    output.write(facts)
    return 0


def convert_parser() -> CommandParser:
    """The parser of `crate-mae convert`."""
    parser = verb_parser(
        "convert", "A published checkpoint into a weights folder; --to-reference: the way back."
    )
    parser.add_argument(
        "source", help=".pth, .safetensors or .npz (JAX); with --to-reference, our weights"
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", metavar="FOLDER", help="new weights folder")
    target.add_argument(
        "--to-reference",
        metavar="FILE",
        help="new .safetensors, .pth or .npz with the published key names of its family",
    )
    parser.add_argument(
        "--num-heads", type=int, metavar="N", help="of the encoder (measured, or of its size)"
    )
    parser.add_argument("--decoder-num-heads", type=int, metavar="N", help="(as the encoder)")
    parser.add_argument("--step-size", type=float, metavar="X", help="eta of ISTA (0.1)")
    parser.add_argument(
        "--sparsity",
        type=float,
        metavar="X",
        help="lambda of ISTA (measured: 5.0 or 0.5; classifiers: 0.1)",
    )
    parser.add_argument(
        "--norm-pix-loss",
        action=argparse.BooleanOptionalAction,
        help="whether it was trained on normalised patches (measured)",
    )
    parser.add_argument(
        "--images",
        nargs="+",
        metavar="IMAGE",
        help="files, folders or one data address to measure on (squares of two photographs)",
    )
    add_part(parser, limit=8)
    parser.set_defaults(limit=None)
    add_reading(parser)
    classifiers = parser.add_argument_group("of classifiers, CRATE and CRATE-alpha")
    for name, what in (("image", "(a square grid)"), ("patch", "of CRATE's files (a square)")):
        classifiers.add_argument(
            f"--{name}-size",
            type=image_size,
            metavar="PIXELS",
            help=f"one number, or HEIGHTxWIDTH {what}",
        )
    classifiers.add_argument("--channels", type=int, metavar="N", help="of CRATE's files (3)")
    classifiers.add_argument(
        "--head-pool",
        dest="pool",
        choices=["cls", "mean-all"],
        help="what the head was trained on (cls)",
    )
    return parser


def convert(argv: list[str]) -> int:
    """The exit status of `crate-mae convert`."""
    parser = convert_parser()
    given = parser.read(argv)
    names = (*_FACTS, *_OF_CLASSIFIERS)
    facts = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    if given.to_reference and (facts or given.images):
        parser.error("--to-reference takes no facts and no images: our weights hold all of them")
    reading = {
        "--split": given.split,
        "--limit": given.limit,
        "--image-key": given.image_key,
        "--label-key": given.label_key,
        "--follow-links": given.follow_links,
    }
    if given.to_reference:
        refuse_beside(parser, "--to-reference reads no images", reading)
    if not given.images:
        refuse_beside(parser, "without --images there is nothing to choose from", reading)
    if given.limit is None:
        given.limit = 8
    if given.images and facts.keys() >= _MEASURED:
        parser.error("every fact is given, so there is nothing to measure: leave out --images")
    return _to_reference(given) if given.to_reference else _from_reference(given, facts)


_FACTS = ("num_heads", "sparsity", "norm_pix_loss", "decoder_num_heads", "step_size")
_MEASURED = {"num_heads", "sparsity", "norm_pix_loss"}
_OF_CLASSIFIERS = ("image_size", "patch_size", "channels", "pool")
_OF_AUTOENCODERS = {"norm_pix_loss", "decoder_num_heads"}


def _from_reference(given: argparse.Namespace, facts: dict[str, Any]) -> int:
    from crate_mae.common.files import check_new_folder
    from crate_mae.evaluation.published_facts import measure_published_facts
    from crate_mae.weights.conversion import convert_family, read_checkpoint
    from crate_mae.weights.published import PublishedFacts, convert_checkpoint
    from crate_mae.weights.published_classifiers import ClassifierFacts

    check_new_folder(given.out)
    source = opened_images(given) if given.images else None
    checkpoint = read_checkpoint(given.source)
    foreign = _foreign(checkpoint.family, facts, images=bool(given.images))
    if foreign:
        raise ValueError(
            f"{given.source} is a file of {checkpoint.family}, which has nothing to do with"
            f" {', '.join(foreign)}: leave out"
        )
    if checkpoint.family != "crate-mae":
        print(convert_family(checkpoint, given.out, ClassifierFacts(**facts)).text())
        return 0
    state = checkpoint.state
    if facts.keys() >= _MEASURED:
        known = PublishedFacts(**facts)
    else:
        measured = measure_published_facts(
            state, source, progress=counter_for("models measured"), **facts
        )
        print(measured.text())
        known = measured.facts
    print(convert_checkpoint(state, given.out, known).text())
    return 0


def _foreign(family: str, facts: dict[str, Any], *, images: bool) -> list[str]:
    """The options that say something which a file of this family does not have."""
    unfit = {"crate-mae": {*_OF_CLASSIFIERS}, "depict": {*_FACTS, *_OF_CLASSIFIERS}}
    found = [name for name in facts if name in unfit.get(family, _OF_AUTOENCODERS)]
    if images and family != "crate-mae":
        found.append("images")
    options = {"pool": "--head-pool"}
    return [options.get(name, f"--{name.replace('_', '-')}") for name in found]


def _to_reference(given: argparse.Namespace) -> int:
    from crate_mae.weights.conversion import write_published

    target = new_file(given.to_reference)
    assert target is not None
    count = write_published(given.source, target)
    print(f"wrote {target}: {count} tensors under the published names")
    return 0
