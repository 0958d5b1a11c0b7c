import os

import pytest

from neurona_server.errors import LoadError
from neurona_server.models.repository import find


def make(root, *names):
    for name in names:
        path = root / name / "model.onnx"
        path.parent.mkdir(parents=True)
        path.touch()


def test_every_version_of_every_model_is_found_in_order(tmp_path):
    make(tmp_path / "a", "lstm/2", "lstm/10", "lenet5/1")
    make(tmp_path / "b", "rnn/1")
    found = find([tmp_path / "a", tmp_path / "b"])
    assert [str(one) for one in found] == ["lenet5/1", "lstm/2", "lstm/10", "rnn/1"]
    assert all(one.path.is_file() for one in found)


def test_what_is_not_called_like_a_model_or_a_version_is_passed_over(tmp_path):
    make(tmp_path, "good/1", "good/01", "good/0", "good/one", ".hidden/1", "with space/1")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "good" / "notes.txt").touch()
    assert [str(one) for one in find([tmp_path])] == ["good/1"]


def test_a_model_without_a_version_is_version_1(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.onnx").touch()
    make(tmp_path, "both/3")
    (tmp_path / "both" / "model.onnx").touch()
    assert [str(one) for one in find([tmp_path])] == ["bare/1", "both/3"]


def test_the_file_may_be_called_otherwise_or_stand_in_a_folder(tmp_path):
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1" / "net.onnx").touch()
    (tmp_path / "folder" / "1" / "model.onnx").mkdir(parents=True)
    (tmp_path / "folder" / "1" / "model.onnx" / "model.onnx").touch()
    (tmp_path / "folder" / "1" / "model.onnx" / "weights.bin").touch()
    (tmp_path / "two" / "1").mkdir(parents=True)
    for name in ("a.onnx", "b.onnx"):  # which of them is not said
        (tmp_path / "two" / "1" / name).touch()
    found = {one.name: one.path.relative_to(tmp_path).as_posix() for one in find([tmp_path])}
    assert found == {
        "other": "other/1/net.onnx",
        "folder": "folder/1/model.onnx/model.onnx",
    }


def test_an_empty_repository_has_no_model(tmp_path):
    (tmp_path / "on its way").mkdir()
    (tmp_path / "named").mkdir()
    assert find([tmp_path]) == []


def test_a_repository_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LoadError, match="cannot read the repository .*nowhere: No such file"):
        find([tmp_path / "nowhere"])


def test_a_root_that_is_named_twice_is_read_once(tmp_path):
    make(tmp_path, "lstm/1")
    assert len(find([tmp_path, tmp_path])) == 1


def test_the_same_name_in_two_roots_is_an_error(tmp_path):
    make(tmp_path / "a", "lstm/1")
    make(tmp_path / "b", "lstm/1")
    with pytest.raises(LoadError, match="'lstm' stands in .*a and in .*b"):
        find([tmp_path / "a", tmp_path / "b"])


@pytest.mark.skipif(os.name == "nt", reason="a file name that Windows does not allow")
def test_names_that_would_break_a_log_line_or_a_label_are_passed_over(tmp_path):
    make(tmp_path, 'a"b/1', "a\nb/1", "good/1")
    assert [str(one) for one in find([tmp_path])] == ["good/1"]
