"""How the copy engine of compute capability 9.0 is told of a matrix: a tensor map, which a kernel takes by value."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import torch

from inferoptim.errors import UnsupportedError

_BOX_COLUMNS = 64  # 128 bytes, the widest that is swizzled


class TensorMap(ctypes.Structure):
    """`TensorMap` in hopper.cuh."""

    _fields_ = (("opaque", ctypes.c_uint64 * 16),)


def of(matrix: torch.Tensor, box_rows: int) -> TensorMap:
    """The map of a matrix that is copied in boxes of 64 swizzled columns.

    Args:
        matrix: bfloat16 or float16 [rows, columns], contiguous, `columns` a multiple of 8, beginning on 16 bytes.
        box_rows: at most 256.

    Raises:
        UnsupportedError: the driver refuses, or is older than tensor maps.
    """
    rows, columns = matrix.shape
    return _encoded(matrix.data_ptr(), matrix.dtype, rows, columns, box_rows)


@lru_cache(maxsize=4096)  # a map says nothing but this, so it stays true whatever becomes of the memory
def _encoded(address: int, dtype: torch.dtype, rows: int, columns: int, box_rows: int) -> TensorMap:
    from cuda.bindings import driver

    kinds = driver.CUtensorMapDataType
    status, encoded = driver.cuTensorMapEncodeTiled(
        kinds.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 if dtype == torch.bfloat16 else kinds.CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        2,
        address,
        [driver.cuuint64_t(columns), driver.cuuint64_t(rows)],
        [driver.cuuint64_t(2 * columns)],
        [driver.cuuint32_t(_BOX_COLUMNS), driver.cuuint32_t(box_rows)],
        [driver.cuuint32_t(1), driver.cuuint32_t(1)],
        driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
        driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
        driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
        driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
    )  # fmt: skip
    if int(status) != 0:
        raise UnsupportedError(f"cuTensorMapEncodeTiled of [{rows}, {columns}]: {status.name}")
    return TensorMap.from_buffer_copy(ctypes.string_at(int(encoded.getPtr()), ctypes.sizeof(TensorMap)))
