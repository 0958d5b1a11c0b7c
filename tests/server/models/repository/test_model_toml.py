import logging
import tomllib

import pytest

from neurona_protos.prediction_pb2 import Task
from neurona_server.config.options import Config
from neurona_server.errors import LoadError
from neurona_server.models.repository.model_toml import ModelToml
from neurona_server.models.repository.scanner import read_settings
from neurona_server.models.repository.settings import (
    ImageSettings,
    ModelSettings,
    TensorSettings,
    Traffic,
    ValueSettings,
    VersionPolicy,
)

EVERY_KEY = """
task = "classification"
answer = "logits"
labels = ["cat", "dog"]
softmax = true
description = "cats and dogs"
versions = "latest 2"
default = "stable"
batched = true
max_batch_rows = 32
max_queue_rows = 100
max_queue_bytes = 1000
max_delay_ms = 2
latency_objective_ms = 12.5
inline = "never"
sequence_batching = "ragged"
max_run_seconds = 30.5
instances = 2
threads = 3
providers = ["cuda", "cpu"]
devices = [1, "GPU-5a"]
provider_options = { cuda = { use_tf32 = false, cudnn_conv_algo_search = "exhaustive" } }

[version_labels]
stable = 1
canary = 2

[traffic]
canary = 5
3 = "2.5 %"

[shadow]
to = "latest"
share = "10%"

[inputs."x:0"]
axes = ["batch", "time", ""]
description = "steps"
unit = "mV"

[inputs."x:0".image]
layout = "chw"
colours = "bgr"
width = 224
height = 200
resize = "shorter-side"
filter = "bicubic"
shorter_side = 256
inversion = "bright-border"
range = [0, 1]
mean = [0.485, 0.456, 0.406]
std = [0.2]

[outputs.logits]
axes = ["batch", ""]
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        (tmp_path / "model.toml").write_text(text, encoding="utf-8")
        return read_settings(tmp_path)

    return read


def test_every_key(read):
    assert read(EVERY_KEY) == ModelSettings(
        task=Task.TASK_CLASSIFICATION,
        answer="logits",
        labels=("cat", "dog"),
        softmax=True,
        description="cats and dogs",
        inputs={
            "x:0": TensorSettings(
                ("batch", "time", ""),
                "steps",
                "mV",
                image=ImageSettings(
                    layout="chw",
                    colours="bgr",
                    width=224,
                    height=200,
                    resize="shorter-side",
                    filter="bicubic",
                    shorter_side=256,
                    inversion="bright-border",
                    range=(0.0, 1.0),
                    mean=(0.485, 0.456, 0.406),
                    std=(0.2,),
                ),
            )
        },
        outputs={"logits": TensorSettings(("batch", ""))},
        batched=True,
        versions=VersionPolicy(latest=2),
        version_labels={"stable": 1, "canary": 2},
        traffic=Traffic("stable", {"canary": 5.0, 3: 2.5}, "latest", 10.0),
        max_batch_rows=32,
        max_queue_rows=100,
        max_queue_bytes=1000,
        max_delay_ms=2.0,
        latency_objective_ms=12.5,
        inline="never",
        sequence_batching="ragged",
        max_run_seconds=30.5,
        instances=2,
        threads=3,
        providers=("cuda", "cpu"),
        devices="1,GPU-5a",
        provider_options={"cuda": {"use_tf32": "0", "cudnn_conv_algo_search": "EXHAUSTIVE"}},
    )
    assert [read(f"devices = {text}").devices for text in ('"all"', "2")] == ["all", "2"]
    values = 'values = [{ name = "price", unit = "EUR" }, { name = "age" }]'
    assert read(values).values == (ValueSettings("price", "EUR"), ValueSettings("age"))
    assert read('unit = "EUR"').values == (ValueSettings(unit="EUR"),)
    tested = set(tomllib.loads(EVERY_KEY)) | {"values", "unit", "labels_file"}
    assert tested == set(ModelToml.__struct_fields__), "a key without a test"


def test_overrides_have_the_names_of_server_options():
    overrides = {"max_batch_rows", "max_queue_rows", "max_queue_bytes", "max_delay_ms"}
    overrides |= {"latency_objective_ms", "inline", "max_run_seconds", "instances", "threads"}
    overrides |= {"sequence_batching"}
    assert overrides <= set(Config.__struct_fields__)


@pytest.mark.parametrize("text", ["", "# nothing\n", "[traffic]\n"])
def test_every_key_is_optional(read, text):
    assert read(text) == ModelSettings()


def test_folder_without_settings_has_the_defaults(tmp_path):
    assert read_settings(tmp_path) == ModelSettings()


def test_settings_read_twice_are_equal(read):
    assert read(EVERY_KEY) == read(EVERY_KEY)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('tsk = "tensors"', "unknown key 'tsk'; did you mean 'task'?"),
        ("zzz = 1", "unknown key 'zzz'"),
        ('[shadow]\ntoo = "1"', "unknown key 'too' in shadow; did you mean 'to'?"),
        ("inputs.x.axis = []", "unknown key 'axis' in inputs.x; did you mean 'axes'?"),
        ('outputs."a b".x = 1', "unknown key 'x' in outputs.'a b'"),
        ('values = [{ nme = "a" }]', "unknown key 'nme' in values[0]; did you mean 'name'?"),
        (
            "inputs.x.image.widht = 1",
            "unknown key 'widht' in inputs.x.image; did you mean 'width'?",
        ),
        (
            "inputs.x.image.width = 0",
            "inputs.x.image.width is 0 (expected an integer from 1 to 65536",
        ),
        ('inputs.x.image.layout = "nchw"', "(expected hw, chw or hwc); did you mean 'chw'?"),
        ("inputs.x.image.range = [1]", "(expected two numbers: the values of black and of white"),
        ("inputs.x.image.mean = []", "(expected a list of one number, or one for each of 3"),
        ('task = "classify"', "task is 'classify' (expected classification, regression or tensors"),
        ("task = 1", "task is 1 (expected classification, regression or tensors"),
        ('answer = ""', "answer is '' (expected a non-empty string"),
        ("answer = 1", "answer is 1 (expected a non-empty string"),
        ("labels = []", "labels is [] (expected a non-empty list"),
        ('labels = "a"', "labels is 'a' (expected a non-empty list"),
        ('labels = ["a", 1]', "labels[1] is 1 (expected a non-empty string"),
        ("softmax = 1", "softmax is 1 (expected true or false"),
        ('batched = "yes"', "batched is 'yes' (expected true or false"),
        ("values = [1]", "values[0] is 1 (expected a table"),
        ("values = []", "values is [] (expected a non-empty list of tables with name and unit"),
        ("description = 1", "description is 1 (expected a non-empty string"),
        ('outputs.y.unit = "m"', "unknown key 'unit' in outputs.y"),
        ("unit = 1", "unit is 1 (expected a non-empty string"),
        ('unit = "m"\nvalues = [{}]', "values and unit are both set (expected one of them"),
        ("inputs = 1", "inputs is 1 (expected a table"),
        ("inputs.x = 1", "inputs.x is 1 (expected a table"),
        ('inputs.x.axes = "a"', "inputs.x.axes is 'a' (expected a list of names, one for each"),
        ("inputs.x.axes = [1]", 'inputs.x.axes[0] is 1 (expected a name, or "" for an axis'),
        ('versions = "newest"', 'versions is \'newest\' (expected "all", "latest", "latest N" or'),
        ("versions = 2", 'versions is 2 (expected "all"'),
        ("version_labels = 1", "version_labels is 1 (expected a table"),
        ("version_labels.a = 0", "version_labels.a is 0 (expected an integer from 1 to"),
        ("version_labels.a = true", "version_labels.a is True (expected an integer"),
        (
            "version_labels.latest = 1",
            "a key of version_labels is 'latest' (expected a letter, then",
        ),
        ("version_labels.1 = 1", "a key of version_labels is '1' (expected a letter, then"),
        ('version_labels."a b" = 1', "a key of version_labels is 'a b' (expected a letter, then"),
        ('version_labels."a\\n" = 1', "a key of version_labels is 'a\\n' (expected a letter, then"),
        (
            "versions = [2]\nversion_labels.a = 1",
            "version_labels.a is 1 (expected one of versions: [2]",
        ),
        (
            'default = "stabel"\nversion_labels.stable = 1',
            "expected a version or a label: latest, stable); did you",
        ),
        ("default = 0", "default is 0 (expected a version or a label"),
        ('default = ""', "default is '' (expected a version or a label"),
        ("default = true", "default is True (expected a version or a label"),
        ("traffic.canary = 5", "traffic.canary is 'canary' (expected a version or a label: latest"),
        ("traffic.1 = 101", "traffic.1 is 101 (expected a percentage from 0 to 100"),
        ("traffic.1 = -1", "traffic.1 is -1 (expected a percentage from 0 to 100"),
        ("traffic.1 = nan", "traffic.1 is nan (expected a percentage from 0 to 100"),
        (
            'traffic.1 = "5 percent"',
            "traffic.1 is '5 percent' (expected a percentage from 0 to 100",
        ),
        ("traffic.1 = true", "traffic.1 is True (expected a percentage from 0 to 100"),
        ("traffic.1 = 5\ntraffic.01 = 5", "duplicate version 1 in traffic"),
        ("traffic.1 = 60\ntraffic.2 = 41", "the shares of traffic add up to 101 percent"),
        ("[shadow]\nshare = 1", "missing key 'to' in shadow"),
        ('[shadow]\nto = "a"', "shadow.to is 'a' (expected a version or a label: latest"),
        ("max_batch_rows = 0", "max_batch_rows is 0 (expected an integer from 1 to 2147483647"),
        ('max_queue_rows = "9"', "max_queue_rows is '9' (expected an integer from 1 to"),
        ("max_queue_bytes = 1.5", "max_queue_bytes is 1.5 (expected an integer from 1 to"),
        ("max_delay_ms = -1", "max_delay_ms is -1 (expected milliseconds from 0 to 100000000"),
        ("latency_objective_ms = inf", "latency_objective_ms is inf (expected milliseconds"),
        ('inline = "allways"', "expected auto, always or never); did you mean 'always'?"),
        ("instances = 65", "instances is 65 (expected an integer from 1 to 64"),
        ("threads = -1", "threads is -1 (expected an integer from 0 to 1024"),
        ('providers = ["gpu"]', "providers[0] is 'gpu' (expected cuda, cpu, tensorrt"),
        ("devices = []", 'devices is [] (expected "all", or numbers or UUIDs, like [0, 1]'),
        ("devices = [1.5]", 'devices is [1.5] (expected "all", or numbers or UUIDs, like'),
        ('devices = "cuda:0"', "devices is 'cuda:0' (expected \"all\", or numbers or UUIDs"),
        ("[provider_options.gpu]", "provider_options has 'gpu' (expected some of cuda, tensorrt"),
        ("[provider_options]\ncuda = 1", "provider_options.cuda is 1 (expected"),
        (
            "[provider_options.cuda]\nuse_tf3 = 0",
            "provider_options.cuda.use_tf3 is an unknown key; did you mean 'use_tf32'?",
        ),
        (
            '[provider_options.cuda]\nuse_tf32 = "maybe"',
            "provider_options.cuda.use_tf32 is 'maybe' (expected 0 or 1)",
        ),
        (
            '[provider_options.openvino]\ncache_dir = "/tmp"',
            "provider_options.openvino.cache_dir names files (expected it in the server's option",
        ),
        ('task = "x\\ny"', "task is 'x\\ny' (expected"),
        ("task = ", "invalid TOML: Invalid value (at end of document)"),
        ("a = " + "[" * 5000, "invalid TOML: too many levels"),
    ],
)
def test_invalid_settings_are_reported(read, text, message):
    with pytest.raises(LoadError) as caught:
        read(text)
    assert str(caught.value).startswith("model.toml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_that_add_up_to_all_requests(read):
    assert sum(read("traffic.1 = 33.3\ntraffic.2 = 33.3\ntraffic.3 = 33.4").traffic.shares) == 6


def test_labels_from_a_file(read, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "all.txt").write_bytes("\ufeffmaño\r\ndog \n\n".encode())
    assert read('labels_file = "labels/all.txt"').labels == ("maño", "dog")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../secret", "the file name '../secret' is not a path inside the model's folder"),
        ("/etc/passwd", "the file name '/etc/passwd' is not a path inside the model's folder"),
        ("a/../../secret", "is not a path inside the model's folder"),
        ("..\\\\secret", "is not a path inside the model's folder"),
        ("a\\u0000b", "is not a path inside the model's folder"),
        ("link", "the file 'link' leads out of the model's folder"),
        ("linked/secret", "the file 'linked/secret' leads out of the model's folder"),
        ("loop", "the file 'loop' cannot be read"),
        ("none", "the file 'none' cannot be read: No such file or directory"),
        ("folder", "'folder' is not a file"),
        ("latin", "the file 'latin' is not UTF-8: line 2: byte 0xf1 is not UTF-8"),
        ("huge", "the file 'huge' has more than 4194304 bytes"),
        ("empty", "the file 'empty' is empty (expected one label per line"),
        ("gap", "the file 'gap' has no label in line 2"),
    ],
)
def test_invalid_files_of_labels_are_rejected(tmp_path, name, message):
    folder = tmp_path / "model"
    (folder / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_text("top secret\n")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    (folder / "latin").write_bytes(b"ma\n\xf1o")
    (folder / "huge").write_bytes(b"a" * (4 << 20) + b"\n")
    (folder / "empty").write_text("\n")
    (folder / "gap").write_text("a\n\nb\n")
    (folder / "model.toml").write_text(f'labels_file = "{name}"')
    with pytest.raises(LoadError) as caught:
        read_settings(folder)
    assert str(caught.value).startswith("model.toml: labels_file: ")
    assert message in str(caught.value)
    assert "top secret" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


def test_labels_in_two_places_are_rejected(read):
    with pytest.raises(
        LoadError, match=r"labels and labels_file are both set \(expected one of them"
    ):
        read('labels = ["a"]\nlabels_file = "a"')


def test_link_inside_the_folder_is_followed(read, tmp_path):
    (tmp_path / "real.txt").write_text("a\nb\n")
    (tmp_path / "labels.txt").symlink_to("real.txt")
    assert read('labels_file = "labels.txt"').labels == ("a", "b")


def test_settings_linked_from_outside_the_folder_are_not_read(tmp_path):
    (tmp_path / "out.toml").write_text("instances = 2")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.toml").symlink_to("../out.toml")
    with pytest.raises(LoadError, match=r"'model.toml' leads out of the model's folder"):
        read_settings(folder)


def test_dangling_link_to_settings_is_reported(tmp_path):
    (tmp_path / "model.toml").symlink_to("nothing")
    with pytest.raises(LoadError, match="cannot be read: No such file"):
        read_settings(tmp_path)


def test_model_toml_takes_precedence_over_config_pbtxt(read, tmp_path, caplog):
    (tmp_path / "config.pbtxt").write_text("max_batch_size: 8")
    with caplog.at_level(logging.INFO):
        assert read("instances = 2") == ModelSettings(instances=2)
    assert "model.toml is read, config.pbtxt is ignored" in caplog.text
