"""Trainings that start from the weights of a file: published ones, or an earlier model's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from torch import nn

from neurona_protos import metadata
from neurona_training.architectures.convolutional import LeNet5
from neurona_training.architectures.published_weights import PublishedInput, rename_published
from neurona_training.architectures.resnet import ResNet
from neurona_training.architectures.vgg import VGG16
from neurona_training.cli.main import main
from neurona_training.data import Dataset, Input, Split, Value
from neurona_training.errors import WeightsError
from neurona_training.learning.checkpoint import training_fingerprint
from neurona_training.learning.evaluation import predict, rmse
from neurona_training.learning.initial_weights import start_from, weights_file
from neurona_training.learning.run import InitialWeights, Run
from neurona_training.recipes import RECIPES

NAMES = Path(__file__).parents[1] / "architectures" / "published_names.txt"


def _images(labels=("cat", "dog", "fox"), size=(20, 28), rows=24, seed=0):
    generator = np.random.default_rng(seed)

    def split():
        targets = np.arange(rows) % len(labels)
        images = generator.integers(0, 256, (rows, 3, *size)).astype(np.float32)
        return Split(images, targets.astype(np.int64))

    return Dataset(
        name="pictures",
        source="random numbers",
        train=split(),
        validation=split(),
        test=split(),
        input=Input("image", ("batch", "channel", "height", "width"), "pictures", "grey level"),
        labels=tuple(labels),
    )


def _resnet(classes=3, size=(20, 28)):
    return ResNet(nn.Identity(), size=size, classes=classes, blocks=(2, 2, 2, 2), bottleneck=False)


def _published_resnet():
    """Random weights of 1,000 classes under torchvision's names."""
    text = NAMES.read_text().split("# torchvision resnet18\n")[1].split("#")[0]
    suffixes = {
        "w": ["weight"],
        "wb": ["weight", "bias"],
        "n": ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"],
    }
    names = [
        f"{layer.rpartition(':')[0]}.{one}"
        for layer in text.split()
        for one in suffixes[layer.rpartition(":")[2]]
    ]
    network = _resnet(1000)
    shapes = network.state_dict()
    place = {next(iter(rename_published("resnet18", {name: 0}, network))): name for name in names}
    generator = torch.Generator().manual_seed(5)
    return {
        place[ours]: torch.tensor(7)
        if ours.endswith("num_batches_tracked")
        else 0.03 * torch.rand(tensor.shape, generator=generator) + 0.5 * (tensor.ndim == 1)
        for ours, tensor in shapes.items()
    }


@pytest.fixture(scope="module")
def published():
    return _published_resnet()


def _parallel(state):
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "write",
    [
        lambda state, path: torch.save(state, path / "weights.pth"),
        lambda state, path: torch.save(
            {"state_dict": _parallel(state), "epoch": 3}, path / "w.tar"
        ),
        lambda state, path: safetensors.torch.save_file(state, path / "model.safetensors"),
    ],
    ids=["state dictionary", "checkpoint of a data-parallel training", "safetensors"],
)
def test_all_layers_but_the_last_take_published_weights(published, tmp_path, write):
    write(published, tmp_path)
    network = _resnet()
    own_output = network.output.weight.clone()
    fresh = start_from(InitialWeights(*tmp_path.iterdir()), network, "resnet18", _images())
    assert fresh == ("output",)
    assert torch.equal(network.output.weight, own_output)
    state = network.state_dict()
    for name, tensor in rename_published("resnet18", published, network).items():
        if not name.startswith("output"):
            assert torch.equal(state[name], tensor), name
    assert isinstance(network.colours, PublishedInput)
    # Grey levels from 0 to 255, on the scale of the photographs that the weights were learned on.
    torch.testing.assert_close(
        network.colours.mean[:, 0, 0] / 255, torch.tensor([0.485, 0.456, 0.406])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("bn1.weight"), r"of another network: .*: no stem\.0\.1\.weight$"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"stem\.0\.0\.weight is \[64, 1, 7, 7\], expected \[64, 3, 7, 7\]$",
        ),
        (lambda state: state.update(layer9=torch.zeros(1)), "unknown layer9$"),
        (lambda state: state.update(epoch=3), r"unreadable: .* dict \(expected tensors by name"),
        (
            lambda state: [state.pop(name) for name in list(state) if "layer" in name],
            r"no stages\.0.*; no .*; no .* and \d+ more$",
        ),
    ],
    ids=["absent", "shape", "unknown", "no tensor", "many"],
)
def test_weights_that_do_not_fit_are_refused(published, tmp_path, change, message):
    state = dict(published)
    change(state)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        start_from(InitialWeights(tmp_path / "weights.pth"), _resnet(), "resnet18", _images())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no.pth", None, "not found"),
        ("no.safetensors", None, "not found"),
        ("bad.pth", b"weights", "unreadable"),
        ("bad.safetensors", b"weights", "unreadable"),
        ("empty.pth", b"", "unreadable"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=f"^weights {message}: .*{name}"):
        start_from(InitialWeights(tmp_path / name), _resnet(), "resnet18", _images())


def test_no_code_of_a_file_is_run(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(WeightsError, match=r"unreadable: .*module\.pth"):
        start_from(InitialWeights(tmp_path / "module.pth"), _resnet(), "resnet18", _images())


def test_only_published_architectures_have_published_weights(tmp_path):
    torch.save({}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"not possible for recipe 'lenet5' \(expected vgg16, "):
        start_from(
            InitialWeights(tmp_path / "weights.pth"),
            LeNet5(nn.Identity(), (20, 28), 3, 3),
            "lenet5",
            _images(),
        )


@pytest.fixture
def model(tmp_path):
    """The folder of a trained model of three classes, and its network."""
    network = LeNet5(nn.Identity(), (20, 28), 3, channels=3)
    folder = tmp_path / "models" / "pets"
    (folder / "report").mkdir(parents=True)
    (folder / "1").mkdir()
    content = weights_file(network, "lenet5", _images())
    assert content == weights_file(network, "lenet5", _images())
    (folder / "report" / "weights.safetensors").write_bytes(content)
    return folder, network


@pytest.mark.parametrize("version", ["", "1"])
def test_a_model_goes_on_where_it_was(model, version):
    folder, network = model
    other = LeNet5(nn.Identity(), (20, 28), 3, channels=3)
    assert start_from(InitialWeights(folder / version), other, "lenet5", _images()) == ()
    for name, tensor in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize("labels", [("cat", "dog", "cow"), ("cat", "dog"), tuple("abcdefg")])
def test_other_classes_get_a_fresh_last_layer(model, labels):
    folder, network = model
    other = LeNet5(nn.Identity(), (20, 28), len(labels), channels=3)
    own_output = other.output.weight.clone()
    assert start_from(InitialWeights(folder), other, "lenet5", _images(labels)) == ("output",)
    assert torch.equal(other.output.weight, own_output)
    assert torch.equal(other.c1.weight, network.c1.weight)


def test_a_model_of_another_recipe_or_shape_is_refused(model, tmp_path):
    folder, _ = model
    with pytest.raises(WeightsError, match=r"is of recipe 'lenet5' \(expected 'resnet18'\)"):
        start_from(InitialWeights(folder), _resnet(), "resnet18", _images())
    with pytest.raises(
        WeightsError, match=r"c1\.weight is \[6, 3, 5, 5\], expected \[6, 1, 5, 5\]"
    ):
        start_from(InitialWeights(folder), LeNet5(nn.Identity(), (20, 28), 3), "lenet5", _images())
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="not found: .*empty"):
        start_from(
            InitialWeights(tmp_path / "empty"),
            LeNet5(nn.Identity(), (20, 28), 3),
            "lenet5",
            _images(),
        )
    weights = folder / "report" / "weights.safetensors"
    weights.write_bytes(safetensors.torch.save({"w": torch.zeros(1)}))
    with pytest.raises(WeightsError, match="unreadable"):
        start_from(InitialWeights(folder), LeNet5(nn.Identity(), (20, 28), 3), "lenet5", _images())


def test_only_the_last_layer_of_a_frozen_network_learns(model):
    folder, _ = model
    network = LeNet5(nn.Identity(), (20, 28), 2, channels=3)
    data = replace(_images(("yes", "no")))
    start_from(InitialWeights(folder, freeze=True), network, "lenet5", data)
    learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning == {"output.weight", "output.bias"}


def _settings(**changes):
    data = _images()
    return RECIPES["resnet18"].settings(data, None).with_changes({"epochs": 1, **changes})


def test_frozen_layers_keep_weights_and_statistics(published, tmp_path):
    torch.save(published, tmp_path / "weights.pth")
    run = Run("frozen", 0, initial_weights=InitialWeights(tmp_path / "weights.pth", freeze=True))
    data = _images(rows=12)
    trained = RECIPES["resnet18"].fit(data, _settings(augmentation=None), run).network
    state = trained.state_dict()
    for name, tensor in rename_published("resnet18", published, trained).items():
        if not name.startswith("output"):
            assert torch.equal(state[name], tensor), name
    fresh = _resnet(size=(20, 28)).output.weight
    assert not torch.equal(trained.output.weight, fresh)


def test_other_weights_are_another_training(published, tmp_path):
    torch.save(published, tmp_path / "weights.pth")
    settings, data = _settings(augmentation=None), _images(rows=6)
    one = InitialWeights(tmp_path / "weights.pth")
    fingerprints = [
        training_fingerprint(
            data, settings.hyperparameters, Run("model", 0, initial_weights=weights), 1, ""
        )
        for weights in (None, one, replace(one, freeze=True))
    ]
    published["conv1.weight"] += 1
    torch.save(published, tmp_path / "weights.pth")
    run = Run("model", 0, initial_weights=one)
    fingerprints.append(training_fingerprint(data, settings.hyperparameters, run, 1, ""))
    assert len(set(fingerprints)) == 4


def test_recipes_without_gradients_start_from_nothing(model):
    data = RECIPES["perceptron"].load("iris-setosa")
    settings = RECIPES["perceptron"].settings(data, "iris-setosa")
    run = Run("perceptron", 0, initial_weights=InitialWeights(model[0]))
    with pytest.raises(WeightsError, match="not possible for recipe 'perceptron'"):
        RECIPES["perceptron"].fit(data, settings, run)


def test_a_trained_model_is_where_another_training_starts(tmp_path):
    out = str(tmp_path)
    digits = ["lenet5", "--out", out, "--no-report"]
    assert main([*digits, "--epochs", "3"]) == 0
    start = ["--from", f"{out}/lenet5/1"]
    assert main([*digits, "--epochs", "1", *start, "--name", "more"]) == 0
    assert main([*digits, "--epochs", "1", *start, "--freeze", "--name", "again"]) == 0
    assert main([*digits, "--epochs", "1", "--name", "anew"]) == 0
    figures, provenance = {}, {}
    for name in ("more", "again", "anew"):
        model = onnx.load(tmp_path / name / "1" / "model.onnx")
        described = metadata.from_json({p.key: p.value for p in model.metadata_props}[metadata.KEY])
        figures[name], provenance[name] = described.figures, described.provenance
    assert figures["more"]["test_accuracy"] > figures["anew"]["test_accuracy"]
    assert figures["again"]["test_accuracy"] > figures["anew"]["test_accuracy"]
    assert "weights.safetensors, sha256 " in provenance["more"]["initial_weights"]
    assert "all layers but the last kept them" in provenance["again"]["initial_weights"]
    assert "initial_weights" not in provenance["anew"]
    assert provenance["more"]["initial_weights"].endswith("; fresh layers: none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--freeze"], "--freeze needs --weights FILE or --from MODEL"),
        (["--weights", "a.pth", "--from", "b"], "exclude each other"),
        (["--weights", "."], "is a folder (expected a file; --from takes a model)"),
        (["--from", __file__], "is a file (expected OUT/NAME/1 of a trained model)"),
    ],
)
def test_options_that_do_not_fit(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["resnet18", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_layers_that_a_file_lacks_learn_in_a_frozen_network_too(tmp_path):
    """The width of VGG16's first fully connected layer depends on the size of the images."""

    def vgg(size):
        return VGG16(nn.Identity(), size=(size, size), classes=3)

    state = vgg(32).state_dict()
    state["classifier.0.weight"] = torch.zeros(4096, 4 * 512)  # of images of 64 pixels
    torch.save(state, tmp_path / "weights.pth")
    network = vgg(32)
    start = InitialWeights(tmp_path / "weights.pth", freeze=True)
    fresh = start_from(start, network, "vgg16", _images(size=(32, 32)))
    assert fresh == ("classifier.0", "classifier.3", "classifier.6")
    learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
    assert learning == {name for name in state if name.startswith("classifier.")}


def _weights_of(tmp_path, network, recipe, data):
    report = tmp_path / "earlier" / "report"
    report.mkdir(parents=True)
    (report / "weights.safetensors").write_bytes(weights_file(network, recipe, data))
    return tmp_path / "earlier"


def test_weights_of_other_columns_are_refused(tmp_path):
    """As many columns in another order would give each weight the wrong input."""
    recipe = RECIPES["mlp"]
    data = recipe.load("iris")
    columns = data.input.columns
    assert len(columns) == 4
    network = recipe.network(data, recipe.settings(data, None).network)
    folder = _weights_of(tmp_path, network, "mlp", data)
    assert start_from(InitialWeights(folder), network, "mlp", data) == ()
    other = replace(data, input=replace(data.input, columns=columns[::-1]))
    with pytest.raises(WeightsError, match=r"of other inputs: .*number 1 is 'sepal length"):
        start_from(InitialWeights(folder), network, "mlp", other)


def _series(slope):
    generator = np.random.default_rng(0)

    def split(first):
        steps = slope * np.arange(first, first + 80) + generator.normal(size=80)
        windows = np.lib.stride_tricks.sliding_window_view(steps.astype(np.float32), 9)
        return Split(windows[:, :8, None].copy(), windows[:, 8:].copy())

    return Dataset(
        name="series",
        source="random numbers",
        train=split(0),
        validation=split(80),
        test=split(160),
        input=Input("values", ("batch", "time", "channel"), "values", "", window=8),
        values=(Value("next", ""),),
    )


@pytest.mark.parametrize("freeze", [False, True])
def test_a_forecast_keeps_the_linear_function_of_its_own_series(tmp_path, freeze):
    recipe = RECIPES["gru"]
    earlier, data = _series(-3), _series(20)
    settings = recipe.settings(data, None).with_changes({"epochs": 1})
    first = recipe.fit(earlier, settings, Run("earlier", 0)).network
    start = InitialWeights(_weights_of(tmp_path, first, "gru", earlier), freeze=freeze)
    result = recipe.fit(data, settings, Run("series", 0, initial_weights=start))
    alone = recipe.fit(data, settings, Run("series", 0))
    for name in ("weights", "bias", "centre"):
        assert torch.equal(getattr(result.network, name), getattr(alone.network, name)), name
    error = rmse(predict(result.network, data.test).numpy(), data.test.targets)
    assert error < 2
    learning = [name for name, one in result.network.named_parameters() if one.requires_grad]
    assert not freeze or learning == ["correction.output.weight", "correction.output.bias"]


def test_the_last_layer_of_a_network_for_sound_is_its_last(tmp_path):
    def sound(labels):
        generator = np.random.default_rng(0)
        waves = generator.normal(size=(8, 4000)).astype(np.float32)
        targets = np.arange(8) % len(labels)
        part = Split(waves, targets, lengths=np.full(8, 4000, np.int32))
        described = Input("waveform", ("batch", "time"), "sound", "", sample_rate=8000)
        parts = {"train": part, "validation": part, "test": part}
        return Dataset("sound", "noise", **parts, input=described, labels=labels)

    recipe = RECIPES["gru"]
    networks = [
        (recipe.network(data, recipe.settings(data, None).network), data)
        for data in (sound(("no", "yes")), sound(("low", "middle", "high")))
    ]
    start = InitialWeights(_weights_of(tmp_path, networks[0][0], "gru", networks[0][1]), True)
    network, data = networks[1]
    assert start_from(start, network, "gru", data) == ("network.output",)
    learning = [name for name, one in network.named_parameters() if one.requires_grad]
    assert learning == ["network.output.weight", "network.output.bias"]


def test_images_of_other_levels_keep_their_own_scale(tmp_path):
    """A network that has learned from levels up to 16 is no use for 255 on that scale."""

    def levels(factor):
        data = _images()
        parts = {
            name: replace(part, inputs=part.inputs * np.float32(factor))
            for name in ("train", "validation", "test")
            for part in (getattr(data, name),)
        }
        return replace(data, **parts)

    recipe = RECIPES["lenet5"]
    data = levels(16 / 255)
    network = recipe.network(data, recipe.settings(data, None).network)
    folder = _weights_of(tmp_path, network, "lenet5", data)
    other = recipe.network(levels(1), recipe.settings(data, None).network)
    assert start_from(InitialWeights(folder), other, "lenet5", levels(1)) == ()
    outputs = [
        predict(one, images.test).numpy() for one, images in ((network, data), (other, levels(1)))
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-3, atol=1e-4)


def test_a_model_that_began_with_published_weights_is_a_start_too(published, tmp_path):
    torch.save(published, tmp_path / "weights.pth")
    first, data = _resnet(), _images()
    start_from(InitialWeights(tmp_path / "weights.pth"), first, "resnet18", data)
    folder = _weights_of(tmp_path, first, "resnet18", data)
    settings = RECIPES["resnet18"].settings(data, None)
    network = RECIPES["resnet18"].network(data, settings.network)
    assert start_from(InitialWeights(folder), network, "resnet18", data) == ()
    np.testing.assert_array_equal(predict(network, data.test), predict(first, data.test))
