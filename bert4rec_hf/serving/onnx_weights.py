"""The weights of an ONNX file, stored in fewer bits than they were trained in."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

MIN_WEIGHTS = 1_024
"""Smaller tensors, norms and biases, stay as they are."""

MAX_FILE_BYTES = 2**31 - 2**24
"""Beyond it a file of the format cannot hold its weights, which then lie beside it."""


def store_as_float32(path: Path) -> None:
    """Leave the file as it was written."""


def store_as_float16(path: Path) -> None:
    """Store large weights in half precision; the graph reads them back and computes in single."""
    model = onnx.load(path)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= MIN_WEIGHTS:
            stored = f"{weight.name}.float16"
            casts.append(helper.make_node("Cast", [stored], [weight.name], to=TensorProto.FLOAT))
            half = numpy_helper.to_array(weight).astype(np.float16)
            weight.CopyFrom(numpy_helper.from_array(half, stored))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    save_graph(model, path)


def store_as_int8(path: Path) -> None:
    """Store the weights of products and lookups as 8 bits, and make the products of 8 bits, too.

    The item table is stored once for each: the head scales it by item, the lookup as a whole.
    """
    model = onnx.load(path)
    logging.disable(logging.WARNING)  # it recommends a preparation that exporting has done
    try:
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul", "Gemm", "Gather"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=is_large(model),
        )
    finally:
        logging.disable(logging.NOTSET)


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Save in one file, or with the weights beside it where one cannot hold them."""
    beside = path.with_name(f"{path.name}.data")
    beside.unlink(missing_ok=True)
    onnx.save_model(model, path, save_as_external_data=is_large(model), location=beside.name)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights do not fit into one file."""
    return sum(len(weight.raw_data) for weight in model.graph.initializer) > MAX_FILE_BYTES


PRECISIONS: dict[str, Callable[[Path], None]] = {
    "float32": store_as_float32,
    "float16": store_as_float16,
    "int8": store_as_int8,
}
