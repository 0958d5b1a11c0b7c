import pytest

from neurona_protos import metadata
from neurona_protos.prediction_pb2 import ModelMetadata, Task


def test_metadata_survive_the_way_through_text():
    written = ModelMetadata(
        task=Task.TASK_REGRESSION, figures={"test_rmse": 1.5}, provenance={"seed": "1"}
    )
    assert metadata.from_json(metadata.to_json(written)) == written


def test_fields_of_a_later_version_are_passed_over():
    assert metadata.from_json('{"answer": "y", "fieldOfTomorrow": 1}').answer == "y"


@pytest.mark.parametrize("text", ["", "no json", '{"task": {}}', '{"labels": 1}'])
def test_text_that_is_no_metadata_is_refused(text):
    with pytest.raises(ValueError, match="neurona.v1.ModelMetadata"):
        metadata.from_json(text)
