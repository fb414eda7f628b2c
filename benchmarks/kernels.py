"""Where a training step spends its time, kernel by kernel: python benchmarks/kernels.py crate.

Names are subjects of `benchmarks/bench.py`, such as crate or crate+compile. On a GPU its kernels
are listed, in bf16; on a CPU torch's operators, in float32 and on one thread.
"""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from crate_mae.models.config import PRESETS
from crate_mae.weights.shipped import SHIPPED
from crate_mae.weights.weights_folder import load_model
from records import parser_of
from speed.steps import Job, make_step

STEPS = 3


def main(words: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where there is no such device or subject."""
    parser = parser_of(__doc__)
    parser.add_argument("subjects", nargs="+")
    parser.add_argument("--model", choices=[*PRESETS, *SHIPPED], default="base")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--most", type=int, default=28, help="kernels that are listed (28)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    given = parser.parse_args(words)
    if given.device == "cuda" and not torch.cuda.is_available():
        print(
            "error: there is no NVIDIA GPU to time kernels on: --device cpu lists operators",
            file=sys.stderr,
        )
        return 1
    shipped = given.model in SHIPPED
    job = Job(
        config=load_model(given.model).config if shipped else PRESETS[given.model],
        work="train",
        batch=given.batch_size,
        precision="bf16-mixed" if given.device == "cuda" else "32-true",
        device=given.device,
    )
    threads = torch.get_num_threads()
    try:
        if given.device == "cpu":
            torch.set_num_threads(1)
        for subject in given.subjects:
            print("\n".join(kernel_lines(subject, job, most=given.most)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    finally:
        torch.set_num_threads(threads)
    return 0


def kernel_lines(subject: str, job: Job, *, most: int) -> list[str]:
    """Lines of text: milliseconds a step and calls a step of the longest kernels of a subject.

    On a CPU these are operators, without the time of others that they call.
    """
    on_gpu = job.device == "cuda"

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    step = make_step(subject, job)
    for _ in range(STEPS):
        step()
    wait()
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        for _ in range(STEPS):
            step()
        wait()

    def own(event: Any) -> float:
        """Microseconds."""
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    kernels = sorted((e for e in seen.key_averages() if own(e) > 0), key=own, reverse=True)
    return [
        f"{subject}: {sum(map(own, kernels)) / STEPS / 1000:.2f} ms a step",
        *(
            f"{own(event) / STEPS / 1000:8.3f} ms {event.count // STEPS:5d}  {event.key[:110]}"
            for event in kernels[:most]
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
