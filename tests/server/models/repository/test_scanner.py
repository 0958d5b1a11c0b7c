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
    sources = find_models([tmp_path / "a", tmp_path / "b"])
    assert [str(source) for source in sources] == ["lenet5/1", "lstm/2", "lstm/10", "rnn/1"]
    assert all(source.path.is_file() for source in sources)


def test_other_names_than_those_of_models_and_versions_are_not_served(tmp_path):
    make(tmp_path, "good/1", "good/01", "good/0", "good/one", ".hidden/1", "with space/1")
    (tmp_path / "empty" / "1").mkdir(parents=True)
    (tmp_path / "good" / "notes.txt").touch()
    assert [str(source) for source in find_models([tmp_path])] == ["good/1"]


def test_model_without_a_version_folder_is_version_1(tmp_path):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.onnx").touch()
    make(tmp_path, "both/3")
    (tmp_path / "both" / "model.onnx").touch()
    assert [str(source) for source in find_models([tmp_path])] == ["bare/1", "both/3"]


def test_model_file_may_have_another_name_or_be_in_a_folder(tmp_path):
    (tmp_path / "other" / "1").mkdir(parents=True)
    (tmp_path / "other" / "1" / "net.onnx").touch()
    (tmp_path / "folder" / "1" / "model.onnx").mkdir(parents=True)
    (tmp_path / "folder" / "1" / "model.onnx" / "model.onnx").touch()
    (tmp_path / "folder" / "1" / "model.onnx" / "weights.bin").touch()
    (tmp_path / "two" / "1").mkdir(parents=True)
    for name in ("a.onnx", "b.onnx"):  # ambiguous
        (tmp_path / "two" / "1" / name).touch()
    sources = find_models([tmp_path])
    paths = {source.name: source.path.relative_to(tmp_path).as_posix() for source in sources}
    assert paths == {
        "other": "other/1/net.onnx",
        "folder": "folder/1/model.onnx/model.onnx",
    }


def test_an_empty_repository_has_no_model(tmp_path):
    (tmp_path / "not a name").mkdir()
    (tmp_path / "named").mkdir()
    assert find_models([tmp_path]) == []


def test_missing_repository_is_named(tmp_path):
    with pytest.raises(LoadError, match="cannot read the repository .*nowhere: No such file"):
        find_models([tmp_path / "nowhere"])


def test_duplicate_root_is_scanned_once(tmp_path):
    make(tmp_path, "lstm/1")
    assert len(find_models([tmp_path, tmp_path])) == 1


def test_same_name_in_two_roots_is_a_problem_of_that_model(tmp_path):
    make(tmp_path / "a", "lstm/1", "rnn/1")
    make(tmp_path / "b", "lstm/1", "cnn/1")
    (tmp_path / "b" / "rnn").mkdir()  # empty
    folders = Repository([tmp_path / "a", tmp_path / "b"]).scan()
    problems = {name: folder.problem for name, folder in folders.items()}
    duplicate = "duplicate model: it is in repositories 1 and 2"
    assert problems == {"cnn": "", "lstm": duplicate, "rnn": ""}
    assert folders["rnn"].notes == ("its folder in repository 2 holds no version",)


def test_a_model_that_is_usable_in_one_root_and_misnamed_in_another_is_a_duplicate(tmp_path):
    make(tmp_path / "a", "m/v1")
    make(tmp_path / "b", "m/1")
    folders = Repository([tmp_path / "a", tmp_path / "b"]).scan()
    assert folders["m"].problem == "duplicate model: it is in repositories 1 and 2"


def test_root_replaced_by_an_empty_folder_is_an_unmounted_volume(tmp_path):
    root, moved = tmp_path / "root", tmp_path / "moved"
    make(root, "m/1")
    repository = Repository([root])
    assert repository.scan()
    root.rename(moved)
    root.mkdir()
    with pytest.raises(LoadError, match="was replaced by an empty folder"):
        repository.scan()
    root.rmdir()
    moved.rename(root)
    assert repository.scan()
    (root / "m" / "1" / "model.onnx").unlink()
    (root / "m" / "1").rmdir()
    (root / "m").rmdir()
    assert repository.scan() == {}  # its models were removed, not its volume


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
@pytest.mark.parametrize("place", ["loop", "odd/loop", "odd/1/loop", "odd/2", "odd/1/model.onnx"])
def test_link_to_itself_hides_no_other_model(tmp_path, place):
    make(tmp_path, "good/1")
    (tmp_path / "odd" / "1").mkdir(parents=True)
    (tmp_path / place).symlink_to((tmp_path / place).name)
    folders = Repository([tmp_path]).scan()
    assert [str(source) for source in find_models([tmp_path])][:1] == ["good/1"]
    assert not folders["good"].problem


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_unreadable_version_does_not_hide_the_others(tmp_path):
    make(tmp_path, "m/1", "m/3")
    (tmp_path / "m" / "2").symlink_to("2")  # a link to itself
    (tmp_path / "m" / "3" / "weights").symlink_to("weights")
    folder = Repository([tmp_path]).scan()["m"]
    assert not folder.problem
    problems = {number: version.problem for number, version in folder.versions.items()}
    assert problems == {1: "", 3: "'weights' is a link to itself"}


@pytest.mark.parametrize("text", ["max_batch_rows = 0x" + "f" * 5000, "labels = [0b1]"])
def test_invalid_settings_hide_no_other_model(tmp_path, text):
    make(tmp_path, "good/1", "odd/1")
    (tmp_path / "odd" / "model.toml").write_text(text)
    folders = Repository([tmp_path]).scan()
    assert "model.toml: " in folders["odd"].problem
    assert not folders["good"].problem


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_file_that_becomes_readable_has_another_fingerprint(tmp_path):
    make(tmp_path, "m/1")
    repository = Repository([tmp_path])
    before = repository.scan()["m"].versions[1].fingerprint
    (tmp_path / "m" / "1" / "model.onnx").chmod(0o604)
    assert repository.scan()["m"].versions[1].fingerprint != before


def test_labels_in_a_subfolder_are_read_again_when_they_change(tmp_path):
    make(tmp_path, "m/1")
    (tmp_path / "m" / "model.toml").write_text('labels_file = "labels/en.txt"')
    (tmp_path / "m" / "labels").mkdir()
    (tmp_path / "m" / "labels" / "en.txt").write_text("cat")
    repository = Repository([tmp_path])
    assert repository.scan()["m"].settings.labels == ("cat",)
    (tmp_path / "m" / "labels" / "en.txt").write_text("horse")
    assert repository.scan()["m"].settings.labels == ("horse",)


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")
def test_folder_linked_from_outside_the_root_is_not_read(tmp_path):
    make(tmp_path / "elsewhere", "m/1")
    (tmp_path / "elsewhere" / "m" / "model.toml").write_text("secret = 1")
    make(tmp_path / "root", "good/1")
    (tmp_path / "root" / "m").symlink_to(tmp_path / "elsewhere" / "m")
    (tmp_path / "root" / "again").symlink_to("good")
    folders = Repository([tmp_path / "root"]).scan()
    assert folders["m"].problem == "it is a link that leads out of the repository"
    assert not folders["m"].versions
    assert not folders["again"].problem


def test_single_model_has_its_given_name(tmp_path):
    make(tmp_path, "models/1", "models/2")
    (tmp_path / "models" / "model.toml").write_text('task = "tensors"')
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "model.onnx").touch()
    (tmp_path / "link").symlink_to("models")
    single_models = [("a", tmp_path / "models"), ("b", tmp_path / "bare"), ("c", tmp_path / "link")]
    folders = Repository([], single_models).scan()
    versions = {name: list(folder.versions) for name, folder in folders.items()}
    assert versions == {"a": [1, 2], "b": [1], "c": [1, 2]}
    assert folders["a"].settings.task == Task.TASK_TENSORS
    assert not any(folder.problem for folder in folders.values())


def test_missing_or_duplicate_single_model_is_a_problem(tmp_path):
    make(tmp_path / "root", "m/1", "good/1")
    make(tmp_path, "alone/1")
    single_models = [("m", tmp_path / "alone"), ("n", tmp_path / "nowhere")]
    folders = Repository([tmp_path / "root"], single_models).scan()
    problems = {name: folder.problem for name, folder in folders.items()}
    duplicate = "duplicate model: it is in a repository, too"
    assert problems == {
        "good": "",
        "m": duplicate,
        "n": "it cannot be read: No such file or directory",
    }
    with pytest.raises(LoadError, match="invalid model name '../x'"):
        Repository([], [("../x", tmp_path)])
    with pytest.raises(LoadError, match="two folders are given for the same model name"):
        Repository([], [("m", tmp_path), ("m", tmp_path / "alone")])
