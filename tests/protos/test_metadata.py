"""ModelMetadata as JSON text."""

import pytest

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata, Task


def test_metadata_survive_the_round_trip():
    written = ModelMetadata(
        task=Task.TASK_REGRESSION, figures={"test_rmse": 1.5}, provenance={"seed": "1"}
    )
    assert metadata.from_json(metadata.to_json(written)) == written


def test_fields_of_a_newer_version_are_ignored():
    assert metadata.from_json('{"answer": "y", "fieldOfTomorrow": 1}').answer == "y"


@pytest.mark.parametrize("text", ["", "no json", '{"task": {}}', '{"labels": 1}'])
def test_invalid_text_is_an_error(text):
    with pytest.raises(ValueError, match="neurona.v1.ModelMetadata"):
        metadata.from_json(text)
