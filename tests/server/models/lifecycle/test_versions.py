"""Whatever happens to the files, in whatever order loads end: the rules of `VersionSet` hold."""

from pathlib import Path
from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from neurona_protos.prediction_pb2 import State
from neurona_server.models.lifecycle.versions import GONE, VersionSet
from neurona_server.models.repository.scanner import ModelFolder, VersionFiles
from neurona_server.models.repository.settings import ModelSettings, Traffic, VersionPolicy

NUMBERS = st.integers(1, 4)
SETTINGS = st.builds(
    ModelSettings,
    versions=st.sampled_from(
        [None, VersionPolicy(every=True), VersionPolicy(2), VersionPolicy(listed=(1, 3))]
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
    problem=st.sampled_from(["", "", "", "a misspelt key"]),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("see"), FOLDERS, st.booleans()),
        st.tuples(st.just("gone")),
        st.tuples(st.just("loaded"), st.integers(0, 7)),
        st.tuples(st.just("failed"), st.integers(0, 7)),
    ),
    max_size=40,
)


def fake(version):
    signature = SimpleNamespace(inputs=())
    return SimpleNamespace(
        version=version, shadow=None, state=State.STATE_READY, signature=signature
    )


@settings(max_examples=300, deadline=None)
@given(EVENTS)
def test_the_rules_hold_whatever_happens(events):
    versions = VersionSet("m", VersionPolicy())
    loading, alive, on_disk = [], [], False
    for event in events:
        served = bool(alive)
        if event[0] == "see":
            loading += versions.see(event[1], eager=event[2])
            on_disk = True
        elif event[0] == "gone":
            loading += versions.see(None)
            on_disk = False
        elif loading:
            found = loading.pop(event[1] % len(loading))
            if event[0] == "loaded":
                alive.append(fake(found.version))
                loading += versions.loaded(found.version, alive[-1])
            else:
                loading += versions.failed(found.version, "it is broken")
        entry, surplus = versions.settle()
        for model in surplus:  # each is let go once, and never one that is served
            alive.remove(model)
        loaded = [version.model for version in entry.versions.values() if version.model]
        assert loaded == sorted(alive, key=lambda model: model.version)
        numbers = [found.version for found in loading]
        assert len(numbers) == len(set(numbers))  # a version is loaded once at a time
        assert set(entry.labels.values()) <= {model.version for model in loaded}
        assert (entry.default is None) == (not loaded)
        shares = [version.share for version in entry.versions.values()]
        assert not loaded or abs(sum(shares) - 100) < 1e-6
        if on_disk:
            assert loaded or not served  # what was served once is served on
        else:
            assert not loaded
    assert versions.gone == (not on_disk and not loading and not alive)


def on_disk(**sizes):
    return {
        int(number[1:]): VersionFiles(Path("model.onnx"), (("model.onnx", size, 0, 0),))
        for number, size in sizes.items()
    }


def test_a_version_is_loaded_at_the_second_look_that_finds_it_equal():
    versions = VersionSet("m", VersionPolicy())
    assert not versions.see(ModelFolder("m", on_disk(v1=1)))
    assert not versions.see(ModelFolder("m", on_disk(v1=2)))
    (found,) = versions.see(ModelFolder("m", on_disk(v1=2)))
    assert found.version == 1
    assert not versions.see(ModelFolder("m", on_disk(v1=2)))  # it is being loaded
    versions.loaded(1, fake(1))
    assert not versions.see(ModelFolder("m", on_disk(v1=2)))


def test_a_version_that_failed_is_tried_again_when_its_files_change_or_somebody_asks():
    versions = VersionSet("m", VersionPolicy())
    folder = ModelFolder("m", on_disk(v1=1))
    versions.see(folder, eager=True)
    assert not versions.failed(1, "broken")
    assert versions.problems() == ["version 1: broken"]
    assert not versions.see(folder)
    assert versions.see(folder, eager=True)
    assert not versions.failed(1, "broken")
    assert not versions.see(ModelFolder("m", on_disk(v1=2)))
    assert versions.see(ModelFolder("m", on_disk(v1=2)))


def test_what_fails_gives_way_to_the_next_lower_one():
    versions = VersionSet("m", VersionPolicy())
    (found,) = versions.see(ModelFolder("m", on_disk(v1=1, v2=1, v3=1)), eager=True)
    assert found.version == 3
    (found,) = versions.failed(3, "broken")
    assert found.version == 2
    versions.loaded(2, fake(2))
    entry, _ = versions.settle()
    assert entry.default.version == 2
    states = {n: version.state for n, version in entry.versions.items()}
    assert states == {1: State.STATE_UNLOADED, 2: State.STATE_READY, 3: State.STATE_FAILED}


def test_the_last_version_stays_when_its_files_are_gone_and_goes_with_its_folder():
    versions = VersionSet("m", VersionPolicy())
    versions.see(ModelFolder("m", on_disk(v1=1)), eager=True)
    versions.loaded(1, fake(1))
    versions.see(ModelFolder("m", {}))
    entry, surplus = versions.settle()
    assert (entry.versions[1].reason, surplus) == (GONE, [])
    versions.see(None)
    entry, surplus = versions.settle()
    assert (dict(entry.versions), len(surplus)) == ({}, 1)
    assert versions.gone


def test_files_that_change_while_they_are_loaded_are_loaded_again_for_whoever_asked():
    versions = VersionSet("m", VersionPolicy())
    assert versions.see(ModelFolder("m", on_disk(v1=1)), eager=True)
    assert not versions.see(ModelFolder("m", on_disk(v1=2)), eager=True)  # one load at a time
    (found,) = versions.loaded(1, fake(1))
    assert (found.version, versions.loading) == (1, True)
    assert not versions.loaded(1, fake(1))


def test_a_load_that_ends_is_no_look_at_files_that_may_be_on_their_way():
    versions = VersionSet("m", VersionPolicy(every=True))
    versions.see(ModelFolder("m", on_disk(v1=1, v2=1)), eager=True)
    assert not versions.see(ModelFolder("m", on_disk(v1=1, v2=1, v3=1)))  # half of it
    assert not versions.failed(1, "broken")
    assert not versions.loaded(2, fake(2))
    (found,) = versions.see(ModelFolder("m", on_disk(v1=1, v2=1, v3=1)))
    assert found.version == 3
