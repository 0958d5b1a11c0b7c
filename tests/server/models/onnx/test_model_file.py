import io
import os
import pickle
import resource
import zipfile
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.onnx.model_file import read_outline

SHARED = os.environ.get("NEURONA_SHARED")


@pytest.fixture
def path(tmp_path):
    return onnx_models.save_classifier(tmp_path / "model.onnx")


def test_outline_of_a_model(path):
    outline = read_outline(path)
    assert outline.size == path.stat().st_size
    assert (outline.nodes, outline.external, outline.nested_external) == (3, set(), False)


def zip_of(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(name, bytes(100))
    return content.getvalue()


def safetensors(header=b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'):
    return len(header).to_bytes(8, "little") + header + bytes(8)


def saved_array():
    content = io.BytesIO()
    np.save(content, np.ones(3))
    return content.getvalue()


OTHER_FILES = {
    "empty": (b"", "is empty"),
    "zeros": (b"\0" * 4096, "zeros"),
    "text": (b"hello, this is a text\n" * 10, "a text"),
    "text ending in a dot": ("Zugriff verweigert für see.".encode(), "a text"),
    "utf-16": ("Zugriff verweigert".encode("utf-16"), "a text"),
    "html": (b"<!DOCTYPE html><html>", "HTML"),
    "html after spaces": (b"\n  <html>", "HTML"),
    "html with a byte order mark": (b"\xef\xbb\xbf<!doctype HTML><html>", "HTML"),
    "storage error": (b'<?xml version="1.0"?>\n<Error><Code>NoSuchKey</Code>', "an error message"),
    "json error": (b'{"error": "Invalid username or password."}', "JSON"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
    "zip": (zip_of("a.txt"), "zip archive"),
    "zip of onnx": (zip_of("model/model.onnx"), "zip archive with an ONNX model in it: unpack it"),
    "torch.save": (zip_of("archive/data.pkl", "archive/data/0"), r"torch\.save"),
    "torchscript": (zip_of("m/data.pkl", "m/code/__torch__.py", "m/constants.pkl"), "TorchScript"),
    "keras 3": (zip_of("metadata.json", "config.json", "model.weights.h5"), "Keras"),
    "npz": (zip_of("w.npy"), r"NumPy arrays \(.npz\)"),
    "npy": (saved_array(), "NumPy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "ort": (b"\x18\0\0\0ORTM" + bytes(100), "ORT format"),
    "tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "TFLite"),
    "another tflite": (b"\x20\0\0\0TFL3" + bytes(100), "TFLite"),
    "safetensors": (safetensors(), "safetensors"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(100), "GGUF"),
    "gzip": (b"\x1f\x8b\x08" + bytes(100), "gzip"),
    "tar": (b"model.onnx".ljust(257, b"\0") + b"ustar\0" + bytes(300), "tar archive"),
    "zlib": (zlib.compress(pickle.dumps({"a": 1})), "joblib"),
    "xgboost": (b'{"learner": {"attributes": {}}}', "XGBoost"),
    "lightgbm": (b"tree\nversion=v4\nnum_class=1\n", "LightGBM"),
    "onnx as text": (
        b'<\n  ir_version: 8,\n  opset_import: ["" : 17]\n>\ng (float[n] x)',
        "text form",
    ),
    "protobuf as text": (b"ir_version: 8\ngraph {\n}\n", "protobuf's text"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(100), "picture"),
    "no graph": (b"\x08\x08\x12\x04test", "no graph"),
    "other": (b"\xff" * 100, "not ONNX.*bytes ff ff"),
}
for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
    name = str(protocol) if protocol > 1 else "0 or 1"
    for saved in ({"coef": np.ones((3, 300))}, Path("model"), ["a", "b"]):
        OTHER_FILES[f"pickle {protocol} of {type(saved).__name__}"] = (
            pickle.dumps(saved, protocol),
            rf"a Python pickle \(protocol {name}\).*export",
        )


@pytest.mark.parametrize(("content", "reason"), OTHER_FILES.values(), ids=OTHER_FILES)
def test_other_files_are_recognised(tmp_path, content, reason):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=reason):
        read_outline(path)


def test_pickle_is_not_unpickled(tmp_path):
    class Dangerous:
        def __reduce__(self):
            return (Path(tmp_path / "made").touch, ())

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "model.onnx").write_bytes(pickle.dumps(Dangerous(), protocol))
        with pytest.raises(LoadError, match="pickle"):
            read_outline(tmp_path / "model.onnx")
    assert not (tmp_path / "made").exists()


def test_truncated_model_is_rejected(path):
    """Except exactly between two fields behind its graph, where only ONNX Runtime can tell."""
    content = path.read_bytes()
    rejected = 0
    for size in range(len(content)):
        path.write_bytes(content[:size])
        if _has_a_graph(content[:size]):
            assert read_outline(path).size == size
            continue
        rejected += 1
        with pytest.raises(LoadError, match=r"empty|ends after|no graph"):
            read_outline(path)
    assert rejected > len(content) - 3
    path.write_bytes(content[:100])
    with pytest.raises(LoadError, match=r"ends after 100 of at least [\d,]+ bytes: still being"):
        read_outline(path)


def _has_a_graph(content: bytes) -> bool:
    try:
        return onnx.ModelProto.FromString(content).HasField("graph")
    except DecodeError:
        return False


def test_two_gibibytes_of_zeros_are_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    os.truncate(path, 2 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LoadError, match="zeros"):
        read_outline(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB


def test_more_than_protobuf_can_parse_is_rejected(path):
    content = path.read_bytes()
    size = 2 << 30
    varint = bytes(
        [size & 0x7F | 0x80, *(size >> s & 0x7F | 0x80 for s in (7, 14, 21)), size >> 28]
    )
    path.write_bytes(content + b"\x32" + varint)
    # Followed by a string of 2 GiB, which takes no space on the disk.
    os.truncate(path, len(content) + 1 + len(varint) + size)
    with pytest.raises(LoadError, match=r"2,147,48\d,\d+ bytes: .* external data"):
        read_outline(path)


def test_file_of_too_many_fields_is_rejected(path, monkeypatch):
    monkeypatch.setattr("neurona_server.models.onnx.model_file.MAX_FIELDS", 1000)
    path.write_bytes(b"\x08\x00" * 1001)
    with pytest.raises(LoadError, match="not ONNX"):
        read_outline(path)


def test_too_deeply_nested_graphs_are_rejected(path):
    def wrap(number, content):
        size = len(content)
        varint = b""
        while size > 0x7F:
            varint += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + varint + bytes([size]) + content

    graph = b"\x12\x08location"
    for _ in range(2000):  # a graph of a node of an attribute of a graph of a node …
        graph = wrap(1, wrap(5, wrap(6, graph)))
    path.write_bytes(wrap(7, graph))
    with pytest.raises(LoadError, match="nested too deeply"):
        read_outline(path)


def test_pipe_folder_and_missing_file_are_rejected_immediately(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LoadError, match="not a file"):
        read_outline(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LoadError, match="directory") as caught:
            read_outline(path)
        assert str(tmp_path) not in str(caught.value)


def test_external_data_are_found_in_every_place(tmp_path):
    def external(name, location):
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="offset", value="0")
        tensor.external_data.add(key="location", value=location)
        return tensor

    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])

    inner = helper.make_graph(
        [helper.make_node("Identity", ["i"], ["o"])], "inner", [], [value("o")]
    )
    inner.initializer.append(external("i", "inner.bin"))
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["c"], value=external("c", "constant.bin")),
            helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
        ],
        "g",
        [helper.make_tensor_value_info("yes", TensorProto.BOOL, [])],
        [value("y")],
    )
    graph.initializer.append(external("w", "w.bin"))
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph), path)
    outline = read_outline(path)
    assert outline.external == {"w.bin", "constant.bin", "inner.bin"}
    assert outline.nested_external
    assert outline.nodes == 2


def test_graph_that_is_not_protobuf_is_damaged(path):
    content = b"\x08\x08\x3a\x04\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(LoadError, match="damaged"):
        read_outline(path)


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED is not set")
def test_third_party_models_are_accepted():
    paths = sorted(Path(SHARED or "").glob("onnx*/**/*.onnx"))
    assert len(paths) >= 34
    for path in paths:
        outline = read_outline(path)
        assert outline.size == path.stat().st_size
        assert outline.nodes == len(onnx.load(path, load_external_data=False).graph.node)
