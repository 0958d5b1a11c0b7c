"""How tests run the command `neurona`."""

import os
import sys
from pathlib import Path

NEURONA = Path(sys.executable).with_name("neurona")


def environment(**variables: str) -> dict[str, str]:
    """Without what the machine has set for commands of ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NEURONA_")}
    return kept | variables
