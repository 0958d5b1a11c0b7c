"""The methods TraceSetting and LogSettings: callers see settings, and may set the log level."""

import logging

from neurona_protos import open_inference_pb2 as pb
from neurona_server.errors import (
    InvalidArgumentError,
    NotAllowedError,
    NotFoundError,
    UnsupportedError,
    quoted,
)
from neurona_server.models.lifecycle.registry import Registry
from neurona_server.rpc.call import Methods
from neurona_server.rpc.open_inference.messages import unary_method, unknown_model_error
from neurona_server.rpc.security.access import Grant, Right, visible_models

TRACE_SETTINGS = {
    "trace_level": "OFF",
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""The settings of a server that traces nothing for callers: its own options decide."""

LOG_LEVELS = {"log_error": logging.ERROR, "log_warning": logging.WARNING, "log_info": logging.INFO}
VERBOSE_LEVEL = "log_verbose_level"
_SILENT = logging.CRITICAL + 1

log = logging.getLogger("neurona_server")


class SettingsService:
    """The methods about settings."""

    def __init__(self, registry: Registry, *, changeable: bool) -> None:
        """Make the service; `changeable` is whether callers may change the log level."""
        self._registry = registry
        self._changeable = changeable

    def methods(self, prefix: str) -> Methods:
        return {
            prefix + "TraceSetting": unary_method(
                Right.CONTROL, pb.TraceSettingRequest, self._trace_setting
            ),
            prefix + "LogSettings": unary_method(
                Right.CONTROL, pb.LogSettingsRequest, self._log_settings
            ),
        }

    def _trace_setting(
        self, message: pb.TraceSettingRequest, grant: Grant
    ) -> pb.TraceSettingResponse:
        if message.model_name:
            try:
                visible_models(self._registry, grant).entry(message.model_name)
            except NotFoundError as error:
                raise unknown_model_error(message.model_name, "", error) from None
        for name, setting in message.settings.items():
            if name not in TRACE_SETTINGS:
                raise InvalidArgumentError(
                    f"unknown trace setting {quoted(name)} "
                    f"(expected one of {', '.join(TRACE_SETTINGS)})"
                )
            # Without a value, a setting is reset to its default, which it always has.
            if setting.value and list(setting.value) != [TRACE_SETTINGS[name]]:
                raise UnsupportedError(
                    f"trace setting {name!r} cannot be changed (expected {TRACE_SETTINGS[name]!r})"
                )
        response = pb.TraceSettingResponse()
        for name, value in TRACE_SETTINGS.items():
            response.settings[name].value.append(value)
        return response

    def _log_settings(self, message: pb.LogSettingsRequest, _: Grant) -> pb.LogSettingsResponse:
        if message.settings:
            if not self._changeable:
                raise NotAllowedError(
                    "log settings cannot be changed: model_control is not explicit"
                )
            level = _requested_level(message)
            if level != log.getEffectiveLevel():
                log.setLevel(logging.INFO)  # so that the next line is logged at any level
                log.info("log level set to %s by a caller", logging.getLevelName(level))
                log.setLevel(level)
        level = log.getEffectiveLevel()
        response = pb.LogSettingsResponse()
        for name, threshold in LOG_LEVELS.items():
            response.settings[name].bool_param = level <= threshold
        response.settings[VERBOSE_LEVEL].uint32_param = int(level <= logging.DEBUG)
        response.settings["log_file"].string_param = ""
        response.settings["log_format"].string_param = "default"
        return response


def _requested_level(message: pb.LogSettingsRequest) -> int:
    """Return the log level that the settings of a message amount to.

    Settings that the message leaves out stay unchanged.

    Raises:
        InvalidArgumentError: A setting is unknown or has the wrong type, or a level is on while a
            more severe one is off.
        UnsupportedError: The setting cannot be changed.
    """
    current = log.getEffectiveLevel()
    enabled = {name: current <= threshold for name, threshold in LOG_LEVELS.items()}
    verbose = int(current <= logging.DEBUG)
    for name, setting in message.settings.items():
        kind = setting.WhichOneof("parameter_choice")
        if name in LOG_LEVELS:
            if kind != "bool_param":
                raise InvalidArgumentError(
                    f"log setting {name!r} is a {kind} (expected bool_param)"
                )
            enabled[name] = setting.bool_param
        elif name == VERBOSE_LEVEL:
            if kind != "uint32_param":
                raise InvalidArgumentError(
                    f"log setting {name!r} is a {kind} (expected uint32_param)"
                )
            verbose = setting.uint32_param
        elif name in ("log_file", "log_format"):
            fixed = "" if name == "log_file" else "default"
            if setting.string_param != fixed:
                raise UnsupportedError(
                    f"log setting {name!r} cannot be changed (expected {fixed!r})"
                )
        else:
            raise InvalidArgumentError(
                f"unknown log setting {quoted(name)} (expected one of "
                f"{', '.join([*LOG_LEVELS, VERBOSE_LEVEL])})"
            )
    error, warning, info = enabled.values()
    if (info and not warning) or (warning and not error) or (verbose and not info):
        raise InvalidArgumentError(
            "inconsistent log settings (expected log_info for log_verbose_level, log_warning for "
            "log_info, and log_error for log_warning)"
        )
    if verbose:
        return logging.DEBUG
    return next(
        (threshold for name, threshold in reversed(LOG_LEVELS.items()) if enabled[name]), _SILENT
    )
