"""Exports a torch module of one's own, verified, and verifies the file once more by the command.

    python training/examples/export_your_module.py

Trains a small network on scikit-learn's digits, writes models/digits/1/model.onnx, which
`neurona-serve --repository models` serves, and digits.pt2, the torch program of the module.
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

from neurona_protos.prediction_pb2 import IMAGE_LAYOUT_CHW, ImageDescription, InputDescription
from neurona_training.cli.main import main as neurona_train
from neurona_training.export import export


def train() -> tuple[nn.Module, torch.Tensor]:
    """Returns a network for images of 8 x 8 grey levels from 0 to 16, and all images."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)
    classes = torch.tensor(digits.target)
    network = nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(40):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), classes).backward()
        optimiser.step()
    return network, images


def main(folder: Path) -> int:
    """Exports into this folder; returns the exit status of the verification."""
    network, images = train()
    report = export(
        network,
        images[:16],
        folder / "models" / "digits",
        inputs=["image"],
        labels=[str(digit) for digit in range(10)],
        logits=True,
        description="handwritten digits",
        descriptions={"image": InputDescription(description="grey levels, 16 is ink")},
        image=ImageDescription(layout=IMAGE_LAYOUT_CHW, width=8, height=8, white=16),
    )
    print(report)

    # The same file against the module as a program, as one would verify any other file.
    complete = nn.Sequential(network.eval(), nn.Softmax(dim=1))
    program = torch.export.export(
        complete, (images[:16],), dynamic_shapes=({0: torch.export.Dim("rows")},)
    )
    torch.export.save(program, folder / "digits.pt2")
    return neurona_train(["verify", str(report.path), "--against", str(folder / "digits.pt2")])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
