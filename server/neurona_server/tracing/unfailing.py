"""Whatever goes wrong with a trace, what is traced goes on."""

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

log = logging.getLogger(__name__)

Parameters = ParamSpec("Parameters")


def unfailing(step: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """`step`, but what it raises is said in the log, once."""
    said: list[bool] = []

    @wraps(step)
    def tried(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            step(*args, **kwargs)
        except Exception:
            if not said:
                said.append(True)
                log.exception("traces are not complete: this is said once")

    return tried
