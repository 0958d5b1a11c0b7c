"""Trains a classifier on a CSV file, then asks the exported model about new rows.

    python training/examples/train_on_your_csv.py

Writes wines.csv (scikit-learn's wines, with a column of text added), trains the recipe `mlp` on
it as `neurona-train` would, and runs the file that a server would serve.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
from sklearn.datasets import load_wine

from neurona_protos import metadata
from neurona_training.cli.main import main as neurona_train


def write_csv(path: Path) -> None:
    """Three columns of numbers, one of text, and the class that is to be predicted."""
    wine = load_wine(as_frame=True)
    table = wine.frame[["alcohol", "color_intensity", "proline"]].copy()
    table["hue"] = np.where(wine.frame["hue"] > 1, "bluish", "reddish")
    table["grower"] = [f"grower {code}" for code in wine.target]
    table.to_csv(path, index=False)


def main(folder: Path) -> int:
    """Trains in this folder; returns the exit status of neurona-train."""
    csv = folder / "wines.csv"
    write_csv(csv)
    out = folder / "models"
    status = neurona_train(["mlp", "--data", str(csv), "--target", "grower", "--out", str(out)])
    if status:
        return status

    session = onnxruntime.InferenceSession(out / "mlp-wines" / "1" / "model.onnx")
    inputs = {
        "features": np.array([[13.7, 5.6, 1100.0], [12.3, 2.8, 500.0]], np.float32),
        "hue": np.array(["bluish", "reddish"], object),
    }
    (probabilities,) = session.run(["probabilities"], inputs)
    described = metadata.from_json(session.get_modelmeta().custom_metadata_map[metadata.KEY])
    for row in probabilities:
        best = int(row.argmax())
        print(f"{described.labels[best]}: {row[best]:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
