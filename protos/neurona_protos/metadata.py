"""ModelMetadata as JSON text, in the `metadata_props` of an ONNX file.

It stands alone because training writes the text and the server reads it, without each other.
"""

from google.protobuf import json_format

from neurona_protos.prediction_pb2 import ModelMetadata

KEY = "neurona.v1.ModelMetadata"
"""The key in `metadata_props`."""


def to_json(metadata: ModelMetadata) -> str:
    """Convert metadata to JSON (protobuf's JSON mapping), on one line with sorted keys."""
    return json_format.MessageToJson(metadata, indent=None, sort_keys=True)


def from_json(text: str) -> ModelMetadata:
    """Convert JSON to metadata; ignore unknown fields, as of a newer version.

    Raises:
        ValueError: The text is not a ModelMetadata in JSON.
    """
    try:
        return json_format.Parse(text, ModelMetadata(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(f"invalid metadata {KEY!r}: {error}") from error
