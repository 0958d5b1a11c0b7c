"""TraceSetting and LogSettings."""

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
from neurona_server.rpc.open_inference.messages import unary_method, unknown
from neurona_server.rpc.security.access import Grant, Right, seen

TRACE = {
    "trace_level": "OFF",
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "",
    "trace_mode": "triton",
}
"""What callers can have traced, which is nothing: the server's own options decide."""

LEVELS = {"log_error": logging.ERROR, "log_warning": logging.WARNING, "log_info": logging.INFO}
VERBOSE = "log_verbose_level"
_SILENT = logging.CRITICAL + 1

log = logging.getLogger("neurona_server")


class Settings:
    """Everybody may ask; `changeable` says whether a caller may change how the server logs."""

    def __init__(self, registry: Registry, *, changeable: bool) -> None:
        self._registry = registry
        self._changeable = changeable

    def methods(self, path: str) -> Methods:
        return {
            path + "TraceSetting": unary_method(Right.CONTROL, pb.TraceSettingRequest, self._trace),
            path + "LogSettings": unary_method(Right.CONTROL, pb.LogSettingsRequest, self._log),
        }

    def _trace(self, message: pb.TraceSettingRequest, grant: Grant) -> pb.TraceSettingResponse:
        if message.model_name:
            try:
                seen(self._registry, grant).entry(message.model_name)
            except NotFoundError as error:
                raise unknown(message.model_name, "", error) from None
        for name, setting in message.settings.items():
            if name not in TRACE:
                raise InvalidArgumentError(
                    f"trace setting {quoted(name)} is not known; expected one of {', '.join(TRACE)}"
                )
            # Without a value, a setting goes back to its default, which it has.
            if setting.value and list(setting.value) != [TRACE[name]]:
                raise UnsupportedError(
                    f"trace setting {name!r}: callers do not set it here; expected {TRACE[name]!r}"
                )
        response = pb.TraceSettingResponse()
        for name, value in TRACE.items():
            response.settings[name].value.append(value)
        return response

    def _log(self, message: pb.LogSettingsRequest, _: Grant) -> pb.LogSettingsResponse:
        if message.settings:
            if not self._changeable:
                raise NotAllowedError(
                    "the log is not changed by callers: model_control is not explicit"
                )
            level = _asked_level(message)
            if level != log.getEffectiveLevel():
                log.setLevel(logging.INFO)  # so that what follows is seen at any level
                log.info("a caller set the log's level to %s", logging.getLevelName(level))
                log.setLevel(level)
        level = log.getEffectiveLevel()
        response = pb.LogSettingsResponse()
        for name, least in LEVELS.items():
            response.settings[name].bool_param = level <= least
        response.settings[VERBOSE].uint32_param = int(level <= logging.DEBUG)
        response.settings["log_file"].string_param = ""
        response.settings["log_format"].string_param = "default"
        return response


def _asked_level(message: pb.LogSettingsRequest) -> int:
    """The level that the settings come to, with what holds now for those that are not said.

    Each level has all more severe ones in it, so that settings that leave one out are refused.
    Raises InvalidArgumentError, and UnsupportedError for what a caller cannot set here.
    """
    now = log.getEffectiveLevel()
    on = {name: now <= least for name, least in LEVELS.items()}
    verbose = int(now <= logging.DEBUG)
    for name, setting in message.settings.items():
        kind = setting.WhichOneof("parameter_choice")
        if name in LEVELS:
            if kind != "bool_param":
                raise InvalidArgumentError(f"log setting {name!r} is a {kind}; expected bool_param")
            on[name] = setting.bool_param
        elif name == VERBOSE:
            if kind != "uint32_param":
                raise InvalidArgumentError(
                    f"log setting {name!r} is a {kind}; expected uint32_param"
                )
            verbose = setting.uint32_param
        elif name in ("log_file", "log_format"):
            held = "" if name == "log_file" else "default"
            if setting.string_param != held:
                raise UnsupportedError(f"log setting {name!r} cannot be set; it is {held!r}")
        else:
            raise InvalidArgumentError(
                f"log setting {quoted(name)} is not known; expected one of "
                f"{', '.join([*LEVELS, VERBOSE])}"
            )
    error, warning, info = on.values()
    if (info and not warning) or (warning and not error) or (verbose and not info):
        raise InvalidArgumentError(
            "each level has all more severe ones in it: log_verbose_level needs log_info, that "
            "log_warning, and that log_error"
        )
    if verbose:
        return logging.DEBUG
    return next((least for name, least in reversed(LEVELS.items()) if on[name]), _SILENT)
