"""What the coding-rate term costs beside a step of a model: CPU time, and values that are held.

python benchmarks/rate_cost.py --preset base --batch 4 --json FILE

A step without the term is timed on a batch that fits this machine; a larger batch takes as many
times as long. The term alone, forward and backward from the latent tokens of the preset's encoder
(of visible patches, or of all where mask tokens enter it), is timed at each size of `--images`, and
set beside a step of as many images. "Held" is what autograd keeps for the backward pass, counted in
values. Exit status 1: some size costs more than 2 % of the time or of the values. Accumulation adds
a pass through the encoder, whose operations are counted by `crate-mae plan`.
"""

import argparse
import json
import resource
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from crate_mae.cli.options import new_file
from crate_mae.common.files import write_atomically
from crate_mae.models.autoencoder import CrateMAE
from crate_mae.models.config import PRESETS
from crate_mae.models.masks import draw_mask
from crate_mae.training.objectives import ObjectiveConfig
from crate_mae.training.rate_term import CodingRate
from records import day_and_machine, parser_of

MOST = 0.02
"""The share of a step, in time and in values held, that is promised to be enough for the term."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status of the command."""
    given = _parser().parse_args(arguments)
    target = new_file(given.json)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = CrateMAE(PRESETS[given.preset]).train()
    images = torch.randn(given.batch, 3, *model.config.image_hw)
    mask = draw_mask("random", model.config.grid, 0.75, None, batch=given.batch)
    visible_only = model.config.mask_tokens == "decoder"
    kept = int((~mask[0]).sum())
    tokens = 1 + (kept if visible_only else model.config.num_patches)

    def step() -> Tensor:
        model.zero_grad()
        loss: Tensor = model(images, mask=mask).loss
        return loss

    step_seconds = _seconds(step, given.rounds) / given.batch
    step_held = values_held(step, model.parameters()) / given.batch
    rows = []
    for count in given.images:
        latent = torch.randn(count, tokens, model.config.dim, requires_grad=True)
        term = _term_of(latent, mask[:1].expand(count, -1), kept, visible_only=visible_only)
        seconds, held = _seconds(term, given.rounds), values_held(term)
        rows.append(
            {
                "images": count,
                "of_the_time": seconds / (count * step_seconds),
                "of_the_values_held": held / (count * step_held),
            }
        )
        print(json.dumps(rows[-1]))
    found = {
        **day_and_machine(),
        "preset": given.preset,
        "batch": given.batch,
        "rounds": given.rounds,
        "values_held_per_image": step_held,
        "term": rows,
    }
    if target is not None:
        write_atomically(target, json.dumps(found, indent=1) + "\n")
    return told(rows, given.preset)


def told(rows: Sequence[Mapping[str, float]], preset: str) -> int:
    """Print whether the term stays below `MOST` at every size; the exit status."""
    time, held = (max(row[key] for row in rows) for key in ("of_the_time", "of_the_values_held"))
    kept = max(time, held) <= MOST
    print(
        f"coding rate at {preset}: at most {time:.2%} of the time of a step and {held:.2%} of its"
        f" values; promised: at most {MOST:.0%}. {'Kept' if kept else 'Missed'}."
    )
    return 0 if kept else 1


def _term_of(
    latent: Tensor, mask: Tensor, kept: int, *, visible_only: bool
) -> Callable[[], Tensor]:
    """The term of latent tokens (B, N, d) under a mask (B, L)."""
    objective = ObjectiveConfig(gamma=0.1)
    rate = CodingRate(objective, kept=kept, visible_only=visible_only, accumulate=1)
    return lambda: rate({"mask": mask}, latent, lambda _: latent).loss


def _seconds(loss: Callable[[], Tensor], rounds: int) -> float:
    """CPU seconds of a loss and its gradient: median, after one that does not count."""
    torch.autograd.backward(loss())
    taken = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        torch.autograd.backward(loss())
        taken.append(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before)
    return median(taken)


def values_held(loss: Callable[[], Tensor], weights: Iterable[Tensor] = ()) -> int:
    """Values of the tensors that autograd keeps for the gradient of a loss, `weights` left out."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = loss()  # whose graph holds what was kept: no address is given away twice
    torch.autograd.backward(result)
    for weight in weights:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def _parser() -> argparse.ArgumentParser:
    parser = parser_of(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--batch", type=int, default=4, help="images of the step that is timed")
    parser.add_argument("--images", type=int, nargs="+", default=[4, 64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also as JSON (new file)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
