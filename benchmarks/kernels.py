"""Where a training step spends its time on a GPU, kernel by kernel: python benchmarks/kernels.py.

Names are subjects of `benchmarks/bench.py`, such as crate or crate+compile.
"""

import sys
from collections.abc import Sequence

import torch
from torch.profiler import ProfilerActivity, profile

from crate_mae.models.config import PRESETS
from records import parser_of
from speed.steps import Job, make_step

STEPS = 3


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where there is no GPU or no such subject."""
    parser = parser_of(__doc__)
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--model", choices=PRESETS, default="base")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--most", type=int, default=28, help="kernels that are listed (28)")
    given = parser.parse_args(words)
    if not torch.cuda.is_available():
        print("error: kernels are timed on an NVIDIA GPU, and there is none", file=sys.stderr)
        return 1
    config = PRESETS[given.model]
    job = Job(
        config=config, work="train", batch=given.batch_size, precision="bf16-mixed", device="cuda"
    )
    try:
        for subject in given.subjects:
            print("\n".join(kernel_lines(subject, job, most=given.most)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def kernel_lines(subject: str, job: Job, *, most: int) -> list[str]:
    """Lines of text: milliseconds a step and calls a step of the longest kernels of a subject."""
    step = make_step(subject, job)
    for _ in range(STEPS):
        step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(STEPS):
            step()
        torch.cuda.synchronize()
    kernels = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    kernels.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    return [
        f"{subject}: {total / STEPS / 1000:.2f} ms a step",
        *(
            f"{event.self_device_time_total / STEPS / 1000:8.3f} ms {event.count // STEPS:5d}"
            f"  {event.key[:110]}"
            for event in kernels[:most]
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
