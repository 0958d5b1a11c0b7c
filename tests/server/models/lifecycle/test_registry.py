"""Resolving names, versions and labels to models."""

import collections

import pytest
from prometheus_client import CollectorRegistry

from neurona_protos.prediction_pb2 import State
from neurona_server.errors import NotFoundError
from neurona_server.models.lifecycle.registry import ModelEntry, ModelVersion, Registry
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import ModelSource
from neurona_server.telemetry.metrics import Metrics


@pytest.fixture
def models(repository):
    metrics = Metrics(CollectorRegistry())
    folder = repository / "classifier"
    return {
        n: Model(ModelSource("c", n, folder / str(n) / "model.onnx"), ModelOptions(), metrics)
        for n in (1, 2)
    }


@pytest.fixture
def registry(models):
    registry = Registry()
    versions = {
        1: ModelVersion(models[1]),
        2: ModelVersion(models[2]),
        3: ModelVersion(None, "corrupt", State.STATE_FAILED),
        4: ModelVersion(None, "", State.STATE_LOADING),
        5: ModelVersion(None, "", State.STATE_UNLOADED),
    }
    registry.publish("c", ModelEntry(versions, {"latest": 2, "stable": 1}, models[2]))
    registry.publish("broken", ModelEntry({1: ModelVersion(None, "corrupt")}))
    return registry


def test_resolve_by_name_version_and_label(registry, models):
    assert registry.resolve("c") is models[2]
    assert registry.resolve("c", version=1) is models[1]
    assert registry.resolve("c", label="latest") is models[2]
    assert registry.resolve("c", label="stable") is models[1]
    assert registry.models() == [models[1], models[2]]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"name": "d"}, "no model 'd'; served: c"),
        ({"name": "c", "version": 9}, "'c': version 9 does not exist; served: 1, 2"),
        ({"name": "c", "version": 3}, "'c': version 3 failed to load; served: 1, 2"),
        ({"name": "c", "version": 4}, "'c': version 4 is still loading; served: 1, 2"),
        ({"name": "c", "version": 5}, "'c': version 5 is not loaded; served: 1, 2"),
        ({"name": "c", "label": "best"}, "no label 'best'; its labels: latest, stable"),
        ({"name": "broken"}, "'broken' has no version that is ready"),
        ({"name": "x\ny\x1b" * 100}, r"no model 'x\\ny\\x1bx"),
    ],
)
def test_unknown_targets_are_rejected_with_the_known_ones(registry, target, message):
    with pytest.raises(NotFoundError, match=message) as caught:
        registry.resolve(**target)
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def test_share_of_the_requests_without_version_goes_to_another_version(registry, models):
    entry = ModelEntry(registry.entry("c").versions, {}, models[1], ((0.25, models[2]),))
    registry.publish("c", entry)
    counts = collections.Counter(registry.resolve("c").version for _ in range(4000))
    assert 0.2 < counts[2] / 4000 < 0.3  # 0.25 and seven standard deviations
    assert {registry.resolve("c", version=1).version for _ in range(50)} == {1}


def test_unpublished_name_is_unknown(registry):
    registry.publish("c", None)
    registry.publish("unknown", None)
    assert registry.names() == ["broken"]
    with pytest.raises(NotFoundError):
        registry.resolve("c")
