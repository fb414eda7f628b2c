"""Peak memory of a step, measured in a process of its own.

A process that has done other work keeps memory that the step did not ask for, and its peak is of
all that it ever did. So a fresh process makes the step, runs it once to settle (optimiser state,
buffers of threads and libraries), sets the peak back and runs it again.
"""

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

Step = Callable[[], object]
MakeStep = Callable[..., Step]

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
EXPLAINED: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "ImportError": ImportError,
    "OSError": OSError,
}


class OutOfMemoryError(RuntimeError):
    """Raised when the measured step needs more memory than there is."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Memory in bytes: resident in the process on a CPU, allocated by torch on a GPU."""

    peak: int
    """The most that was held at once during a settled step: interpreter, libraries, all."""
    loaded: int
    """Held once the step was made and had never run: model and data, libraries on a CPU."""
    settled: int
    """Held between two steps, with what a first step leaves behind (optimiser state)."""
    seconds: tuple[float, ...]
    """How long each measured step took."""
    method: str
    """Where the numbers come from."""

    @property
    def above_loaded(self) -> int:
        """What running adds to the loaded state: optimiser state, gradients, activations."""
        return max(0, self.peak - self.loaded)

    @property
    def above_settled(self) -> int:
        """What one step takes while it runs and gives back: activations, gradients."""
        return max(0, self.peak - self.settled)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {name: getattr(self, name) for name in ("peak", "loaded", "settled", "method")}
        above = {"above_loaded": self.above_loaded, "above_settled": self.above_settled}
        return {**plain, **above, "seconds": list(self.seconds)}


def peak_memory(
    make_step: MakeStep,
    arguments: Mapping[str, Any] | None = None,
    *,
    device: str = "cpu",
    threads: int | None = None,
    warmup: int = 1,
    steps: int = 1,
    timeout: float | None = None,
) -> PeakMemory:
    """The peak memory of a step (and how long it took), measured in a fresh process.

    `make_step(**arguments)` is called there and returns the step, a callable without arguments; it
    must be importable by name (no lambda, no function inside a function) and its arguments
    picklable. It runs `warmup` times unmeasured and `steps` times measured, on `threads` threads
    (this process's number when None). `device` "cpu" measures resident memory, "cuda" (or "cuda:N")
    what torch allocates on the GPU. `timeout` is in seconds, for all of it.

    Raises OutOfMemoryError when the step cannot get its memory or its process is killed for it,
    TimeoutError when it takes too long, ValueError for another device or what the step finds wrong,
    and RuntimeError, with the reason, for any other failure in the other process.
    """
    if torch.device(device).type not in ("cpu", "cuda"):
        raise ValueError(f"peak memory is measured on cpu and cuda, not on {device!r}")
    if warmup < 0 or steps < 1:
        raise ValueError(f"at least one measured step is needed, not {warmup} + {steps}")
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    threads = torch.get_num_threads() if threads is None else threads
    job = (theirs, make_step, dict(arguments or {}), device, threads, warmup, steps)
    process = context.Process(target=_measure, args=job, daemon=True)
    process.start()
    theirs.close()  # or the end of the other process would not be seen
    try:
        if not ours.poll(timeout):
            raise TimeoutError(f"the measured step was not done after {timeout:g} s")
        kind, answer = ours.recv()
    except EOFError:
        process.join()
        raise _died(process.exitcode) from None
    finally:
        process.kill()
        process.join()
        process.close()
        ours.close()
    if kind == "measured":
        return PeakMemory(**answer)
    raise _failed(kind, answer)


def _died(exitcode: int | None) -> RuntimeError:
    """The error for a process that ended without an answer."""
    if exitcode == -signal.SIGKILL:
        return OutOfMemoryError(
            "the process of the measured step was killed, as systems do when memory runs out:"
            " use a smaller batch, image or model"
        )
    return RuntimeError(f"the process of the measured step ended with status {exitcode}")


def ran_out_of_memory(kind: str, reason: str) -> bool:
    """Whether an error of this kind (its class's name) and message means a lack of memory."""
    lowered = reason.lower()
    return kind in ("MemoryError", "OutOfMemoryError") or any(
        words in lowered
        for words in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _failed(kind: str, reason: str) -> Exception:
    """The error for a step that raised an exception of this kind."""
    if ran_out_of_memory(kind, reason):
        first = (reason or kind).splitlines()[0]
        return OutOfMemoryError(f"the measured step ran out of memory ({first})")
    return EXPLAINED.get(kind, RuntimeError)(
        reason if kind in EXPLAINED else f"the measured step failed: {kind}: {reason}"
    )


def _measure(
    connection: Connection,
    make_step: MakeStep,
    arguments: dict[str, Any],
    device: str,
    threads: int,
    warmup: int,
    steps: int,
) -> None:
    """Send ("measured", fields of PeakMemory) or (name of an error, its message)."""
    with contextlib.suppress(OSError):  # should memory run out, this process is the one to go
        Path("/proc/self/oom_score_adj").write_text("1000")
    try:
        torch.set_num_threads(threads)
        on_gpu = torch.device(device).type == "cuda"
        gauge = _GpuGauge(device) if on_gpu else _ProcessGauge()
        step = make_step(**arguments)
        loaded = gauge.now()
        for _ in range(warmup):
            step()
        settled = gauge.now()
        gauge.reset()
        seconds = []
        for _ in range(steps):
            begun = perf_counter()
            step()
            gauge.wait()
            seconds.append(perf_counter() - begun)
        peak = gauge.peak()
        answer = {"peak": peak, "loaded": loaded, "settled": settled, "seconds": tuple(seconds)}
        connection.send(("measured", {**answer, "method": gauge.method}))
    except KeyboardInterrupt:
        sys.exit(130)  # the same key reached the process that waits for us
    except Exception as error:
        names = [kind.__name__ for kind in type(error).__mro__]
        known = next((name for name in names if name in EXPLAINED), names[0])
        connection.send((known, str(error)))


class _ProcessGauge:
    """Resident memory of this process, as the system counts it."""

    method = "VmHWM of a fresh process, set back before the measured step"

    def now(self) -> int:
        """Bytes held now, after what is free has been given back to the system."""
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # the C library of most Linux systems
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        return _status("VmRSS") if STATUS.exists() else _lifetime_peak()

    def reset(self) -> None:
        """Let the peak count from here, where the system allows it."""
        try:
            CLEAR.write_text("5")
        except OSError:
            self.method = "peak of a fresh process over its whole life"

    def wait(self) -> None:
        """Do nothing: work on a CPU is done when its call returns."""

    def peak(self) -> int:
        """Bytes held at the peak since the reset."""
        return _status("VmHWM") if STATUS.exists() else _lifetime_peak()


class _GpuGauge:
    """Memory that torch has allocated on a GPU."""

    method = "torch.cuda.max_memory_allocated in a fresh process"

    def __init__(self, device: str) -> None:
        self.device = device

    def now(self) -> int:
        """Bytes allocated now."""
        gc.collect()
        torch.cuda.synchronize(self.device)
        return int(torch.cuda.memory_allocated(self.device))

    def reset(self) -> None:
        """Let the peak count from here."""
        torch.cuda.reset_peak_memory_stats(self.device)

    def wait(self) -> None:
        """Wait until the GPU has done all that was asked of it."""
        torch.cuda.synchronize(self.device)

    def peak(self) -> int:
        """Bytes allocated at the peak since the reset."""
        return int(torch.cuda.max_memory_allocated(self.device))


def _status(field: str) -> int:
    """Bytes of a field of /proc/self/status."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} does not tell {field}: peak memory cannot be measured here")


def _lifetime_peak() -> int:
    """The most bytes this process ever held, where there is no /proc."""
    if sys.platform == "win32":
        raise OSError("peak memory is measured on Linux and macOS, and on GPUs")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
