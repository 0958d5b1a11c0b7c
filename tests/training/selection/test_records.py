"""Results in a file: found again by key and fingerprint, replaced in one step, read or refused."""

import pytest

from neurona_training.errors import OutputError
from neurona_training.selection.records import RecordFile


def test_a_record_is_found_again_for_the_same_training_only(tmp_path):
    path = tmp_path / "deep" / "records.json"
    RecordFile(path).add("seed 0", "epochs 5", {"metrics": {"accuracy": 0.5}})
    again = RecordFile(path)
    assert again.find("seed 0", "epochs 5")["metrics"] == {"accuracy": 0.5}
    assert again.find("seed 0", "epochs 6") is None
    assert again.find("seed 1", "epochs 5") is None
    assert RecordFile(path, keep=False).find("seed 0", "epochs 5") is None
    assert [one.name for one in path.parent.iterdir()] == ["records.json"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 2, "records": {}}', '{"format": 1, "records": {"a": 1}}']
)
def test_a_file_that_is_no_record_is_refused_with_its_name(tmp_path, text):
    path = tmp_path / "records.json"
    path.write_text(text)
    with pytest.raises(OutputError, match=r"records\.json: .+"):
        RecordFile(path)
