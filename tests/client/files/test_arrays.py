"""Files of arrays: what they hold, or why they are not read."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from neurona_client.files.arrays import read_arrays, read_sequences
from neurona_client.files.content import FileContentError


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def zipped(**entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def test_an_array_and_arrays_by_name_are_read_whatever_the_suffix(tmp_path):
    rows = np.asfortranarray(np.arange(6, dtype=">f8").reshape(2, 3))
    np.save(tmp_path / "one.npy", rows)
    np.savez_compressed(tmp_path / "many.npz", rows=rows, text=np.array(["a", "b"]))
    assert np.array_equal(read_arrays(tmp_path / "one.npy"), rows)
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    assert np.array_equal(read_arrays(tmp_path / "one.npz"), rows)
    arrays = read_arrays(tmp_path / "many.npz")
    assert np.array_equal(arrays["rows"], rows)
    assert arrays["text"].tolist() == ["a", "b"]


REJECTED = {
    "a pickle": (pickle.dumps([1.0]), "content is a pickle, which could run code (expected"),
    "an old pickle": (pickle.dumps({"a": 1}, 0), "content is a pickle"),
    "a pickled array": (pickle.dumps(np.zeros(3)), "content is a pickle"),
    "an array pickled in text": (pickle.dumps(np.zeros(3), 0), "content is a pickle"),
    "text that begins as a pickle could": (b"click,time\n", "content is no array"),
    "text": (b"hello", "content is no array"),
    "nothing": (b"", "file is empty"),
    "half": (saved(np.zeros(100))[:-9], "array cannot be read"),
    "half a header": (saved(np.zeros(100))[:20], "array cannot be read"),
    "a huge shape": (
        saved(np.zeros(3)).replace(b"(3,), }           ", b"(3000000000000,), }"),
        "array cannot be read",
    ),
    "half an archive": (zipped(**{"a.npy": saved(np.zeros(9))})[:-40], "cannot be read"),
    "another archive": (zipped(**{"a.txt": b"hello"}), "entry 'a.txt' is no array"),
    "a damaged entry": (zipped(**{"a.npy": b"\x93NUMPY\x01\0"}), "array 'a' cannot be read"),
}


@pytest.mark.parametrize("name", REJECTED)
def test_the_error_says_what_is_in_the_file(name, tmp_path):
    content, message = REJECTED[name]
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(FileContentError) as caught:
        read_arrays(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_objects_are_named_with_their_array(tmp_path):
    objects = np.array([{}, "text"], dtype=object)
    np.savez(tmp_path / "a.npz", good=np.zeros(3), bad=objects)
    np.save(tmp_path / "a.npy", objects)
    with pytest.raises(FileContentError, match="array 'bad' has Python objects, which could run"):
        read_arrays(tmp_path / "a.npz")
    with pytest.raises(FileContentError, match=r"array has Python objects.*array.astype\(str\)"):
        read_arrays(tmp_path / "a.npy")


def test_sequences_are_padded_to_the_longest():
    steps = np.arange(10.0).reshape(5, 2)
    rows, lengths = read_sequences({"inputs": steps, "lengths": np.array([2, 3], np.uint8)})
    assert rows.dtype == np.float32
    assert lengths.dtype == np.int32
    assert rows.tolist() == [[[0, 1], [2, 3], [0, 0]], [[4, 5], [6, 7], [8, 9]]]


@pytest.mark.parametrize(
    "lengths", [[2**62, 2**62], [2**40, 1], [-1, 6]], ids=["overflow", "huge", "negative"]
)
def test_impossible_lengths_are_rejected_before_memory_is_taken(lengths):
    for inputs in (np.zeros((5, 2)), np.zeros((2, 5, 2))):
        with pytest.raises(FileContentError, match=r"inputs|lengths"):
            read_sequences({"inputs": inputs, "lengths": np.array(lengths)})
