"""Rows copied as opaque items against NumPy's own assignment, in any layout of memory."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vesalius.platform.loading.copying import copy_rows

DTYPES = (np.float32, np.float16, np.bool_, np.float64, np.uint8)


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    types=st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    axes=st.permutations(range(4)),
    steps=st.tuples(st.sampled_from((1, 2, -1)), st.sampled_from((1, 2, -1))),
    seed=st.integers(0, 2**16),
)
def test_every_value_arrives_where_assignment_puts_it(
    shape: tuple[int, ...],
    types: tuple[type[np.generic], type[np.generic]],
    axes: list[int],
    steps: tuple[int, int],
    seed: int,
) -> None:
    """Boxes of larger arrays, transposed, turned or with gaps along the last axis; nothing outside is touched."""
    random = np.random.default_rng(seed)
    order = [axis for axis in axes if axis < len(shape)]
    whole = [2 * n + 2 for n in shape]

    def box(values: np.ndarray, step: int) -> np.ndarray:
        start = 1 if step > 0 else -1
        along = slice(start, None, step)
        cut = values[(*(slice(1, 1 + n) for n in shape[:-1]), along)][..., : shape[-1]]
        assert cut.shape == shape
        return cut

    source = (random.random(whole) * 3).astype(types[0])
    laid_out = np.empty([whole[axis] for axis in order], types[0]).transpose(np.argsort(order))
    laid_out[...] = source
    target, expected = (np.full(whole, 7, types[1]) for _ in range(2))
    box(expected, steps[1])[...] = box(source, steps[0])
    copy_rows(box(target, steps[1]), box(laid_out, steps[0]))
    np.testing.assert_array_equal(target, expected)


def test_another_shape_is_refused_or_broadcast_as_numpy_does() -> None:
    target = np.zeros((2, 3, 4), np.float32)
    copy_rows(target, np.arange(4, dtype=np.float32))
    np.testing.assert_array_equal(target[1, 2], np.arange(4))
    with pytest.raises(ValueError, match="broadcast"):
        copy_rows(target, np.zeros((2, 3, 5), np.float32))
