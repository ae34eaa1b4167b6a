"""The few functions that must work on floats and on numpy arrays alike, without importing numpy for floats."""

from __future__ import annotations

import math
from typing import Any


def _is_array(*values: Any) -> bool:
    return any(hasattr(value, "__array_ufunc__") and getattr(value, "ndim", 0) for value in values)


def ceil(value: Any) -> Any:
    """Smallest whole number not below `value`, as a float."""
    if _is_array(value):
        import numpy as np

        return np.ceil(value)
    return float(math.ceil(value))


def rint(value: Any) -> Any:
    """Nearest whole number (halves to even), as a float."""
    if _is_array(value):
        import numpy as np

        return np.rint(value)
    return float(round(value))


def maximum(a: Any, b: Any) -> Any:
    """The larger of both, element by element."""
    if _is_array(a, b):
        import numpy as np

        return np.maximum(a, b)
    return a if a >= b else b


def where(condition: Any, then: Any, other: Any) -> Any:
    """`then` where `condition` holds, `other` elsewhere."""
    if _is_array(condition, then, other):
        import numpy as np

        return np.where(condition, then, other)
    return then if condition else other


def ratio(numerator: Any, denominator: Any) -> Any:
    """numerator / denominator; NaN (never infinity, never an exception) where the denominator is zero or next to it."""
    if _is_array(numerator, denominator):
        import numpy as np

        top, bottom = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
        with np.errstate(over="ignore"):
            found = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom != 0)
        return np.where(np.isinf(found), np.nan, found)
    found = numerator / denominator if denominator != 0 else math.nan
    return math.nan if math.isinf(found) else found
