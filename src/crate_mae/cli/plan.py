"""The verb that tells what a run needs before it starts: plan."""

import sys

from crate_mae.cli.common import new_file, verb_parser, write_json


def plan(words: list[str]) -> int:
    """The exit status of `crate-mae plan`."""
    parser = verb_parser(
        "plan",
        "Steps, operations, memory, time and disk of a run, before it starts, on this machine."
        " Settings are given as for crate-mae pretrain and finetune: --optim.batch_size 64 ...",
    )
    parser.add_argument("config", help="a recipe file, a shipped recipe's name or a run folder")
    parser.add_argument("--images", type=int, metavar="N", help="training images (counted)")
    parser.add_argument(
        "--no-measure", action="store_true", help="arithmetic alone, without real steps"
    )
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="N",
        help="also the hours at this achieved rate of one device, in 10^12 operations a second",
    )
    parser.add_argument("--json", metavar="FILE", help="also write the plan as JSON (new file)")
    given, settings = parser.parse_known_args(words)
    before = words[words.index(given.config) - 1] if words.index(given.config) else ""
    if before in settings and before.startswith("--") and "=" not in before:
        # What was taken for the recipe is the value of a setting.
        parser.error(f"the recipe comes first: crate-mae plan RECIPE {before} {given.config} ...")

    from crate_mae.plan.run import plan_run
    from crate_mae.plan.settings import parse_recipe
    from crate_mae.plan.text import plan_text

    target = new_file(given.json)
    config = parse_recipe(given.config, settings)
    found = plan_run(
        config,
        images=given.images,
        measure=not given.no_measure,
        tflops=given.tflops,
        progress=lambda text: print(text, file=sys.stderr),
    )
    print(plan_text(found))
    write_json(target, found.to_dict())
    return 0
