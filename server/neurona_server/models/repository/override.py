"""What a call that loads a model gives in place of the repository's config.pbtxt and files.

Triton's parameters of a load: `config`, a ModelConfig as JSON, and `file:PATH`, the contents of a
file. With files, nothing in the repository is used.
"""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from google.protobuf import json_format, text_format

from neurona_protos import model_config_pb2 as triton
from neurona_server.errors import InvalidArgumentError, NotLoadedError, printable, quoted
from neurona_server.models.repository.scanner import ModelFolder, Repository
from neurona_server.models.repository.settings import CONFIG_PBTXT, MODEL_TOML
from neurona_server.models.repository.unusable import MODEL_NAME

MAX_NAME_BYTES = 255
"""Bytes of the name of a file or folder, on all common file systems."""

_HAS_MAX_BATCH_SIZE = re.compile(r'"max_batch_size"|"maxBatchSize"')


@dataclass(frozen=True, eq=False)
class ModelOverride:
    """The configuration and files of one load; compared by identity."""

    config: str
    """The text of a config.pbtxt."""

    files: Mapping[PurePosixPath, bytes]
    """Contents by path in the model's folder; without any, those of the repository are loaded."""


def make_override(name: str, config: str | None, files: Mapping[str, bytes]) -> ModelOverride:
    """Check what a caller gives and return it as an override.

    Args:
        name: The model.
        config: A ModelConfig as JSON; None if it was left out.
        files: Contents by path, such as "1/model.onnx".

    Raises:
        InvalidArgumentError: The JSON is no ModelConfig, is missing, or a path is not allowed.
    """
    if config is None:
        # Triton's words up to the colon.
        raise InvalidArgumentError(
            f"failed to load {quoted(name)}, failed to poll from model repository: there is no "
            "parameter 'config' (expected one with parameters 'file:...', since nothing in the "
            "repository is used then)"
        )
    if not MODEL_NAME.fullmatch(name):
        raise InvalidArgumentError(
            f"invalid model name {quoted(name)} (expected letters, digits, '.', '_' and '-')"
        )
    paths: dict[PurePosixPath, bytes] = {}
    for text, content in files.items():
        if (path := _check_path(text)) in paths:  # such as 1/x and 1//x
            raise InvalidArgumentError(
                f"Invalid file path: parameter {quoted('file:' + text)} is a duplicate of "
                f"'file:{path}' (expected each file once)"
            )
        paths[path] = content
    return ModelOverride(_config_text(name, config), paths)


def _config_text(name: str, config: str) -> str:
    try:
        if not config.lstrip().startswith("{"):  # json_format takes other values for no fields
            raise ValueError("it is no JSON object")
        message = json_format.Parse(config, triton.ModelConfig())
    except (json_format.ParseError, ValueError, RecursionError) as error:
        problem = printable(str(error))[:300]
        raise InvalidArgumentError(
            f"failed to load {quoted(name)}, failed to poll from model repository: parameter "
            f"'config' is no ModelConfig: {problem}"
        ) from error
    text = text_format.MessageToString(message)
    if not message.max_batch_size and _HAS_MAX_BATCH_SIZE.search(config):
        text += "max_batch_size: 0\n"  # which says more than leaving it out
    return text


def _check_path(text: str) -> PurePosixPath:
    path = PurePosixPath(text)
    parts = path.parts
    valid = parts and not path.is_absolute() and ".." not in parts and text.isprintable()
    if not valid or set(text) & set("\\:") or str(path) in (CONFIG_PBTXT, MODEL_TOML):
        raise InvalidArgumentError(
            f"Invalid file path: parameter {quoted('file:' + text)} (expected 'file:' and a path "
            "inside the model's folder, such as 'file:1/model.onnx')"
        )
    longest = max(len(part.encode()) for part in parts)
    if longest > MAX_NAME_BYTES:
        raise InvalidArgumentError(
            f"Invalid file path: parameter {quoted('file:' + text)} has a name of {longest} bytes "
            f"(expected at most {MAX_NAME_BYTES})"
        )
    return path


class UploadedModel:
    """The folder of a model whose files a caller has given; a temporary one.

    Raises:
        NotLoadedError: The files cannot be stored.
    """

    def __init__(self, name: str, override: ModelOverride) -> None:
        try:
            self._root = tempfile.TemporaryDirectory(prefix="neurona-model-")
        except OSError as error:
            raise _storing_error(name, error) from error
        self._name = name
        folder = Path(self._root.name) / name
        try:
            for path, content in override.files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(content)
            (folder / CONFIG_PBTXT).write_text(override.config, encoding="utf-8")
        except OSError as error:  # also one path that is a file and the folder of another one
            self.close()
            raise _storing_error(name, error) from error

    def scan(self) -> ModelFolder:
        """Return the folder as a repository would.

        Raises:
            NotLoadedError: The files are those of no version.
        """
        folder = Repository([Path(self._root.name)]).scan()[self._name]
        if folder.versions or folder.problem:
            return folder
        reasons = [f"{path or 'its files'}: {one.reason}" for path, one in folder.unusable.items()]
        self.close()
        raise NotLoadedError(
            f"load failed for model {quoted(self._name)}: {'; '.join(reasons) or 'no versions'} "
            "(expected parameters like 'file:1/model.onnx')"
        )

    def close(self) -> None:
        """Delete the files."""
        self._root.cleanup()


def _storing_error(name: str, error: OSError) -> NotLoadedError:
    return NotLoadedError(f"the files of model {quoted(name)} cannot be stored: {error.strerror}")
