"""What the coding-rate term costs: steps with and without it, in turn, in one process.

python benchmarks/rate_cost.py --preset base --batch 8 --json FILE
"""

import argparse
import json
import resource
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from crate_mae.cli.options import new_file
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import PRESETS
from crate_mae.models.masks import draw_mask
from crate_mae.training.objectives import ObjectiveConfig
from crate_mae.training.rate_term import CodingRate
from records import day_and_machine, parser_of


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = _parser().parse_args(arguments)
    target = new_file(given.json)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = CrateMAE(PRESETS[given.preset]).train()
    images = torch.randn(given.batch, 3, *model.config.image_hw)
    mask = draw_mask("random", model.config.grid, 0.75, None, batch=given.batch)
    rate = CodingRate(
        ObjectiveConfig(gamma=0.1), kept=int((~mask[0]).sum()), visible_only=False, accumulate=1
    )
    batch: dict[str, Any] = {"images": images, "mask": mask}

    def step(*, term: bool) -> float:
        """CPU seconds of one step, forward and backward."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        output = model(images, mask=mask)
        loss = output.loss
        if term:
            loss = loss + rate(batch, output.latent, lambda _: output.latent).loss
        model.zero_grad()
        torch.autograd.backward(loss)
        return resource.getrusage(resource.RUSAGE_SELF).ru_utime - before

    step(term=True)
    pairs = [(step(term=True), step(term=False)) for _ in range(given.rounds)]
    ratios = sorted(with_it / without for with_it, without in pairs)
    found = {
        **day_and_machine(),
        "preset": given.preset,
        "batch": given.batch,
        "rounds": given.rounds,
        "cpu_time_ratio": {"median": median(ratios), "lowest": ratios[0], "highest": ratios[-1]},
        "extra_values_held": given.batch * model.config.dim + 3 * given.batch**2,
    }
    print(json.dumps(found["cpu_time_ratio"]))
    if target is not None:
        target.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
