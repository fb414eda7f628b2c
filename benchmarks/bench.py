"""Speed and memory beside other models, by ratios within one run.

python benchmarks/bench.py --model base --work encode --matmul-limit --memory
"""

import argparse
import sys
from typing import Any

from crate_mae.cli import exit_status
from crate_mae.cli.options import (
    CommandParser,
    Output,
    add_device,
    add_json,
    counter_for,
    device_of,
    image_size,
    seed_number,
)

DEFAULT = "px32-d384-l12"


def main(arguments: list[str] | None = None) -> int:
    """The exit status of `python benchmarks/bench.py`: as of the verbs of `crate-mae`."""
    return exit_status(_bench, list(sys.argv[1:] if arguments is None else arguments))


def _bench(argv: list[str]) -> int:
    given = _parser().read(argv)

    from crate_mae.models.config import resolve_config
    from crate_mae.weights.shipped import SHIPPED
    from crate_mae.weights.weights_folder import load_model
    from speed.loading import unreadable
    from speed.result_text import result_text
    from speed.run_bench import run_bench
    from speed.settings import Settings

    output = Output(given.json)
    model = load_model(given.model).config if given.model in SHIPPED else given.model
    sizes = {"image_size": given.image_size, "patch_size": given.patch_size}
    settings = Settings(
        config=resolve_config(model, **{k: v for k, v in sizes.items() if v is not None}),
        model=given.model,
        subjects=given.subjects,
        compiled=given.compile,
        works=given.work,
        precisions=given.precision,
        batch_sizes=given.batch_sizes,
        ratio=given.mask_ratio,
        rounds=given.rounds,
        threads=given.threads,
        device=device_of(given.device),
        seed=given.seed,
        limit=given.matmul_limit,
        memory=given.memory,
        growth=given.growth,
        loading=given.loading,
        data=tuple(given.data),
    )

    kept: dict[str, Any] = {}

    def keep(result: dict[str, Any]) -> None:
        kept.update(result)
        output.keep(result)

    try:
        run_bench(settings, progress=counter_for, keep=keep)
    finally:  # whatever ends it, what was measured is told
        if kept:
            output.say(result_text(kept))
            output.write(kept)
    rows = kept.get("loading", {}).get("rows", [])
    unread = dict.fromkeys(row["source"] for row in rows if unreadable(row))
    if unread:
        print(f"error: could not be read: {', '.join(unread)}", file=sys.stderr)
    return 1 if unread else 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "bench.py",
        "Time the model beside others, in turn within one process: medians, spread and"
        " ratios."
        " Subjects: crate, crate-reference, crate-two-product, crate-folded, crate-visible,"
        " vitmae-twin, vitmae-published, timm-vit; each also as NAME+compile. docs/speed.md tells"
        " what they are. Without options: a small model, a few minutes.",
    )
    what = parser.add_argument_group("what is timed")
    what.add_argument("--model", default=DEFAULT, help=f"preset or shipped model ({DEFAULT})")
    what.add_argument("--image-size", type=image_size, metavar="N|HxW", help="(the preset's)")
    what.add_argument("--patch-size", type=image_size, metavar="N|HxW", help="(the preset's)")
    what.add_argument("--subjects", type=_words, metavar="A,B", help="(the usual ones)")
    what.add_argument("--compile", action="store_true", help="each through torch.compile as well")
    what.add_argument(
        "--work", type=_words, default=("train", "encode"), metavar="train,encode",
        help="a training step, features of whole images (both)",
    )  # fmt: skip
    what.add_argument(
        "--batch-sizes", type=_counts, default=(32,), metavar="N,N", help="images a step (32)"
    )
    what.add_argument(
        "--precision", type=_words, default=("32-true",), metavar="32-true,bf16-mixed",
        help="(32-true)",
    )  # fmt: skip
    what.add_argument("--mask-ratio", type=float, default=0.75, help="removed in training (0.75)")
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=int, default=5, help="timed rounds, after a warm-up (5)")
    how.add_argument("--threads", type=int, help="threads of torch (as it chooses)")
    how.add_argument("--seed", type=seed_number, default=0, help="of weights, images, masks (0)")
    add_device(parser)
    more = parser.add_argument_group("what else is measured")
    more.add_argument(
        "--matmul-limit",
        action="store_true",
        help="the time of the matrix products alone, and the share",
    )
    more.add_argument("--memory", action="store_true", help="peak memory of every subject's step")
    more.add_argument(
        "--growth", type=int, nargs="?", const=1024, metavar="PIXELS",
        help="time and memory of growing images, up to so many pixels (1024)",
    )  # fmt: skip
    more.add_argument(
        "--loading", action="store_true", help="images/s of generated sources, by worker"
    )
    more.add_argument(
        "--data", action="append", default=[], metavar="ADDRESS",
        help="images/s of your own data address; may be repeated",
    )  # fmt: skip
    add_json(parser, "every number")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and 0 < int(part) <= 1 << 20 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} are no batch sizes such as 32 or 8,32")
    return tuple(map(int, parts))


if __name__ == "__main__":
    raise SystemExit(main())
