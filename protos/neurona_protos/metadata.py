"""ModelMetadata as text: how it stands in the `metadata_props` of an ONNX file."""

from google.protobuf import json_format

from neurona_protos.prediction_pb2 import ModelMetadata

KEY = "neurona.v1.ModelMetadata"


def to_json(metadata: ModelMetadata) -> str:
    return json_format.MessageToJson(metadata, indent=None, sort_keys=True)


def from_json(text: str) -> ModelMetadata:
    """Reads what `to_json` wrote; fields of a newer version are passed over.

    Raises ValueError when the text is not a ModelMetadata.
    """
    try:
        return json_format.Parse(text, ModelMetadata(), ignore_unknown_fields=True)
    except json_format.ParseError as error:
        raise ValueError(f"metadata {KEY!r} cannot be read: {error}") from error
