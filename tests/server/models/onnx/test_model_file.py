import os
import resource
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.onnx.model_file import check_model_file, inside, read_outline

SHARED = os.environ.get("NEURONA_SHARED")


@pytest.fixture
def path(tmp_path):
    return onnx_models.save_classifier(tmp_path / "model.onnx")


def test_a_model_passes(path):
    assert check_model_file(path) == path.stat().st_size
    found = read_outline(path)
    assert (found.nodes, found.external, found.nested) == (3, set(), False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\0" * 4096, "zeros"),
        (b"hello, this is a text\n" * 10, "a text"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n  <html>", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git-lfs"),
        (b"PK\x03\x04" + bytes(100), "zip archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "bytes 89 50 4e 47"),
        (b"\x08\x08\x12\x04test", "no graph"),
        (b"\xff" * 100, "not ONNX"),
    ],
)
def test_what_is_no_model_is_told_apart(tmp_path, content, reason):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LoadError, match=reason):
        check_model_file(path)


def test_a_model_that_is_cut_off_anywhere_is_refused(path):
    """But exactly between two fields behind its graph: what is missing there, ONNX Runtime says."""
    whole = path.read_bytes()
    refused = 0
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if _has_a_graph(whole[:size]):
            assert check_model_file(path) == size
            continue
        refused += 1
        with pytest.raises(LoadError, match=r"empty|ends after|no graph"):
            check_model_file(path)
    assert refused > len(whole) - 3
    path.write_bytes(whole[:100])
    with pytest.raises(LoadError, match=r"ends after 100 of at least [\d,]+ bytes: still being"):
        check_model_file(path)


def _has_a_graph(content: bytes) -> bool:
    try:
        return onnx.ModelProto.FromString(content).HasField("graph")
    except DecodeError:
        return False


def test_two_gibibytes_of_nothing_are_not_read(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    os.truncate(path, 2 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LoadError, match="zeros"):
        check_model_file(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10_000  # kB


def test_more_than_protobuf_can_read_is_refused(path):
    content = path.read_bytes()
    size = 2 << 30
    varint = bytes(
        [size & 0x7F | 0x80, *(size >> s & 0x7F | 0x80 for s in (7, 14, 21)), size >> 28]
    )
    path.write_bytes(content + b"\x32" + varint)
    # A text of 2 GiB behind it, which takes no room on the disk.
    os.truncate(path, len(content) + 1 + len(varint) + size)
    with pytest.raises(LoadError, match=r"2,147,48\d,\d+ bytes: .* external data"):
        check_model_file(path)


def test_a_file_of_nothing_but_tiny_fields_is_given_up(path, monkeypatch):
    monkeypatch.setattr("neurona_server.models.onnx.model_file.MOST_FIELDS", 1000)
    path.write_bytes(b"\x08\x00" * 1001)
    with pytest.raises(LoadError, match="not ONNX"):
        check_model_file(path)


def test_graphs_that_are_nested_too_deeply_are_refused(path):
    def wrapped(number, content):
        size = len(content)
        varint = b""
        while size > 0x7F:
            varint += bytes([size & 0x7F | 0x80])
            size >>= 7
        return bytes([number << 3 | 2]) + varint + bytes([size]) + content

    graph = b"\x12\x08location"
    for _ in range(2000):  # a graph of a node of an attribute of a graph of a node …
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))
    path.write_bytes(wrapped(7, graph))
    with pytest.raises(LoadError, match="nested too deeply"):
        read_outline(path)


def test_a_pipe_a_folder_and_nothing_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(LoadError, match="not a file"):
        check_model_file(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(LoadError, match="directory") as caught:
            check_model_file(path)
        assert str(tmp_path) not in str(caught.value)


def test_external_data_are_found_wherever_they_hang(tmp_path):
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
    found = read_outline(path)
    assert found.external == {"w.bin", "constant.bin", "inner.bin"}
    assert found.nested
    assert found.nodes == 2


def test_a_graph_that_is_no_message_is_damaged(path):
    content = b"\x08\x08\x3a\x04\xff\xff\xff\xff"
    path.write_bytes(content)
    assert check_model_file(path) == len(content)
    with pytest.raises(LoadError, match="damaged"):
        read_outline(path)


@pytest.mark.skipif(not SHARED, reason="NEURONA_SHARED does not say where they are")
def test_models_that_others_made_pass():
    paths = sorted(Path(SHARED or "").glob("onnx*/**/*.onnx"))
    assert len(paths) >= 34
    for path in paths:
        assert check_model_file(path) == path.stat().st_size
        assert read_outline(path).nodes == len(onnx.load(path, load_external_data=False).graph.node)


def test_a_link_is_inside_if_what_it_leads_to_is(tmp_path):
    root = tmp_path / "root"
    (root / "model").mkdir(parents=True)
    (root / "weights").write_bytes(np.zeros(4).tobytes())
    (tmp_path / "secret").touch()
    (root / "model" / "good").symlink_to("../weights")
    (root / "model" / "bad").symlink_to("../../secret")
    (root / "model" / "round").symlink_to("round")
    (tmp_path / "another root").symlink_to("root")
    assert inside(root / "model" / "good", root)
    assert inside(root / "model" / "good", tmp_path / "another root")
    assert not inside(root / "model" / "bad", root)
    assert not inside(root / "model" / "round", root)
    assert not inside(root / "model" / "nothing", root)
    assert not inside(tmp_path / "root2", root)
