"""Matrices of an ONNX file rounded to eight bits."""

import warnings
from pathlib import Path


def quantise_onnx(file: Path) -> None:
    """Replace an ONNX file by one whose matrix products compute in eight bits.

    Dynamically: activations are scaled as they come, weights once, a scale for each column.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = file.with_name(f"whole-{file.name}")
    file.rename(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises a preparation that changes nothing here
        quantize_dynamic(
            whole,
            file,
            per_channel=True,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
        )
    whole.unlink()
