import pytest

from neurona_server.models.settings import VersionPolicy


@pytest.mark.parametrize(
    ("said", "chosen"),
    [
        ("all", {1, 2, 5}),
        ("latest", {5}),
        ("latest 2", {2, 5}),
        ("latest 9", {1, 2, 5}),
        ([1, 5], {1, 5}),
        ([5, 5, 7], {5}),
    ],
)
def test_a_policy_chooses_of_the_versions_on_disk(said, chosen):
    assert VersionPolicy.parse(said).choose([5, 1, 2]) == chosen


def test_unless_it_is_said_the_highest_version_is_served():
    assert VersionPolicy().choose([3, 1]) == {3}
    assert VersionPolicy().choose([]) == set()


@pytest.mark.parametrize(
    "said", ["", "latest 0", "latest -1", "newest", "latest2", [], [0], [True], ["1"], 2, None, {}]
)
def test_what_is_no_policy_is_refused(said):
    with pytest.raises(ValueError, match='expected "all", "latest", "latest N" or a list'):
        VersionPolicy.parse(said)
