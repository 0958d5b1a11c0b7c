"""The methods TraceSetting and LogSettings: callers see settings, and may set the log levels."""

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
from neurona_server.telemetry import logs

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
FIXED_LOG_SETTINGS = {"log_file": "", "log_format": "default"}

log = logging.getLogger("neurona_server")


class SettingsService:
    """The methods about settings."""

    def __init__(self, registry: Registry, *, changeable: bool) -> None:
        """Make the service; `changeable` is whether callers may change the log level."""
        self._registry = registry
        self._changeable = changeable
        self._verbose_level = 0
        """The one that a caller has set."""

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
            levels, self._verbose_level = self._read_log_settings(message)
            if levels != logs.enabled_levels():
                logs.enable_levels(levels | {logging.INFO})  # so that the next line is logged
                names = [logging.getLevelName(level) for level in sorted(levels)]
                log.info("log levels set to %s by a caller", ", ".join(names) or "none")
                logs.enable_levels(levels)
        levels = logs.enabled_levels()
        response = pb.LogSettingsResponse()
        for name, level in LOG_LEVELS.items():
            response.settings[name].bool_param = level in levels
        verbose = logging.DEBUG in levels
        response.settings[VERBOSE_LEVEL].uint32_param = (self._verbose_level or 1) if verbose else 0
        for name, value in FIXED_LOG_SETTINGS.items():
            response.settings[name].string_param = value
        return response

    def _read_log_settings(self, message: pb.LogSettingsRequest) -> tuple[frozenset[int], int]:
        """Return the levels that a message wants to be logged, and the verbose level.

        Each setting has an effect of its own; those that the message leaves out stay unchanged.

        Raises:
            InvalidArgumentError: A setting is unknown or has the wrong type.
            UnsupportedError: The setting cannot be changed.
        """
        levels, verbose = set(logs.enabled_levels()), self._verbose_level
        for name, setting in message.settings.items():
            if name in LOG_LEVELS:
                _check_kind(name, setting, "bool_param")
                level, enabled = LOG_LEVELS[name], setting.bool_param
            elif name == VERBOSE_LEVEL:
                _check_kind(name, setting, "uint32_param")
                verbose = setting.uint32_param
                level, enabled = logging.DEBUG, verbose > 0
            elif name in FIXED_LOG_SETTINGS:
                _check_fixed(name, setting)
                continue
            else:
                raise InvalidArgumentError(
                    f"unknown log setting {quoted(name)} (expected one of "
                    f"{', '.join([*LOG_LEVELS, VERBOSE_LEVEL])})"
                )
            (levels.add if enabled else levels.discard)(level)
        return frozenset(levels), verbose


def _check_kind(name: str, setting: pb.LogSettingsRequest.SettingValue, expected: str) -> None:
    kind = setting.WhichOneof("parameter_choice")
    if kind != expected:
        raise InvalidArgumentError(f"log setting {name!r} is a {kind} (expected {expected})")


def _check_fixed(name: str, setting: pb.LogSettingsRequest.SettingValue) -> None:
    value = FIXED_LOG_SETTINGS[name]
    if setting.string_param == value:
        return
    reason = f"log setting {name!r} cannot be changed (expected {value!r})"
    if name == "log_file":
        reason = f"log file location can not be updated through network protocol: {reason}"
    raise UnsupportedError(reason)
