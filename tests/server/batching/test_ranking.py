import numpy as np
import pytest

from neurona_server.batching.ranking import MIN_SELECTED_KEYS, rank_rows

COLUMNS = MIN_SELECTED_KEYS // 2


def keys_of(kind, rows=5):
    generator = np.random.default_rng(7)
    keys = generator.standard_normal((rows, COLUMNS)).astype(np.float32)
    match kind:
        case "different":
            return keys
        case "equal in some rows":
            keys[1::2] = np.round(keys[1::2])
            return keys
        case "equal":
            return np.zeros_like(keys)
        case "some NaN":
            keys[generator.random(keys.shape) < 0.1] = np.nan
            return keys
        case "mostly NaN":
            keys[:, 2:] = np.nan
            return keys
        case "infinite":
            keys[:, ::3] = -np.inf
            keys[2] = np.inf
            return keys
        case "float16":
            return keys.astype(np.float16)
        case "integers":
            return ~(keys * 100).astype(np.int8)
        case "unsigned":
            return ~(keys * 100).astype(np.int64).astype(np.uint64)


@pytest.mark.parametrize(
    "kind",
    [
        *("different", "equal in some rows", "equal", "some NaN", "mostly NaN", "infinite"),
        *("float16", "integers", "unsigned"),
    ],
)
def test_the_first_columns_are_those_of_a_stable_sort_of_all(kind):
    keys = keys_of(kind)
    expected = np.argsort(keys, axis=1, kind="stable")
    for count in (0, 1, 2, 5, COLUMNS // 4, COLUMNS // 4 + 1, COLUMNS):
        assert (rank_rows(keys, count) == expected[:, :count]).all(), count


def test_few_classes_are_sorted(monkeypatch):
    """To select the first of them takes up to six times as long, and of bytes at any number."""
    monkeypatch.setattr(np, "partition", lambda *_, **__: pytest.fail("selected"))
    for shape, dtype in (((500, 10), np.float32), ((100, 99), np.float16), ((32, 1000), np.int8)):
        keys = (np.random.default_rng(1).random(shape) * 100).astype(dtype)
        expected = np.argsort(keys, axis=1, kind="stable")[:, :2]
        assert (rank_rows(keys, 2) == expected).all()


@pytest.mark.parametrize("shape", [(0, 2000), (3, 0), (1, 1), (2000, 1), (1, 5000)])
def test_any_shape(shape):
    keys = np.random.default_rng(1).random(shape)
    count = min(shape[1], 3)
    assert rank_rows(keys, count).shape == (shape[0], count)
    assert (rank_rows(keys, count) == np.argsort(keys, axis=1)[:, :count]).all()
