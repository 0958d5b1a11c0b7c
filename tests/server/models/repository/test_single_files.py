"""Files and folders that are served without the layout of a repository."""

import os
import shutil
import stat
from pathlib import Path

import onnx
import pytest
from support.onnx_models import save_classifier, save_regressor

from neurona_server.errors import LoadError
from neurona_server.models.repository.file_versions import FileVersions
from neurona_server.models.repository.scanner import Repository
from neurona_server.models.repository.single_files import (
    GivenKind,
    check_given,
    clean_name,
    kind_of_given,
    name_of_given,
)


def scan(*given):
    """Return what is served, as name/version: path relative to the first folder, or a reason."""
    shown = {}
    for name, folder in Repository([], (), [*given]).scan().items():
        for number, files in folder.versions.items():
            shown[f"{name}/{number}"] = folder.problem or files.problem or files.path.name
        if not folder.versions:
            reasons = [folder.problem, *(one.reason for one in folder.unusable.values())]
            shown[name] = "; ".join(filter(None, reasons))
    return shown


def test_a_file_is_version_1_of_the_model_that_it_is_named_after(tmp_path):
    file = save_classifier(tmp_path / "iris.onnx")
    save_classifier(tmp_path / "beside.onnx")  # which nobody has named
    assert scan(file) == {"iris/1": "iris.onnx"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("resnet50-v1.5", "resnet50-v1.5"),
        ("petal width (2)", "petal-width-2"),
        ("modèle", "modele"),
        ("_hidden", "hidden"),
        ("模型", "model"),
        ("x" * 200, "x" * 128),
    ],
)
def test_names_are_made_such_as_models_may_have(text, name):
    assert clean_name(text) == name


def test_a_file_or_version_of_a_repository_keeps_its_models_name(tmp_path):
    file = save_classifier(tmp_path / "iris" / "3" / "model.onnx")
    assert [name_of_given(path) for path in (file, file.parent)] == ["iris", "iris"]
    assert name_of_given(save_classifier(tmp_path / "iris" / "3" / "other.onnx")) == "other"


def test_a_folder_is_taken_for_what_it_holds(tmp_path):
    models = tmp_path / "models"
    save_classifier(models / "a" / "1" / "model.onnx")
    assert kind_of_given(models) is GivenKind.REPOSITORY
    assert kind_of_given(models / "a") is kind_of_given(models / "a" / "1")
    assert kind_of_given(models / "a") is GivenKind.MODEL_FOLDER
    assert scan(models) == scan(models / "a") == scan(models / "a" / "1") == {"a/1": "model.onnx"}

    loose = tmp_path / "loose"
    save_classifier(loose / "x.onnx")
    save_classifier(loose / "model.onnx")
    assert scan(loose) == {"model/1": "model.onnx", "x/1": "x.onnx"}
    (loose / "x.onnx").unlink()
    assert scan(loose) == {"loose/1": "model.onnx"}
    save_classifier(loose / "y" / "2" / "model.onnx")
    (loose / "weights.pt").write_bytes(b"")
    assert scan(loose) == {"model/1": "model.onnx", "y/2": "model.onnx"}


def test_a_repository_whose_models_are_named_like_versions(tmp_path):
    save_classifier(tmp_path / "2048" / "1" / "model.onnx")
    assert scan(tmp_path) == {"2048/1": "model.onnx"}


def test_a_model_that_is_there_twice_has_a_problem(tmp_path):
    save_classifier(tmp_path / "a" / "1" / "model.onnx")
    save_classifier(tmp_path / "a.onnx")
    save_classifier(tmp_path / "b c.onnx")
    save_classifier(tmp_path / "b-c.onnx")
    assert scan(tmp_path) == {
        "a/1": "duplicate model: there is a folder 'a', too",
        "b-c/1": "duplicate model: two files have this name",
    }


def test_a_toml_file_beside_a_file_has_its_settings(tmp_path):
    file = save_regressor(tmp_path / "rate.onnx")
    settings, labels = tmp_path / "rate.toml", tmp_path / "names.txt"
    repository = Repository([], (), [file])
    assert not repository.scan()["rate"].settings.description
    settings.write_text('description = "sum"\nlabels_file = "names.txt"\n')
    labels.write_text("one\ntwo\n")
    folder = repository.scan()["rate"]
    assert (folder.settings.description, folder.settings.labels) == ("sum", ("one", "two"))
    assert repository.scan()["rate"].settings is folder.settings  # not read again
    labels.write_text("uno\ndos\n")
    os.utime(labels, ns=(1, 1))
    assert repository.scan()["rate"].settings.labels == ("uno", "dos")
    settings.write_text("descriptions = 1\n")
    problem = repository.scan()["rate"].problem
    assert problem.startswith("rate.toml: unknown key 'descriptions'; did you mean 'description'?")


def test_the_settings_of_a_file_are_not_noted_as_no_model(tmp_path, caplog):
    save_regressor(tmp_path / "rate.onnx")
    for name in ("rate.toml", "other.toml"):
        (tmp_path / name).touch()
    caplog.set_level("INFO")
    Repository([], (), [tmp_path]).scan()
    assert "not meant as models: other.toml" in caplog.text


def test_the_servers_options_are_no_settings_of_a_model_called_neurona(tmp_path):
    file = save_regressor(tmp_path / "neurona.onnx")
    (tmp_path / "neurona.toml").write_text("max_batch_rows = 8\nlog_level = 'info'\n")
    assert scan(file) == {"neurona/1": "neurona.onnx"}


def replace(file, source):
    """Rename a file to another, as a careful person replaces it."""
    shutil.copy(source, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def test_a_file_that_is_replaced_is_the_next_version(tmp_path):
    file = save_classifier(tmp_path / "m.onnx")
    other = save_classifier(tmp_path / "other", offset=1.0)
    repository = Repository([], (), [file])
    polls = lambda: list(repository.scan_or_keep()["m"].versions)  # noqa: E731
    assert list(repository.scan()["m"].versions) == [1]
    assert polls() == [1]
    replace(file, other)
    assert polls() == polls() == [2]
    replace(file, other)
    assert polls() == [3]
    file.write_bytes(file.read_bytes()[:100])  # rewritten: it has the same number while it grows
    assert polls() == [3]
    shutil.copy(other, file)
    os.utime(file, ns=(1, 1))
    assert polls() == polls() == [3]
    os.utime(file, ns=(2, 2))
    assert polls() == [4]


def test_processes_agree_on_the_versions_whatever_they_have_seen(tmp_path):
    file = save_classifier(tmp_path / "m.onnx")
    shared = FileVersions.create_shared()
    try:
        first, second = (
            Repository([], (), [file], FileVersions(shared.descriptor)) for _ in range(2)
        )
        number = lambda repository: list(repository.scan_or_keep()["m"].versions)  # noqa: E731
        assert list(first.scan()["m"].versions) == list(second.scan()["m"].versions) == [1]
        original = file.stat()
        for version in (2, 3):
            os.utime(file, ns=(version, version))
            assert number(first) == number(first) == [version]
        assert number(second) == [3]
        os.utime(file, ns=(original.st_atime_ns, original.st_mtime_ns))  # as at the start
        assert number(second) == number(first) == [4]
        restarted = Repository([], (), [file], FileVersions(shared.descriptor))
        assert list(restarted.scan()["m"].versions) == [4]
    finally:
        shared.close()


def test_a_process_that_is_killed_while_it_numbers_leaves_the_others_what_they_need(monkeypatch):
    class KilledError(Exception):
        pass

    shared = FileVersions.create_shared()
    write = os.pwrite
    writes_left = 0

    def killed(descriptor, content, offset):
        nonlocal writes_left
        writes_left -= 1
        if writes_left < 0:
            if len(content) > 64:  # as between two pages
                write(descriptor, content[: len(content) // 2], offset)
            raise KilledError
        return write(descriptor, content, offset)

    def number(digest):
        versions = FileVersions(shared.descriptor)  # as in another process
        with versions.locked():
            return [versions.number(f"model-{i}", digest, complete=True) for i in range(8)]

    try:
        for version in range(1, 7):
            assert number(f"{version:064x}") == [version] * 8
            monkeypatch.setattr(os, "pwrite", killed)
            for writes in range(2):
                writes_left = writes
                with pytest.raises(KilledError):
                    number(f"{version + 1:064x}")
            monkeypatch.undo()
            assert number(f"{version:064x}") == [version] * 8
    finally:
        shared.close()


def test_external_data_belong_to_the_file(tmp_path):
    source = save_classifier(tmp_path / "plain.onnx")
    file = tmp_path / "m.onnx"
    onnx.save(
        onnx.load(source), file, save_as_external_data=True, location="m.bin", size_threshold=0
    )
    repository = Repository([], (), [file])
    rows = [Path(row[0]).name for row in repository.scan()["m"].versions[1].fingerprint]
    assert rows == ["m.onnx", "m.bin"]
    os.utime(tmp_path / "m.bin", ns=(1, 1))
    assert list(repository.scan_or_keep()["m"].versions) == [2]


def test_a_file_that_is_gone_is_named_still_and_one_of_a_folder_is_not(tmp_path):
    file = save_classifier(tmp_path / "folder" / "m.onnx")
    save_classifier(tmp_path / "folder" / "n.onnx")
    named, of_folder = Repository([], (), [file]), Repository([], (), [tmp_path / "folder"])
    assert of_folder.scan().keys() == {"m", "n"}
    file.unlink()
    assert scan(file) == {"m": "its file is missing"}
    assert named.scan()["m"].single_file
    assert of_folder.scan().keys() == {"n"}


def test_what_is_named_keeps_its_kind_while_it_is_replaced(tmp_path):
    file = save_classifier(tmp_path / "a.onnx")
    model = save_classifier(tmp_path / "m" / "1" / "model.onnx").parents[1]
    models = save_classifier(tmp_path / "models" / "b.onnx").parent
    save_classifier(models / "model.onnx")
    repository = Repository([], (), [file, model, models])
    assert set(repository.scan()) == {"a", "m", "b", "model"}
    (models / "b.onnx").rename(tmp_path / "b.onnx")  # the last one is called as in a model's folder
    assert set(repository.scan()) == {"a", "m", "model"}
    file.unlink()
    file.mkdir()
    shutil.rmtree(model)
    folders = repository.scan()
    assert set(folders) == {"a", "m", "model"}
    assert folders["a"].unusable[""].reason == "it is a folder (expected a file)"
    models.rename(tmp_path / "away")
    assert repository.scan_or_keep() is None  # all keep serving
    (tmp_path / "away").rename(models)
    assert set(repository.scan()) == {"a", "m", "model"}


def test_a_named_link_is_followed_and_one_of_a_folder_must_not_lead_out(tmp_path):
    file = save_classifier(tmp_path / "elsewhere" / "blob")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "m.onnx").symlink_to(file)
    save_classifier(folder / "n.onnx")
    assert scan(folder / "m.onnx") == {"m/1": "m.onnx"}
    assert scan(folder)["m/1"] == "'m.onnx' is a link that leads out of the repository"


def test_a_call_may_give_a_single_file_another_configuration(tmp_path):
    file = save_classifier(tmp_path / "m.onnx")
    repository = Repository([], (), [file])
    folder = repository.scan_with_config("m", "max_batch_size: 5")
    assert (list(folder.versions), folder.settings.max_batch_rows) == ([1], 5)
    assert "config.pbtxt" in repository.scan_with_config("m", "nonsense: 5").problem


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", b"hello\n", "'x.txt': its file is not ONNX: it looks like a text"),
        ("x.onnx", LFS, "a Git LFS pointer: fetch the file itself with git lfs pull"),
        ("x.h5", b"\x89HDF\r\n\x1a\n" + bytes(9), "an HDF5 file.*: export the model to ONNX"),
        ("x.pkl", b"\x80\x04K\x01.", "a Python pickle .*: export the model to ONNX"),
        ("x.pb", b"\n\x12\x12\x0bPlaceholder" + bytes(9), "a TensorFlow graph .*: export"),
        (
            "x.safetensors",
            b"\x02" + bytes(7) + b"{}",
            "it holds weights, not a graph; export the model to ONNX",
        ),
        ("x.pt", b"PK\x03\x04data.pkl", "as torch.save writes: export the model to ONNX"),
        ("x.onnx", b"", "'x.onnx': its file is empty: still being copied?"),
    ],
)
def test_another_format_is_said_to_be_what_it_is(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, content)
    with pytest.raises(LoadError, match=message):
        check_given([Path(name)])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "there is no model in the folder 'd': it is empty .expected ONNX files, or <name>"),
        (["a.pt"], "'a.pt' is a PyTorch file .expected an ONNX file: export the model to ONNX"),
        (["saved_model.pb", "variables/x"], "it is a TensorFlow SavedModel .expected an ONNX file"),
        (["notes.txt", "b/c.csv"], "it holds 'b', 'notes.txt' .expected ONNX files, or <name>"),
        (["b/c/d/x.onnx"], "it holds 'b/c/d/x.onnx' deeper .expected ONNX files"),
    ],
)
def test_a_folder_without_a_model_is_explained(tmp_path, monkeypatch, names, message):
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    for name in names:
        write(tmp_path / "d" / name, b"")
    with pytest.raises(LoadError, match=message):
        check_given([Path("d")])


def test_what_is_named_must_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_classifier(tmp_path / "m.onnx")
    os.mkfifo("pipe.onnx")
    assert stat.S_ISFIFO(os.stat("pipe.onnx").st_mode)
    with pytest.raises(LoadError, match=r"no file or folder 'm'; did you mean 'm.onnx'\?"):
        check_given([Path("m")])
    with pytest.raises(LoadError, match=r"'pipe.onnx' is neither a file nor a folder"):
        check_given([Path("pipe.onnx")])


def test_two_of_the_same_name_are_both_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/m.onnx", "b/m.onnx", "c/m/1/model.onnx", "d/x y.onnx", "d/x-y.onnx"):
        save_classifier(tmp_path / name)
    check_given([Path("a/m.onnx"), tmp_path / "a" / "m.onnx"])  # the same one
    for paths in (["a/m.onnx", "b/m.onnx"], ["a/m.onnx", "c"], ["d"]):
        with pytest.raises(LoadError, match=r"would both be the model '(m|x-y)'") as caught:
            check_given([*map(Path, paths)])
        for path in paths:
            assert path.split("/")[0] in str(caught.value)
