"""A process that replaces another one waits for what that served, and for no more."""

import threading

import pytest
from prometheus_client import CollectorRegistry
from support import onnx_models

from neurona_server.errors import LoadError
from neurona_server.models.lifecycle.reconciler import Reconciler, ReconcilerOptions
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.models.model import Model
from neurona_server.models.model_options import ModelOptions
from neurona_server.models.repository.scanner import Repository
from neurona_server.models.repository.settings import VersionPolicy
from neurona_server.telemetry.metrics import Metrics


class Start:
    """The start of a reconciler, whose loads end as the test says."""

    def __init__(self, root, awaited):
        self.registry = Registry()
        self.failing = {}  # by model: called once, before its load fails
        self._metrics = Metrics(CollectorRegistry())
        self._loaded = {}
        options = ReconcilerOptions(VersionPolicy(all_versions=True), threads=8)
        reconciler = Reconciler(
            Repository([root]), self.registry, self._load, self._metrics, options
        )
        self._thread = threading.Thread(
            target=reconciler.start, kwargs={"awaited": awaited}, daemon=True
        )
        self._thread.start()

    def finish(self, name, version):
        self._event(name, version).set()

    def waits(self):
        self._thread.join(0.5)
        return self._thread.is_alive()

    def ends(self):
        self._thread.join(20)
        return not self._thread.is_alive()

    def _event(self, name, version):
        return self._loaded.setdefault((name, version), threading.Event())

    def _load(self, source, _cancellation):
        self._event(source.name, source.version).wait(20)
        if fail := self.failing.pop(source.name, None):
            fail()
            raise LoadError("its file was changed while it was loaded")
        return Model(source, ModelOptions(), self._metrics)


@pytest.fixture
def start(tmp_path):
    for name, version in (("a", 1), ("a", 2), ("b", 1)):
        onnx_models.save_classifier(tmp_path / name / str(version) / "model.onnx")
    return lambda awaited: Start(tmp_path, awaited)


def test_all_versions_that_were_served_are_awaited(start):
    start = start([("a", 1), ("a", 2)])
    start.finish("a", 1)
    assert start.waits()
    start.finish("a", 2)
    assert start.ends()


def test_without_any_model_the_start_waits_for_all(start):
    start = start([])
    assert start.waits()
    start.finish("b", 1)
    assert start.ends()


def test_another_version_is_awaited_if_that_which_was_served_is_gone(start):
    start = start([("a", 7)])
    start.finish("b", 1)
    assert start.waits()
    start.finish("a", 2)
    assert start.ends()


def test_a_model_whose_file_was_being_replaced_is_loaded_again(start, tmp_path):
    """Else its callers would be answered that it is not there, by a process that serves nothing."""
    start = start([("b", 1)])
    path = tmp_path / "b" / "1" / "model.onnx"
    start.failing["b"] = lambda: onnx_models.save_classifier(path, offset=7.0)
    for name, version in (("a", 1), ("a", 2), ("b", 1)):
        start.finish(name, version)
    assert start.ends()
    assert {model.name for model in start.registry.models()} == {"a", "b"}


def test_a_model_that_cannot_be_served_any_more_does_not_keep_the_start(start):
    start = start([("a", 2), ("b", 1)])
    start.failing["b"] = lambda: None
    start.finish("b", 1)
    start.finish("a", 2)
    assert start.ends()
    assert [model.name for model in start.registry.models()] == ["a"]
