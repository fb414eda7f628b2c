"""Every format of exported models: how it is written, and how its own runtime runs it.

Both ends of a format stand in one row of `FORMATS`, so that none is written that is not run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crate_mae.common.files import user_path
from crate_mae.export.exported_facts import FACTS, check_files, read_facts, shown

OPSET = 20
Runner = Callable[[Sequence[Tensor]], Tensor]
"""What makes the output of a batch: images, and a mask where the task has one."""


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format."""

    file: str
    """How its file is called."""
    write: Callable[[nn.Module, Sequence[Tensor], Sequence[str], Path], None]
    """Write (module, example inputs, their names, file); the number of images stays free."""
    run: Callable[[Path], Runner]
    """What the format's own runtime makes of a file."""
    packages: tuple[str, ...] = ()
    """What it needs to be installed."""
    extra: str = ""
    """The extra of this package that brings them; empty where there is none."""


def exported_program(module: nn.Module, inputs: Sequence[Tensor], names: Sequence[str]) -> Any:
    """`torch.export`'s program of a module, for any number of images of the inputs' size."""
    batch = torch.export.Dim("batch")
    free = {name: {0: batch} for name in names}
    with torch.no_grad():
        return torch.export.export(module, tuple(inputs), dynamic_shapes=free)


def _write_pt2(m: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], file: Path) -> None:
    torch.export.save(exported_program(m, inputs, names), file)


def _run_pt2(file: Path) -> Runner:
    module = torch.export.load(file).module()

    def run(inputs: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            output: Tensor = module(*inputs)
        return output

    return run


def _write_onnx(m: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], file: Path) -> None:
    torch.onnx.export(
        exported_program(m, inputs, names),
        tuple(inputs),
        str(file),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(names),
        output_names=["output"],
        external_data=False,
        verbose=False,
    )


def _run_onnx(file: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def _write_openvino(
    m: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], file: Path
) -> None:
    import openvino

    converted = openvino.convert_model(exported_program(m, inputs, names))
    # Unasked it would write weights as float16.
    openvino.save_model(converted, file, compress_to_fp16=False)


def _run_openvino(file: Path) -> Runner:
    import openvino

    # Unasked it computes in bfloat16 where a CPU can, 2e-2 away, and says nothing.
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(file, "CPU", settings)

    def run(inputs: Sequence[Tensor]) -> Tensor:
        found = compiled([value.numpy() for value in inputs])[0]
        return torch.from_numpy(found.copy())

    return run


def _write_executorch(
    m: nn.Module, inputs: Sequence[Tensor], names: Sequence[str], file: Path
) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    # Its memory is planned beforehand: the largest batch must be known.
    batch = torch.export.Dim("batch", max=LARGEST_EXECUTORCH_BATCH)
    free = {name: {0: batch} for name in names}
    with torch.no_grad():
        program = torch.export.export(m, tuple(inputs), dynamic_shapes=free)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    file.write_bytes(lowered.to_executorch().buffer)


def _run_executorch(file: Path) -> Runner:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(file).load_method("forward")
    if method is None:
        raise RuntimeError(f"{file} has no method forward")

    def run(inputs: Sequence[Tensor]) -> Tensor:
        output: Tensor = method.execute([value.contiguous() for value in inputs])[0].clone()
        return output

    return run


LARGEST_EXECUTORCH_BATCH = 64

FORMATS: dict[str, Format] = {
    "pt2": Format(file="model.pt2", write=_write_pt2, run=_run_pt2),
    "onnx": Format(
        file="model.onnx",
        write=_write_onnx,
        run=_run_onnx,
        packages=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
    ),
    "openvino": Format(
        file="model.xml",
        write=_write_openvino,
        run=_run_openvino,
        packages=("openvino",),
        extra="openvino",
    ),
    "executorch": Format(
        file="model.pte",
        write=_write_executorch,
        run=_run_executorch,
        packages=("executorch",),
        extra="executorch",
    ),
}
"""Formats by name."""


def check_installed(name: str) -> None:
    """Raise ModuleNotFoundError, with the command that helps, where a format lacks its packages.

    ValueError for a format that is not known.
    """
    if name not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, not {name!r}")
    found = FORMATS[name]
    if missing := [package for package in found.packages if find_spec(package) is None]:
        what = f'"crate-mae[{found.extra}]"' if found.extra else " ".join(missing)
        raise ModuleNotFoundError(f"{name} needs {', '.join(missing)}: pip install {what}")


def load_exported(folder: str | Path) -> Runner:
    """What runs the model of a folder that `export_model` wrote, in the format's own runtime.

    Call it with [images] or [images, mask], prepared as the folder's `export.json` says. Raises
    FileNotFoundError where there is no such folder, ValueError where its files are not those that
    `export.json` is of, and ModuleNotFoundError for packages that are missing.
    """
    facts = read_facts(folder)
    if facts.format not in FORMATS or FORMATS[facts.format].file not in facts.files:
        raise ValueError(
            f"{folder}: {FACTS} names format {shown(facts.format)} and the files"
            f" {shown(list(facts.files))}, which are none that can be run here"
        )
    check_installed(facts.format)
    check_files(folder, facts)
    chosen = FORMATS[facts.format]
    return chosen.run(user_path(folder) / chosen.file)
