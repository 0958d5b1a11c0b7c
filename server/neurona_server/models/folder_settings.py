"""The settings that stand in a model's folder, in whichever of the two files."""

import logging
import os
from pathlib import Path

from neurona_server.models.model_toml import read_model_toml
from neurona_server.models.settings import CONFIG_PBTXT, MODEL_TOML, ModelSettings
from neurona_server.models.triton_config import read_triton_config

_LOG = logging.getLogger(__name__)


def read_settings(folder: Path, log: logging.Logger = _LOG) -> ModelSettings:
    """What stands in a model's folder; model.toml wins over config.pbtxt.

    Raises LoadError with one line: file, key, what came and what was expected.
    """
    # A link to nowhere is there too: whoever made it should hear that nothing is behind it.
    toml, pbtxt = (os.path.lexists(folder / name) for name in (MODEL_TOML, CONFIG_PBTXT))
    if toml and pbtxt:
        log.info("%s: %s is read, %s is not", folder.name, MODEL_TOML, CONFIG_PBTXT)
    if toml:
        return read_model_toml(folder)
    if pbtxt:
        return read_triton_config(folder)
    return ModelSettings()
