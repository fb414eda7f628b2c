"""Packages that only some of the library needs, and the extra of this package that brings each."""

from importlib.util import find_spec

EXTRA_OF = {
    "lightning": "train",
    "jsonargparse": "train",
    "tensorboard": "train",
    "sklearn": "evaluate",
    "scipy": "evaluate",
    "pyarrow": "evaluate",
    "matplotlib": "figures",
    "datasets": "hf",
    "transformers": "transformers",
    "timm": "timm",
    "webdataset": "wds",
    "tifffile": "tiff",
    "imagecodecs": "tiff",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "wandb": "track",
    "mlflow": "track",
    "trackio": "trackio",
    "ray": "ray",
}
"""The extra by the name that is imported."""


def with_command(error: ImportError) -> ImportError:
    """An error that names the command which brings what is missing; others as they are."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRA_OF or "pip install" in str(error):
        return error
    command = f'pip install "crate-mae[{EXTRA_OF[package]}]"'
    told = f"this needs {package}, which is not installed: {command}"
    return ModuleNotFoundError(told, name=package)


def check_installed(package: str) -> None:
    """Raise ModuleNotFoundError, naming the command that brings it, where a package is missing.

    Nothing is imported. A folder of its name in the working directory is no package.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise with_command(ModuleNotFoundError(f"no module named {package}", name=package))
