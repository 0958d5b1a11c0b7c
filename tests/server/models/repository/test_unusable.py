"""What a repository has and cannot serve, and the reasons: none is passed over."""

import os
import subprocess
import sys

import pytest

from neurona_server.models.repository.scanner import Repository

pytestmark = pytest.mark.skipif(os.name == "nt", reason="names and links that Windows lacks")


def lay_out(root, *paths):
    """Make the files, or with a slash at the end folders, or `link -> target`."""
    for path in paths:
        name, arrow, target = path.partition(" -> ")
        file = root / os.fsdecode(name.encode("latin-1")) if "\xff" in name else root / name
        if path.endswith("/"):
            file.mkdir(parents=True)
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        if arrow:
            file.symlink_to(target)
        else:
            file.touch()


def reasons(root):
    """Return all versions and reasons of the repository, by model."""
    return {
        name: {
            **{str(number): files.problem for number, files in folder.versions.items()},
            **{entry: unusable.reason for entry, unusable in folder.unusable.items()},
            **({"problem": folder.problem} if folder.problem else {}),
        }
        for name, folder in Repository([root]).scan().items()
    }


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        *[("001", 1), ("0", 1), ("02", 2), ("v1", 1), ("V12", 12), ("1.2.0", 1), ("1-rc", 1)],
        *[("version_3", 3), ("2026-01-31", 2026), ("20260101T1200", 20260101), ("1 copy", 1)],
        *[("9" * 19, 1), ("1_old", 1), ("latest", 1), ("Größe", 1), ("release 4", 4), ("+1", 1)],
    ],
)
def test_a_folder_that_is_meant_to_be_a_version_is_named_with_a_name_that_would_do(
    tmp_path, name, suggestion
):
    lay_out(tmp_path, f"m/{name}/model.onnx", "other/1/model.onnx")
    ((entry, reason),) = reasons(tmp_path)["m"].items()
    assert entry == name
    assert reason.startswith(f"'{name}' is not a version")
    assert reason.endswith(f"without leading zeros, such as {suggestion})")
    assert reasons(tmp_path)["other"] == {"1": ""}


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        *[("with space", "with space"), ("Größe", "Größe"), ("_x", "_x"), ("模型", "模型")],
        *[
            ("a\nb", "a\\nb"),
            ("a\tb", "a\\tb"),
            ("\x1b[31m", "\\x1b[31m"),
            ("a\u202eb", "a\\u202eb"),
        ],
        *[("bad\xff", "bad\\xff"), ("x" * 129, "x" * 129), ('a"b', 'a"b'), ("-x", "-x")],
    ],
)
def test_a_folder_with_another_name_than_a_model_s_is_listed_printable(tmp_path, name, shown):
    lay_out(tmp_path, f"{name}/1/model.onnx", "good/1/model.onnx")
    (reason,) = reasons(tmp_path)[shown].values()
    assert reason.startswith("its name is not a model's (expected letters, digits,")
    assert shown.isprintable()
    assert shown.encode()
    assert reasons(tmp_path)["good"] == {"1": ""}


def test_a_version_is_listed_under_a_printable_name(tmp_path):
    lay_out(tmp_path, "m/1\xff/model.onnx", "m/2\n/model.onnx")
    assert reasons(tmp_path)["m"].keys() == {"1\\xff", "2\\n"}


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        (["m/1/a.onnx", "m/1/b.onnx"], {"1": "'a.onnx' and 'b.onnx' are there, and none is"}),
        (["m/a.onnx", "m/b.onnx"], {"": "no version: 'a.onnx' and 'b.onnx' are there"}),
        (["m/1/model.ort"], {"1": "'model.ort' is a model in ONNX Runtime's own format"}),
        (["m/1/model.pt"], {"1": "'model.pt' is a PyTorch file (expected model.onnx)"}),
        (["m/model.plan"], {"": "no version: 'model.plan' is a TensorRT engine"}),
        (["m/1/MODEL.ONNX"], {"1": "'MODEL.ONNX' is an ONNX model by another name"}),
        (["m/1/onnx/model.onnx"], {"1": "it holds 'onnx/model.onnx' (expected model.onnx)"}),
        (["m/1/"], {"1": "no model file: it is empty"}),
        (["m/"], {"": "no version: it is empty"}),
        (["m/README.md"], {"": "no version: it holds 'README.md'"}),
        (["m/inner/1/model.onnx"], {"inner": "is not a version: it holds '1/model.onnx'"}),
        (["m/1/model.onnx", "m/report/weights.safetensors"], {"1": ""}),  # of neurona-train
        (["m/1/model.onnx", "m/2"], {"1": "", "2": "'2' is a file"}),
        (["m/1/model.onnx", "m/2.onnx"], {"1": "", "2.onnx": "beside the folders of versions"}),
        (["m/3/model.onnx", "m/model.onnx"], {"3": "", "model.onnx": "beside the folders of"}),
        (["m/3/model.onnx", "m/2/"], {"3": "", "2": "no model file: it is empty"}),
        (["m/1/model.onnx -> gone"], {"1": "'model.onnx' is a link to nothing"}),
        (["m/1/net.onnx -> gone"], {"1": "'net.onnx' is a link to nothing"}),
        (["m/1/model.onnx -> model.onnx"], {"1": "'model.onnx' is a link to itself"}),
        (["m/1/model.onnx", "m/2 -> gone"], {"1": "", "2": "'2' is a link to nothing"}),
        (["m/1/model.onnx", "m/2 -> 2"], {"1": "", "2": "'2' is a link to itself"}),
        (["m/1/model.onnx", "m/v2 -> gone"], {"1": "", "v2": "'v2' is a link to nothing"}),
        (["m -> gone"], {"": "it is a link to nothing"}),
        (["m -> m"], {"": "it is a link to itself"}),
        (["m -> /etc"], {"problem": "it is a link that leads out of the repository"}),
    ],
)
def test_what_is_at_the_wrong_place_has_a_reason(tmp_path, paths, expected):
    lay_out(tmp_path, "good/1/model.onnx", *paths)
    actual = reasons(tmp_path)
    assert actual.pop("good") == {"1": ""}
    assert actual["m"].keys() == expected.keys()
    for entry, words in expected.items():
        assert words in actual["m"][entry]
        assert bool(words) == bool(actual["m"][entry])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("net.onnx", "it is a file, an ONNX model, beside the folders of models (expected net/1/"),
        ("net.pt", "it is a file, a PyTorch file"),
        ("net.zip", "it is a file, an archive"),
        ("net -> nowhere", "it is a link to nothing"),
    ],
)
def test_a_model_beside_the_folders_of_models_is_listed(tmp_path, name, words):
    lay_out(tmp_path, name)
    assert words in reasons(tmp_path)[name.partition(" ")[0]][""]


def test_what_is_no_model_and_not_meant_as_one_is_left_alone(tmp_path):
    lay_out(
        tmp_path,
        *("README.md", "LICENSE", ".git/1/model.onnx", "lost+found/", "__pycache__/x.pyc"),
        *("m/1/model.onnx", "m/1/model.onnx_data", "m/labels.txt", "m/docs/page.md"),
        *("m/configs/custom.pbtxt", "m/warmup/input0", "m/.cache/model.onnx", "m/latest -> 1"),
        *("m/..data -> 1", "m/test_data_set_0/input_0.pb", "alias -> m"),
    )
    assert reasons(tmp_path) == {"m": {"1": ""}, "alias": {"1": ""}}


def test_notes_are_logged_once(tmp_path, caplog):
    lay_out(
        tmp_path,
        *(
            "m/1/model.onnx",
            "m/1/model_int8.onnx",
            "m/1/2/model.onnx",
            "m/1/config.pbtxt",
            "m/Model.toml",
        ),
        *("m/config.pbtxt.bak", "config.pbtxt", "notes.txt"),
    )
    repository = Repository([tmp_path])
    caplog.set_level("INFO")
    assert repository.scan()["m"].notes == (
        "'Model.toml' is not read; did you mean 'model.toml'?",
        "version 1: 'config.pbtxt' is not read (expected in the model's folder)",
        "version 1: '2/model.onnx' is not served: 'model.onnx' is",
        "version 1: 'model_int8.onnx' is not served: 'model.onnx' is",
    )
    repository.scan()
    assert [(r.levelname, r.getMessage().partition(": ")[2]) for r in caplog.records] == [
        ("WARNING", "'config.pbtxt' is not read (expected in the model's folder)"),
        ("INFO", "not meant as models: config.pbtxt, notes.txt"),
    ]


def test_what_tools_and_mounts_leave_behind_is_neither_served_nor_noted(tmp_path):
    mount = "..2026_11_28_00_00_00.1"  # a volume of Kubernetes
    lay_out(
        tmp_path,
        *("mac/1/net.onnx", "mac/1/._net.onnx", "mac/._net.onnx", "#recycle/1/model.onnx"),
        *(f"pod/1/{mount}/model.onnx", f"pod/1/..data -> {mount}"),
        *("pod/1/model.onnx -> ..data/model.onnx", "pod/#config.pbtxt#", "pod/1/.config.pbtxt"),
        "pod/assets/._net.onnx",
    )
    assert reasons(tmp_path) == {"mac": {"1": ""}, "pod": {"1": ""}}
    assert not any(folder.notes for folder in Repository([tmp_path]).scan().values())


def test_a_repository_that_is_itself_a_model_is_noted(tmp_path, caplog):
    lay_out(tmp_path, "1/model.onnx", "2/model.onnx")
    Repository([tmp_path]).scan()
    assert "named like versions: for one model, use --model NAME=DIR" in caplog.text


SCAN = """
import os, sys
from pathlib import Path
from neurona_server.models.repository.scanner import Repository
if os.geteuid() == 0:  # whom no mode stops
    os.seteuid(65534)
for name, folder in Repository([Path(sys.argv[1])]).scan().items():
    print(name, folder.problem, {n: files.problem for n, files in folder.versions.items()})
"""


def test_folders_that_cannot_be_read_are_listed_with_the_reason(tmp_path):
    versions = ("closed/1", "half/1", "half/2", "m/1")
    lay_out(tmp_path, *(f"{version}/model.onnx" for version in versions))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_mode & 0o001:
            break
        folder.chmod(0o755)
    for folder, mode in (("closed", 0), ("half/2", 0), ("m/1", 0o444)):
        (tmp_path / folder).chmod(mode)
    command = [sys.executable, "-c", SCAN, tmp_path]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    finally:
        for folder in ("closed", "half/2", "m/1"):
            (tmp_path / folder).chmod(0o755)
    assert done.stdout.splitlines() == [
        "closed it cannot be read: Permission denied {}",
        "half  {1: '', 2: 'it cannot be read: Permission denied'}",
        "m  {1: 'it cannot be read: Permission denied'}",
    ], done.stderr
