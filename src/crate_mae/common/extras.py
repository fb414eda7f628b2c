"""Packages that only some of the library needs, and the extra of this package that brings each."""

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
