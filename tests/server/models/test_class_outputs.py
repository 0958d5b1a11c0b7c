"""Classifiers as scikit-learn's exporters write them: labels and probabilities, and the right ones.

The models are converted as the manual of skl2onnx does it.
"""

import numpy as np
import onnx
import pandas
import pytest
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from support.in_process_server import run_app
from support.onnx_models import save

from neurona_client import Client
from neurona_server.models.onnx.class_labels import read_class_labels

IRIS = load_iris()
X = IRIS.data.astype(np.float32)
NAMES = IRIS.target_names[IRIS.target]
SHIFTED = IRIS.target * 10 - 5
"""Classes that are not the indices of the scores."""


def classifiers():
    return {
        "logistic": LogisticRegression(max_iter=300).fit(X, NAMES),
        "numbers": LogisticRegression(max_iter=300).fit(X, SHIFTED),
        "tree": DecisionTreeClassifier(random_state=0).fit(X, SHIFTED),
        "neighbours": KNeighborsClassifier(3).fit(X, NAMES),
        "network": make_pipeline(
            StandardScaler(), MLPClassifier((8,), max_iter=300, random_state=0, tol=1e-2)
        ).fit(X, NAMES),
    }


@pytest.fixture(scope="module")
def models():
    return classifiers()


@pytest.fixture(scope="module")
def client(models, tmp_path_factory):
    """A client of a server of all these models, with and without a map by class."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in models.items():
        for zipmap in (True, False):
            options = {id(model): {"zipmap": zipmap}}
            file = folder / f"{name}-{'map' if zipmap else 'arrays'}.onnx"
            file.write_bytes(to_onnx(model, X[:1], options=options).SerializeToString())
    with run_app([str(folder)], {}) as app, Client(app.address) as client:
        yield client


@pytest.mark.parametrize("kind", ["map", "arrays"])
@pytest.mark.parametrize("name", ["logistic", "numbers", "tree", "neighbours", "network"])
def test_label_and_probability_are_those_of_scikit_learn(client, models, name, kind):
    rows = X[::7]
    answer = client.predict(f"{name}-{kind}", rows)
    assert [row.label for row in answer] == [str(one) for one in models[name].predict(rows)]
    expected = models[name].predict_proba(rows).max(axis=1)
    np.testing.assert_allclose([row.probability for row in answer], expected, atol=1e-4)


def without_a_highest_probability():
    """Classifiers whose label is not that of the highest probability, or that have none."""
    several = np.stack([IRIS.target == 0, IRIS.target == 2], axis=1).astype(int)
    return {
        "decision": (RidgeClassifier(), NAMES),
        "distances": (SVC(), NAMES),
        "one-column": (SVC(), IRIS.target == 1),
        "pairs": (SVC(decision_function_shape="ovo"), NAMES),
        "votes": (SVC(probability=True), NAMES),
        "several": (OneVsRestClassifier(LogisticRegression()), several),
    }


@pytest.mark.filterwarnings("ignore:.*probability:FutureWarning")
def test_scores_that_do_not_say_the_label_are_no_classification(tmp_path):
    models = {}
    for name, (model, classes) in without_a_highest_probability().items():
        models[name] = model.fit(X, classes)
        for zipmap in (True, False):
            exported = to_onnx(model, X[:1], options={id(model): {"zipmap": zipmap}})
            (tmp_path / f"{name}-{zipmap}.onnx").write_bytes(exported.SerializeToString())
    (tmp_path / "decision-True.toml").write_text('task = "classification"')
    with run_app([str(tmp_path)], {}) as app, Client(app.address) as client:
        for name, model in models.items():
            for zipmap in (True, False):
                description = client.describe(f"{name}-{zipmap}")
                if (name, zipmap) == ("decision", True):  # its owner says what it is
                    assert description.labels == tuple(IRIS.target_names)
                    continue
                assert description.task == "tensors", (name, zipmap)
                label = next(iter(client.predict(f"{name}-{zipmap}", X).outputs.values()))
                expected = model.predict(X)
                assert label.tolist() == expected.astype(label.dtype).tolist()


def test_double_inputs_need_an_export_without_a_map(tmp_path):
    model = LogisticRegression(max_iter=300).fit(IRIS.data, NAMES)
    for name, options in (("map", {}), ("arrays", {id(model): {"zipmap": False}})):
        exported = to_onnx(model, IRIS.data[:1], options=options)
        (tmp_path / f"{name}.onnx").write_bytes(exported.SerializeToString())
    with run_app([str(tmp_path)], {}) as app, Client(app.address) as client:
        assert client.predict("arrays", IRIS.data[0]).label == "setosa"
        entry = app.app._registry.entry("map")
        assert entry.versions[1].reason.endswith(
            "; export it from float32 inputs, X.astype(numpy.float32), or with zipmap=False"
        )


def test_a_pipeline_with_several_named_inputs(tmp_path):
    columns = ["age", "fare", "embarked", "class"]
    rng = np.random.default_rng(0)
    table = np.empty((60, 4), object)
    table[:, 0], table[:, 1] = rng.uniform(1, 80, 60), rng.uniform(5, 90, 60)
    table[:, 2], table[:, 3] = rng.choice(["S", "C", "Q"], 60), rng.integers(1, 4, 60)
    survived = np.where(table[:, 0] < 30, "yes", "no")
    frame = pandas.DataFrame(table, columns=columns).astype(
        {"age": np.float32, "fare": np.float32, "class": np.int64}
    )
    model = make_pipeline(
        ColumnTransformer(
            [
                ("numbers", StandardScaler(), ["age", "fare"]),
                ("names", OneHotEncoder(handle_unknown="ignore"), ["embarked"]),
                ("class", OneHotEncoder(handle_unknown="ignore"), ["class"]),
            ]
        ),
        LogisticRegression(),
    ).fit(frame, survived)
    types = [
        ("age", FloatTensorType([None, 1])),
        ("fare", FloatTensorType([None, 1])),
        ("embarked", StringTensorType([None, 1])),
        ("class", Int64TensorType([None, 1])),
    ]
    path = tmp_path / "titanic.onnx"
    path.write_bytes(convert_sklearn(model, "titanic", types).SerializeToString())
    with run_app([str(path)], {}) as app, Client(app.address) as client:
        inputs = {name: frame[[name]].to_numpy() for name in columns}
        labels = [row.label for row in client.predict("titanic", inputs)]
        assert labels == model.predict(frame).tolist()


def lookup(names):
    """Return the nodes of a classifier whose label is looked up in an array of names."""
    return [
        helper.make_node("MatMul", ["x", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
        helper.make_node("ArgMax", ["scores"], ["index"], axis=1, keepdims=0),
        helper.make_node("Gather", [names, "index"], ["label"]),
    ]


def save_lookup(path, names, kind, *, reverse=False):
    weights = np.eye(3, dtype=np.float32)
    path = save(
        path,
        lookup("names"),
        {"x": (TensorProto.FLOAT, ["batch", 3])},
        {"label": (kind, ["batch"]), "scores": (TensorProto.FLOAT, ["batch", 3])},
        {"weights": weights[::-1] if reverse else weights},
    )
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array(names), "names"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (np.array(["a", "b", "ç"], object), TensorProto.STRING),
        (np.array([-3, 5, 2**40]), TensorProto.INT64),
        (np.array([-3, 5, 7], np.int32), TensorProto.INT32),
    ],
)
def test_names_that_are_looked_up(tmp_path, names, kind):
    path = save_lookup(tmp_path / "m.onnx", names, kind)
    assert read_class_labels(path, "label").names == tuple(map(str, names))
    with run_app([str(path)], {}) as app, Client(app.address) as client:
        assert client.describe("m").labels == tuple(map(str, names))
        assert client.predict("m", np.float32([0, 1, 0])).label == str(names[1])


def test_names_in_another_order_than_the_scores_are_not_taken(tmp_path):
    path = save(
        tmp_path / "m.onnx",
        [
            helper.make_node("MatMul", ["x", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
            helper.make_node("ArgMin", ["scores"], ["index"], axis=1, keepdims=0),
            helper.make_node("Gather", ["names", "index"], ["label"]),
        ],
        {"x": (TensorProto.FLOAT, ["batch", 3])},
        {"label": (TensorProto.INT64, ["batch"]), "scores": (TensorProto.FLOAT, ["batch", 3])},
        {"weights": np.eye(3, dtype=np.float32), "names": np.array([1, 2, 3])},
    )
    assert read_class_labels(path, "label").names == ("1", "2", "3")
    with run_app([str(path)], {}) as app, Client(app.address) as client:
        assert client.describe("m").task == "tensors"


def test_a_damaged_file_has_no_names(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"\x08\x08:\x05\x0a\x03\xff\xff\xff")
    assert read_class_labels(path, "label").names == ()
    assert read_class_labels(tmp_path / "none", "label").names == ()
