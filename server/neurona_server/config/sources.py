"""Reads options from flags, the environment and a file.

An option is taken from its flag, else from the environment (NEURONA_ and the name in upper case),
else from a file (neurona.toml), else it has its default. A misspelled option is an error.
"""

import argparse
import difflib
import importlib.metadata
import logging
import os
import re
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from neurona_server.address import UNIX
from neurona_server.config.options import GROUPS, POSITIONAL, Config, Option, list_options
from neurona_server.config.parsers import ProviderNames, ProviderOptionTexts
from neurona_server.errors import ConfigError, printable, quoted
from neurona_server.files import parse_toml, read_file
from neurona_server.models.repository.validation import convert, invalid_value

PREFIX = "NEURONA_"
DEFAULT_FILE = "neurona.toml"
DEFAULT_FOLDER = "models"
CHECK = "--check"
OTHER_VARIABLES = {  # read elsewhere, or by others
    *("NEURONA_CONFIG", "NEURONA_DATA", "NEURONA_SHARED"),
    # The command line of the client.
    *("NEURONA_CA", "NEURONA_CLIENT_CERTIFICATE", "NEURONA_CLIENT_KEY", "NEURONA_SERVER_NAME"),
    *("NEURONA_TLS", "NEURONA_TOKEN", "NEURONA_TOKEN_FILE"),
}

# Variables that Kubernetes sets for a service called neurona, or neurona-something.
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_\d|$)")

log = logging.getLogger(__name__)


def load(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Read the options of a server. Exits as argparse does at --help and at an unknown flag.

    Args:
        arguments: The command line, without the name of the program.
        environment: The environment variables.

    Raises:
        ConfigError: An option is invalid, or the file of options cannot be read.
    """
    options = {option.name: option for option in list_options()}
    flags = vars(_parser(options).parse_intermixed_args(arguments))
    flags.pop("check")  # of the command, not of the server
    if flags.pop("hash_token"):
        raise ConfigError("--hash-token has no other options")
    flags[POSITIONAL] = flags.pop("arguments") + (flags[POSITIONAL] or []) or None
    # An empty variable counts as not set.
    config_file = flags.pop("config") or environment.get(PREFIX + "CONFIG") or None
    values = _read_file(config_file, options) | _read_environment(environment, options)
    values |= {name: value for name, value in flags.items() if value is not None}
    values = {name: _parse(value, options[name]) for name, value in values.items()}
    config = convert(values, Config, "", _invalid_option)
    if config.files or config.repository or config.model:
        return config
    if os.path.isdir(DEFAULT_FOLDER):
        return msgspec.structs.replace(config, files=(Path(DEFAULT_FOLDER),))
    raise ConfigError(
        "no models: name an ONNX file or a folder with some, as in 'neurona-serve model.onnx' "
        f"(without one the folder {DEFAULT_FOLDER!r} is served, which is not here)"
    )


def from_values(values: Mapping[str, object]) -> Config:
    """Return the options that a program gives; flags, environment and file are not read.

    Args:
        values: By name, as their types or as the texts that flags would have. A path may be any
            os.PathLike, and a repeatable option a sequence.

    Raises:
        ConfigError: An option is unknown or invalid.
    """
    options = {option.name: option for option in list_options()}
    for name in values:
        if name not in options:
            raise ConfigError(f"unknown option {quoted(name)}{_suggestion(name, options)}")
    parsed = {name: _parse(_plain(value), options[name]) for name, value in values.items()}
    return convert(parsed, Config, "", _invalid_option)


def _plain(value: object) -> object:
    """Return a value of a program as a file of options would have it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def check_processes(config: Config) -> None:
    """Check that a supervisor and its processes can serve with these options.

    Raises:
        ConfigError: They cannot.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise ConfigError(
            f"processes is {config.processes} and supervise is {str(config.supervise).lower()} "
            "(expected 1 and false): this system has no SO_REUSEPORT"
        )
    if config.processes == 1:
        return
    where = f"processes is {config.processes}"
    if UNIX in config.address:
        raise ConfigError(f"{where} (expected an address HOST:PORT): a unix socket has one owner")
    if config.model_control == "explicit":
        raise ConfigError(
            f"{where} (expected model_control poll or none): load calls reach one process only"
        )
    if config.shared_memory:
        raise ConfigError(
            f"{where} (expected shared_memory false): register calls reach one process only"
        )


def _invalid_option(problem: str) -> ConfigError:
    return ConfigError(f"option {problem}")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description, and names each option once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=6, width=min(96, shutil.get_terminal_size()[0]))


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return importlib.metadata.version("neurona")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "unknown"


def _parser(options: Mapping[str, Option]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="neurona-serve",
        usage="neurona-serve [FILE ...] [OPTIONS]",
        description="Serve ONNX models over gRPC and HTTP with dynamic batching:\n\n"
        "  neurona-serve model.onnx            one file, named after it\n"
        "  neurona-serve                       the files and folders in ./models\n"
        "  neurona-serve --check model.onnx    whether it would serve, and what it would serve",
        epilog="Each option can also be set in neurona.toml (max_batch_rows = 32) or in the\n"
        "environment (NEURONA_MAX_BATCH_ROWS=32). A flag takes precedence over the\n"
        "environment, the environment over the file.",
        allow_abbrev=False,
        add_help=False,
        formatter_class=_HelpFormatter,
    )
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(GROUPS.values())}
    command = parser.add_argument_group("the command")
    for option in options.values():
        default = str(option.default)
        if isinstance(option.default, bool):
            default = default.lower()
        shown = "" if option.default in ((), "") else f" (default: {default})"
        help_text = (option.help + shown).replace("%", "%%")
        if option.name == POSITIONAL:
            groups[option.group].add_argument(
                "arguments", nargs="*", metavar="FILE", help=help_text
            )
            help_text = argparse.SUPPRESS  # its flag is for programs that write each option as one
        groups[option.group].add_argument(
            "--" + option.name.replace("_", "-"),
            action="append" if option.repeatable else "store",
            metavar="DIR" if option.value_type is Path else "VALUE",
            help=help_text,
        )
    command.add_argument(
        "--config",
        metavar="FILE",
        help=f"TOML file of options (default: {DEFAULT_FILE} in the current folder, if it exists)",
    )
    command.add_argument(
        CHECK,
        action="store_true",
        help="Check the options, load every model, run it, report each fault in a line and exit "
        "with status 1 if there is one. Nothing listens.",
    )
    command.add_argument(
        "--hash-token",
        action="store_true",
        help="Read a token from standard input and print its hash for tokens_file; without other "
        "options.",
    )
    command.add_argument("--version", action="version", version=f"neurona {installed_version()}")
    command.add_argument("-h", "--help", action="help", help="Show this text.")
    return parser


def _read_file(name: str | None, options: Mapping[str, Option]) -> dict[str, Any]:
    path = Path(name or DEFAULT_FILE)
    if name is None and not os.path.exists(path):
        return {}
    values = parse_toml(read_file(path), path)
    for key in values:
        if key not in options:
            hint = _suggestion(key, options)
            raise ConfigError(f"unknown option {quoted(key)} in {printable(str(path))}{hint}")
    return values


def _read_environment(
    environment: Mapping[str, str], options: Mapping[str, Option]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, value in environment.items():
        if not variable.startswith(PREFIX) or not value or variable in OTHER_VARIABLES:
            continue
        name = variable.removeprefix(PREFIX).lower()
        if option := options.get(name):
            values[name] = value.split(os.pathsep) if option.repeatable else value
        # Other programs use the environment too: only a name that resembles an option is taken
        # for a misspelled one.
        elif suggestion := _suggestion(name, options):
            shown = printable(variable)
            raise ConfigError(f"unknown option {shown} in the environment{suggestion}")
        elif not _KUBERNETES.search(variable):
            shown = printable(variable)
            log.warning("ignoring %s in the environment: no such option", shown)
    return values


def _parse(value: Any, option: Option) -> Any:
    """Parse the text of an option as Python does: 1_000 is a number, 1 is neither true nor false.

    A value of a file is parsed as its text would be. What is not parsed here is left to `convert`,
    which parses the types of `parsers` and rejects the rest.

    Raises:
        ConfigError: The value is none that a text can have, like a table or a date.
    """
    if option.repeatable:
        items = value if isinstance(value, list) else [value]
        where = f"{option.name}[{{}}]"
        return [
            _parse_item(item, where.format(i), option.value_type) for i, item in enumerate(items)
        ]
    if option.value_type is ProviderNames and isinstance(value, list):
        items = [_text_of(item, f"{option.name}[{i}]") for i, item in enumerate(value)]
        value = ",".join(items)
    if option.value_type is ProviderOptionTexts and isinstance(value, dict):
        return {
            provider: {
                key: _text_of(item, f"{option.name}.{provider}.{key}")
                for key, item in table.items()
            }
            if isinstance(table, dict)
            else _text_of(table, f"{option.name}.{provider}")
            for provider, table in value.items()
        }
    return _parse_item(value, option.name, option.value_type)


def _parse_item(value: Any, where: str, value_type: type) -> Any:
    text = _text_of(value, where)
    if value_type is bool:
        return {"true": True, "false": False}.get(text.lower(), value)
    if value_type in (int, float):
        try:
            return value_type(text)
        except ValueError:
            return text if isinstance(value, float) else value  # 1.0 is no integer
    return text


def _text_of(value: Any, where: str) -> str:
    """Return a value of a file as the text that a flag would have."""
    if not isinstance(value, str | int | float):
        raise _invalid_option(invalid_value(where, value, "expected a string, number or boolean"))
    try:
        text = str(value)
        text.encode()
    except UnicodeError:  # bytes of a flag or variable
        raise _invalid_option(invalid_value(where, value, "expected UTF-8")) from None
    except ValueError:  # Python does not print integers of thousands of digits
        raise _invalid_option(invalid_value(where, value, "expected fewer digits")) from None
    if "\0" in text:
        raise _invalid_option(invalid_value(where, text, "expected no NUL character"))
    return text


def _suggestion(name: str, options: Mapping[str, Option]) -> str:
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.8)
    return f"; did you mean {close[0]!r}?" if close else ""
