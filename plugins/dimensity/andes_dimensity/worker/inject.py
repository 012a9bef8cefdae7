"""Our codes and scales in a .tflite file: handed to the quantiser by the content of each matrix, and read back."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

INT4 = 17
"""`TensorType.INT4` of the schema."""
INT8, INT16 = 9, 7


def digest(array: np.ndarray) -> str:
    """What names an array: its shape and its bytes."""
    array = np.ascontiguousarray(array)
    return hashlib.sha1(f"{array.shape}{array.dtype}".encode() + array.tobytes()).hexdigest()


class Bank:
    """Matrices by the content of what they dequantise to.

    Attributes:
        used: names that the quantiser asked for.
    """

    def __init__(self) -> None:
        self._by_content: dict[str, tuple[str, np.ndarray, np.ndarray, int]] = {}
        self.used: set[str] = set()
        self.twins: dict[str, str] = {}

    def add(self, name: str, codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
        """int8 codes (rows, cols), float32 scales (rows,) -> float32 weights, for the graph."""
        weights = codes.astype(np.float32) * scales[:, None]
        key = digest(weights)
        if key in self._by_content:
            self.twins[name] = self._by_content[key][0]
        else:
            self._by_content[key] = (name, codes, scales, bits)
        return weights

    def entries(self) -> Iterator[tuple[str, np.ndarray, np.ndarray, int]]:
        """(name, codes, scales, bits) of each, equal ones once."""
        yield from self._by_content.values()

    @property
    def names(self) -> set[str]:
        """Of all that were added, equal ones once."""
        return {one[0] for one in self._by_content.values()}

    def of(self, weights: np.ndarray) -> tuple[str, np.ndarray, np.ndarray, int] | None:
        """(name, codes, scales, bits) of a matrix with this content."""
        return self._by_content.get(digest(np.asarray(weights, np.float32)))


def quantise(
    source: Path, target: Path, bank: Bank, kind: str, seen: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write `target`, `source` with the codes of the bank.

    kind: "float" (weights only; products in float) or "a16" (inputs and outputs of products static int16, the rest
    float; `seen` has for each tensor its scale).

    Raises:
        LookupError: a matrix of the graph that is not in the bank.
    """
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithms.uniform_quantize import naive_min_max_quantize as own

    ops = qtyping.TFLOperationName

    def parameters(info: Any, config: Any, content: Any = None, limits: Any = None) -> Any:
        if content is not None and np.ndim(content) == 2 and min(np.shape(content)) > 1:
            found = bank.of(content)
            if found is None:
                raise LookupError(f"a matrix of shape {np.shape(content)} is not among those that were handed over")
            name, codes, steps, bits = found
            bank.used.add(name)
            return qtyping.UniformQuantParams(
                num_bits=bits, quantized_dimension=0, scale=steps[:, None], symmetric=True,
                zero_point=np.zeros((len(steps), 1), np.int32), quantized_data=codes,
            )  # fmt: skip
        if content is None and limits is not None and "scale" in limits:
            # a tensor that several matrices read has a scale for each of them
            matrix = int(info.op.inputs[1]) if len(info.op.inputs) > 1 else -1
            step = np.array(limits["by_matrix"].get(matrix, limits["scale"]), np.float32).reshape(1, 1)
            return qtyping.UniformQuantParams(
                num_bits=config.num_bits, quantized_dimension=None, scale=step, zero_point=np.zeros((1, 1), np.int32),
                symmetric=True,
            )  # fmt: skip
        return own.get_tensor_quant_params(info, config, content, limits)

    register(parameters)
    work = quantizer.Quantizer(str(source))
    if kind == "a16":
        add_static(work)
        made = work.quantize(dict(seen or {}))
    else:
        for op in (ops.FULLY_CONNECTED, ops.EMBEDDING_LOOKUP):
            # tables of the graphs for pictures of any shape stay float: `native.Table`
            work.add_weight_only_config(regex="^(?!.*native.Table)", operation_name=op, num_bits=8)
        made = work.quantize()
    made.export_model(str(target), overwrite=True)


def register(parameters: Any) -> None:
    """Let the quantiser take scales and codes from `parameters`, and ranges as the least and largest value of all.

    By itself it averages ranges over prompts (0.95 of what was, 0.05 of what comes), so that
    values of later prompts would be clipped.
    """
    from ai_edge_quantizer import algorithm_manager as am
    from ai_edge_quantizer.algorithms.uniform_quantize import naive_min_max_quantize as own
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    for name, function in am.MIN_MAX_OP_NAME_MATERIALIZE_FUNC_DICT.items():
        am.register_quantized_op(
            am.AlgorithmName.MIN_MAX_UNIFORM_QUANT, name, own.init_qsvs, calibration_func=own.min_max_calibrate,
            materialize_func=functools.partial(function, parameters), update_qsv_func=min_max_update,
        )  # fmt: skip


def add_static(work: Any) -> None:
    """Static int16 for products alone. Norms, the residual and softmax would lose their outliers."""
    from ai_edge_quantizer import qtyping

    for op in (qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.BATCH_MATMUL):
        work.add_static_config(".*", op, 16, 8)


def matrices(path: Path) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(tensor, int8 codes, float32 scales) of each quantised matrix in a file, as it lies there."""
    import ai_edge_litert.tools.flatbuffer_utils as files

    model, seen = files.read_model(str(path)), set()
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            data = model.buffers[tensor.buffer].data
            if tensor.type not in (INT4, INT8) or data is None or len(tensor.shape) != 2 or tensor.buffer in seen:
                continue
            seen.add(tensor.buffer)
            raw, shape = np.frombuffer(bytes(data), np.uint8), tuple(int(n) for n in tensor.shape)
            codes = unpacked(raw, shape) if tensor.type == INT4 else raw.view(np.int8).reshape(shape)
            yield tensor.name.decode(), codes, np.array(tensor.quantization.scale, np.float32)


def unpacked(raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Two codes of four bits in a byte, the lower one first -> int8 of this shape."""
    both = np.stack([raw & 15, raw >> 4], -1).reshape(-1)[: shape[0] * shape[1]]
    return ((both ^ 8).astype(np.int16) - 8).astype(np.int8).reshape(shape)


def verify(path: Path, bank: Bank) -> dict[str, Any]:
    """Every matrix of a written file compared with the bank, to the bit."""
    wanted = {digest(c) + digest(s): (n, b) for n, c, s, b in bank.entries()}
    exact, foreign, found = 0, [], set()
    for tensor, codes, scales in matrices(path):
        key = digest(codes) + digest(scales)
        if key in wanted:
            exact += codes.size
            found.add(wanted[key][0])
        else:
            foreign.append(tensor)
    missing = sorted(bank.names - found)
    whole = sum(c.size for _, c, _, _ in bank.entries())
    return {"weights": int(whole), "exact": int(exact), "matrices": len(found), "foreign": foreign, "missing": missing}
