"""Models that return the images that they take, so that tests see what the server decodes."""

from pathlib import Path

from onnx import TensorProto, helper

from neurona_protos.prediction_pb2 import (
    IMAGE_COLOURS_RGB,
    IMAGE_INVERSION_BRIGHT_BORDER,
    IMAGE_LAYOUT_CHW,
    IMAGE_LAYOUT_HWC,
    ImageDescription,
    InputDescription,
    ModelMetadata,
)
from support.onnx_models import save

IMAGENET = """
[inputs.image.image]
resize = "shorter-side"
shorter_side = 10
range = [0, 1]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
"""

DESCRIBED = {
    "grey": ImageDescription(width=8, height=8, white=16, inversion=IMAGE_INVERSION_BRIGHT_BORDER),
    "free": ImageDescription(),
    "bytes": ImageDescription(
        layout=IMAGE_LAYOUT_HWC, colours=IMAGE_COLOURS_RGB, width=6, height=4
    ),
    "one": ImageDescription(layout=IMAGE_LAYOUT_CHW, colours=IMAGE_COLOURS_RGB, width=6, height=4),
}
"""How images become the input of each model."""

INPUTS = {
    "grey": (TensorProto.FLOAT, ["batch", 8, 8]),
    "free": (TensorProto.FLOAT, ["batch", "height", "width"]),
    "bytes": (TensorProto.UINT8, ["batch", 4, 6, 3]),
    "one": (TensorProto.DOUBLE, [3, 4, 6]),
    "imagenet": (TensorProto.FLOAT, ["batch", 3, 8, 8]),
    "undeclared": (TensorProto.FLOAT, ["batch", 8, 8]),
}


def save_image_models(root: Path) -> Path:
    """Save one for each of INPUTS, and others with a second input; return the repository."""
    masked = {
        "image": (TensorProto.FLOAT, ["batch", 3, "height", "width"]),
        "mask": (TensorProto.FLOAT, ["batch", 1, "height", "width"]),
    }
    save(
        root / "masked" / "1" / "model.onnx",
        [helper.make_node("Add", ["image", "mask"], ["sum"])],
        masked,
        {"sum": masked["image"]},
        metadata=ModelMetadata(
            inputs=[
                InputDescription(
                    name="image",
                    image=ImageDescription(layout=IMAGE_LAYOUT_CHW, colours=IMAGE_COLOURS_RGB),
                )
            ]
        ),
    )
    for name, (kind, shape) in INPUTS.items():
        described = DESCRIBED.get(name)
        inputs = [InputDescription(name="image", image=described)] if described else []
        save(
            root / name / "1" / "model.onnx",
            [helper.make_node("Identity", ["image"], ["same"])],
            {"image": (kind, shape)},
            {"same": (kind, shape)},
            metadata=ModelMetadata(inputs=inputs),
        )
    (root / "imagenet" / "model.toml").write_text(IMAGENET)
    save(
        root / "pair" / "1" / "model.onnx",
        [
            helper.make_node("Identity", ["image"], ["same"]),
            helper.make_node("Identity", ["number"], ["number_too"]),
        ],
        {"image": INPUTS["grey"], "number": (TensorProto.FLOAT, ["batch", 1])},
        {"same": INPUTS["grey"], "number_too": (TensorProto.FLOAT, ["batch", 1])},
        metadata=ModelMetadata(inputs=[InputDescription(name="image", image=DESCRIBED["grey"])]),
    )
    return root
