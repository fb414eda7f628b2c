"""Attention with all its N x N weights against torch's fused kernel, over sequence lengths, on CPU.

python benchmarks/attention_bound.py [--json FILE]     about two minutes on two idle cores

Where the second column falls below 1, the bound of `crate_mae.models.attention` belongs.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from crate_mae.bench.harness import alternate, speedup
from crate_mae.bench.run import machine
from crate_mae.cli.common import new_file, write_json
from crate_mae.models import attention

TOKENS = (17, 50, 65, 101, 145, 161, 197, 257)
HEADS = {"4 heads of 32": (4, 32), "6 heads of 64": (6, 64), "12 heads of 64": (12, 64)}
IMAGES = 16


def main(words: Sequence[str] | None = None) -> int:
    """The exit status; prints a table and writes it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--json", help="also every number, to a new file")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args(words)
    target = new_file(given.json)
    rows = []
    print(
        f"bound {attention.SHORT}; {IMAGES} images, float32; fused / explicit, median (quartiles)"
    )
    for heads, (count, width) in HEADS.items():
        for tokens in TOKENS:
            ratios = measured(count, tokens, width, given.rounds)
            rows.append({"heads": heads, "tokens": tokens, **ratios})
            step, features = ratios["train"], ratios["encode"]
            print(
                f"{heads}, {tokens:4} tokens: step {step['median']:.2f} ({step['lower']:.2f} to"
                f" {step['upper']:.2f}), without gradient {features['median']:.2f}"
                f" ({features['lower']:.2f} to {features['upper']:.2f})",
                flush=True,
            )
    if target is not None:
        facts = {"machine": machine(), "bound": attention.SHORT, "images": IMAGES}
        write_json(target, {**facts, "rounds": given.rounds, "rows": rows})
    return 0


def measured(heads: int, tokens: int, width: int, rounds: int) -> dict[str, dict[str, float]]:
    """How many times as long the fused kernel takes as explicit weights, with and without grad."""
    torch.manual_seed(0)
    shape = (IMAGES, tokens, heads, width)
    w, gradient = (torch.randn(shape).transpose(1, 2) for _ in range(2))

    def step(attend: Callable[[Tensor], Tensor]) -> None:
        torch.autograd.backward(attend(w.detach().requires_grad_()), gradient)

    def fused(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    def explicit(x: Tensor) -> Tensor:
        y: Tensor = attention._Short.apply(x.contiguous())[0]
        return y

    both: dict[str, Callable[[Tensor], Tensor]] = {"fused": fused, "explicit": explicit}
    train = alternate({name: partial(step, each) for name, each in both.items()}, rounds=rounds)
    with torch.inference_mode():
        encode = alternate({name: partial(each, w) for name, each in both.items()}, rounds=rounds)
    return {
        "train": speedup(train, "fused", "explicit").to_dict(),
        "encode": speedup(encode, "fused", "explicit").to_dict(),
    }


if __name__ == "__main__":
    sys.exit(main())
