import os

import pytest

from neurona_protos.prediction_pb2 import Task
from neurona_server.errors import LoadError
from neurona_server.models.repository.scanner import Repository, find_models


def make(root, *names):
    for name in names:
        path = root / name / "model.onnx"
        path.parent.mkdir(parents=True)
        path.touch()


def test_every_version_of_every_model_is_found_in_order(tmp_path):
    make(tmp_path / "a", "lstm/2", "lstm/10", "lenet5/1")
    make(tmp_path / "b", "rnn/1")
    found = find_models([tmp_path / "a", tmp_path / "b"])
    assert [str(one) for one in found] == ["lenet5/1", "lstm/2", "lstm/10", "rnn/1"]
    assert all(one.path.is_file() for one in found)


def test_what_is_not_called_like_a_model_or_a_version_is_passed_over(tmp_path):
    make(tmp_path, "good/1", "good/01", "good/0", "good/one", ".hidden/1", "with space/1")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "good" / "notes.txt").touch()
    assert [str(one) for one in find_models([tmp_path])] == ["good/1"]


def test_a_model_without_a_version_is_version_1(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.onnx").touch()
    make(tmp_path, "both/3")
    (tmp_path / "both" / "model.onnx").touch()
    assert [str(one) for one in find_models([tmp_path])] == ["bare/1", "both/3"]


def test_the_file_may_be_called_otherwise_or_stand_in_a_folder(tmp_path):
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1" / "net.onnx").touch()
    (tmp_path / "folder" / "1" / "model.onnx").mkdir(parents=True)
    (tmp_path / "folder" / "1" / "model.onnx" / "model.onnx").touch()
    (tmp_path / "folder" / "1" / "model.onnx" / "weights.bin").touch()
    (tmp_path / "two" / "1").mkdir(parents=True)
    for name in ("a.onnx", "b.onnx"):  # which of them is not said
        (tmp_path / "two" / "1" / name).touch()
    found = {one.name: one.path.relative_to(tmp_path).as_posix() for one in find_models([tmp_path])}
    assert found == {
        "other": "other/1/net.onnx",
        "folder": "folder/1/model.onnx/model.onnx",
    }


def test_an_empty_repository_has_no_model(tmp_path):
    (tmp_path / "on its way").mkdir()
    (tmp_path / "named").mkdir()
    assert find_models([tmp_path]) == []


def test_a_repository_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LoadError, match="cannot read the repository .*nowhere: No such file"):
        find_models([tmp_path / "nowhere"])


def test_a_root_that_is_named_twice_is_read_once(tmp_path):
    make(tmp_path, "lstm/1")
    assert len(find_models([tmp_path, tmp_path])) == 1


def test_the_same_name_in_two_roots_is_a_problem_of_that_name(tmp_path):
    make(tmp_path / "a", "lstm/1", "rnn/1")
    make(tmp_path / "b", "lstm/1", "cnn/1")
    (tmp_path / "b" / "rnn").mkdir()  # nothing in it
    folders = Repository([tmp_path / "a", tmp_path / "b"]).scan()
    problems = {name: folder.problem for name, folder in folders.items()}
    both = "it stands in the repositories number 1 and 2"
    assert problems == {"cnn": "", "lstm": both, "rnn": ""}


def test_an_empty_folder_in_the_place_of_a_root_is_a_volume_that_is_gone(tmp_path):
    root, kept = tmp_path / "root", tmp_path / "kept"
    make(root, "m/1")
    repository = Repository([root])
    assert repository.scan()
    root.rename(kept)
    root.mkdir()
    with pytest.raises(LoadError, match="is another folder now, and empty"):
        repository.scan()
    root.rmdir()
    kept.rename(root)
    assert repository.scan()
    (root / "m" / "1" / "model.onnx").unlink()
    (root / "m" / "1").rmdir()
    (root / "m").rmdir()
    assert repository.scan() == {}  # its models were taken out, one by one


@pytest.mark.skipif(os.name == "nt", reason="a file name that Windows does not allow")
def test_names_that_would_break_a_log_line_or_a_label_are_passed_over(tmp_path):
    make(tmp_path, 'a"b/1', "a\nb/1", "good/1")
    assert [str(one) for one in find_models([tmp_path])] == ["good/1"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
@pytest.mark.parametrize("place", ["loop", "odd/loop", "odd/1/loop", "odd/2", "odd/1/model.onnx"])
def test_a_link_to_itself_hides_no_other_model(tmp_path, place):
    make(tmp_path, "good/1")
    (tmp_path / "odd" / "1").mkdir(parents=True)
    (tmp_path / place).symlink_to((tmp_path / place).name)
    folders = Repository([tmp_path]).scan()
    assert [str(one) for one in find_models([tmp_path])][:1] == ["good/1"]
    assert not folders["good"].problem


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_a_version_that_cannot_be_read_does_not_hide_the_others(tmp_path):
    make(tmp_path, "m/1", "m/3")
    (tmp_path / "m" / "2").symlink_to("2")  # there is no file behind it
    (tmp_path / "m" / "3" / "weights").symlink_to("weights")
    folder = Repository([tmp_path]).scan()["m"]
    assert not folder.problem
    problems = {number: version.problem for number, version in folder.versions.items()}
    assert problems == {1: "", 3: "'weights' is a link that leads back to itself"}


@pytest.mark.parametrize("text", ["max_batch_rows = 0x" + "f" * 5000, "labels = [0b1]"])
def test_settings_that_cannot_be_read_hide_no_other_model(tmp_path, text):
    make(tmp_path, "good/1", "odd/1")
    (tmp_path / "odd" / "model.toml").write_text(text)
    folders = Repository([tmp_path]).scan()
    assert "model.toml: " in folders["odd"].problem
    assert not folders["good"].problem


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_that_may_be_read_now_is_another_one(tmp_path):
    make(tmp_path, "m/1")
    repository = Repository([tmp_path])
    before = repository.scan()["m"].versions[1].fingerprint
    (tmp_path / "m" / "1" / "model.onnx").chmod(0o604)
    assert repository.scan()["m"].versions[1].fingerprint != before


def test_labels_in_a_folder_of_their_own_are_read_again_when_they_change(tmp_path):
    make(tmp_path, "m/1")
    (tmp_path / "m" / "model.toml").write_text('labels_file = "labels/en.txt"')
    (tmp_path / "m" / "labels").mkdir()
    (tmp_path / "m" / "labels" / "en.txt").write_text("cat")
    repository = Repository([tmp_path])
    assert repository.scan()["m"].settings.labels == ("cat",)
    (tmp_path / "m" / "labels" / "en.txt").write_text("horse")
    assert repository.scan()["m"].settings.labels == ("horse",)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_nothing_is_read_of_a_folder_that_is_a_link_out_of_the_root(tmp_path):
    make(tmp_path / "elsewhere", "m/1")
    (tmp_path / "elsewhere" / "m" / "model.toml").write_text("secret = 1")
    make(tmp_path / "root", "good/1")
    (tmp_path / "root" / "m").symlink_to(tmp_path / "elsewhere" / "m")
    (tmp_path / "root" / "again").symlink_to("good")
    folders = Repository([tmp_path / "root"]).scan()
    assert folders["m"].problem == "it is a link that leads out of the repository"
    assert not folders["m"].versions
    assert not folders["again"].problem


def test_a_folder_that_is_one_model_has_the_name_that_it_is_given(tmp_path):
    make(tmp_path, "models/1", "models/2")
    (tmp_path / "models" / "model.toml").write_text('task = "tensors"')
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.onnx").touch()
    (tmp_path / "link").symlink_to("models")
    alone = [("a", tmp_path / "models"), ("b", tmp_path / "bare"), ("c", tmp_path / "link")]
    folders = Repository([], alone).scan()
    versions = {name: list(folder.versions) for name, folder in folders.items()}
    assert versions == {"a": [1, 2], "b": [1], "c": [1, 2]}
    assert folders["a"].settings.task == Task.TASK_TENSORS
    assert not any(folder.problem for folder in folders.values())


def test_one_that_is_not_there_or_has_the_name_of_another_is_a_problem(tmp_path):
    make(tmp_path / "root", "m/1", "good/1")
    make(tmp_path, "alone/1")
    alone = [("m", tmp_path / "alone"), ("n", tmp_path / "nowhere")]
    folders = Repository([tmp_path / "root"], alone).scan()
    problems = {name: folder.problem for name, folder in folders.items()}
    both = "it stands in a repository too"
    assert problems == {"good": "", "m": both, "n": "it cannot be read: No such file or directory"}
    with pytest.raises(LoadError, match="a model cannot be called '../x'"):
        Repository([], [("../x", tmp_path)])
    with pytest.raises(LoadError, match="two folders are given"):
        Repository([], [("m", tmp_path), ("m", tmp_path / "alone")])
