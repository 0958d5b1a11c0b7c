"""The rules of `VersionSet` hold whatever happens to the files and in whatever order loads end."""

from pathlib import Path
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.prediction_pb2 import State
from neurona_server.models.lifecycle.versions import FILES_REMOVED, VersionSet
from neurona_server.models.repository.scanner import ModelFolder, VersionFiles
from neurona_server.models.repository.settings import ModelSettings, Traffic, VersionPolicy

NUMBERS = st.integers(1, 4)
SETTINGS = st.builds(
    ModelSettings,
    versions=st.sampled_from(
        [None, VersionPolicy(all_versions=True), VersionPolicy(2), VersionPolicy(listed=(1, 3))]
    ),
    version_labels=st.dictionaries(st.sampled_from(["stable", "canary"]), NUMBERS),
    traffic=st.builds(
        Traffic,
        default=st.sampled_from(["", 1, 3, "stable"]),
        shares=st.dictionaries(st.sampled_from([2, 3, "canary"]), st.floats(0, 30), max_size=3),
        shadow=st.sampled_from(["", 2, "canary"]),
    ),
)
FOLDERS = st.builds(
    ModelFolder,
    name=st.just("m"),
    versions=st.dictionaries(
        NUMBERS,
        st.builds(
            VersionFiles,
            path=st.just(Path("model.onnx")),
            fingerprint=st.integers(0, 2).map(lambda size: (("model.onnx", size, 0, 0),)),
            problem=st.sampled_from(["", "", "", "a link"]),
        ),
    ),
    settings=SETTINGS,
    problem=st.sampled_from(["", "", "", "an unknown key"]),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("observed"), FOLDERS, st.booleans()),
        st.tuples(st.just("removed")),
        st.tuples(st.just("loaded"), st.integers(0, 7)),
        st.tuples(st.just("failed"), st.integers(0, 7)),
    ),
    max_size=40,
)


def fake_model(version):
    signature = SimpleNamespace(inputs=())
    return SimpleNamespace(
        version=version,
        on_answer=None,
        state=State.STATE_READY,
        signature=signature,
        lost_reason="",
    )


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_rules_hold_for_any_sequence_of_events(events):
    versions = VersionSet("m", VersionPolicy())
    loading, alive, on_disk = [], [], False
    for event in events:
        served = bool(alive)
        if event[0] == "observed":
            loading += versions.observe(event[1], eager=event[2])
            on_disk = True
        elif event[0] == "removed":
            loading += versions.observe(None)
            on_disk = False
        elif loading:
            source = loading.pop(event[1] % len(loading))
            if event[0] == "loaded":
                alive.append(fake_model(source.version))
                loading += versions.record_loaded(source.version, alive[-1])
            else:
                loading += versions.record_failure(source.version, "it is broken")
        entry, surplus = versions.commit()
        for model in surplus:  # each is drained once, and never one that is served
            alive.remove(model)
        loaded = [version.model for version in entry.versions.values() if version.model]
        assert loaded == sorted(alive, key=lambda model: model.version)
        numbers = [source.version for source in loading]
        assert len(numbers) == len(set(numbers))  # one load of a version at a time
        assert set(entry.labels.values()) <= {model.version for model in loaded}
        assert (entry.default is None) == (not loaded)
        shares = [version.share for version in entry.versions.values()]
        assert not loaded or abs(sum(shares) - 100) < 1e-6
        if on_disk:
            assert loaded or not served  # a served model keeps a loaded version
        else:
            assert not loaded
    assert versions.is_removed == (not on_disk and not loading and not alive)


def on_disk(**sizes):
    return {
        int(number[1:]): VersionFiles(Path("model.onnx"), (("model.onnx", size, 0, 0),))
        for number, size in sizes.items()
    }


def test_version_is_loaded_once_two_polls_find_equal_files():
    versions = VersionSet("m", VersionPolicy())
    assert not versions.observe(ModelFolder("m", on_disk(v1=1)))
    assert not versions.observe(ModelFolder("m", on_disk(v1=2)))
    (source,) = versions.observe(ModelFolder("m", on_disk(v1=2)))
    assert source.version == 1
    assert not versions.observe(ModelFolder("m", on_disk(v1=2)))  # already loading
    versions.record_loaded(1, fake_model(1))
    assert not versions.observe(ModelFolder("m", on_disk(v1=2)))


def test_failed_version_is_retried_when_its_files_change_or_on_request():
    versions = VersionSet("m", VersionPolicy())
    folder = ModelFolder("m", on_disk(v1=1))
    versions.observe(folder, eager=True)
    assert not versions.record_failure(1, "broken")
    assert versions.problems() == ["version 1: broken"]
    assert not versions.observe(folder)
    assert versions.observe(folder, eager=True)
    assert not versions.record_failure(1, "broken")
    assert not versions.observe(ModelFolder("m", on_disk(v1=2)))
    assert versions.observe(ModelFolder("m", on_disk(v1=2)))


def test_failed_version_is_replaced_by_the_next_lower_one():
    versions = VersionSet("m", VersionPolicy())
    (source,) = versions.observe(ModelFolder("m", on_disk(v1=1, v2=1, v3=1)), eager=True)
    assert source.version == 3
    (source,) = versions.record_failure(3, "broken")
    assert source.version == 2
    versions.record_loaded(2, fake_model(2))
    entry, _ = versions.commit()
    assert entry.default.version == 2
    states = {n: version.state for n, version in entry.versions.items()}
    assert states == {1: State.STATE_UNLOADED, 2: State.STATE_READY, 3: State.STATE_FAILED}


def test_last_version_stays_without_its_files_and_is_unloaded_with_its_folder():
    versions = VersionSet("m", VersionPolicy())
    versions.observe(ModelFolder("m", on_disk(v1=1)), eager=True)
    versions.record_loaded(1, fake_model(1))
    versions.observe(ModelFolder("m", {}))
    entry, surplus = versions.commit()
    assert (entry.versions[1].reason, surplus) == (FILES_REMOVED, [])
    versions.observe(None)
    entry, surplus = versions.commit()
    assert (dict(entry.versions), len(surplus)) == ({}, 1)
    assert versions.is_removed


def test_files_that_change_during_a_requested_load_are_loaded_again():
    versions = VersionSet("m", VersionPolicy())
    assert versions.observe(ModelFolder("m", on_disk(v1=1)), eager=True)
    assert not versions.observe(ModelFolder("m", on_disk(v1=2)), eager=True)  # one load at a time
    (source,) = versions.record_loaded(1, fake_model(1))
    assert (source.version, versions.loading) == (1, True)
    assert not versions.record_loaded(1, fake_model(1))


def test_end_of_a_load_does_not_count_as_a_poll_of_unfinished_files():
    versions = VersionSet("m", VersionPolicy(all_versions=True))
    versions.observe(ModelFolder("m", on_disk(v1=1, v2=1)), eager=True)
    assert not versions.observe(ModelFolder("m", on_disk(v1=1, v2=1, v3=1)))  # only partly written
    assert not versions.record_failure(1, "broken")
    assert not versions.record_loaded(2, fake_model(2))
    (source,) = versions.observe(ModelFolder("m", on_disk(v1=1, v2=1, v3=1)))
    assert source.version == 3


def test_a_version_whose_devices_are_lost_is_loaded_again_while_it_stays():
    versions = VersionSet("m", VersionPolicy())
    versions.observe(ModelFolder("m", on_disk(v1=1)), eager=True)
    lost = fake_model(1)
    versions.record_loaded(1, lost)
    versions.commit()
    lost.lost_reason, lost.state = "cuda:0 is lost", State.STATE_FAILED
    (source,) = versions.reload(1, lost)
    assert source.version == 1
    assert not versions.reload(1, lost)  # it is loading
    entry, surplus = versions.commit()
    assert (entry.versions[1].model, entry.versions[1].reason) == (lost, "cuda:0 is lost")
    assert not entry.versions[1].serves
    assert not surplus

    versions.record_failure(1, "no other GPU is left")
    entry, surplus = versions.commit()
    assert (entry.versions[1].model, entry.versions[1].reason) == (lost, "no other GPU is left")
    assert entry.has_failed
    assert not surplus

    (source,) = versions.observe(ModelFolder("m", on_disk(v1=2)), eager=True)
    versions.record_loaded(1, fake_model(1))
    entry, surplus = versions.commit()
    assert entry.versions[1].serves
    assert surplus == [lost]
    assert not versions.reload(1, lost)  # another one serves
