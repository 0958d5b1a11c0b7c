"""neurona-serve --check: whether a server with these options would serve, and what.

The file is alone since it starts no server: it loads each model as a server does, which runs it,
proves what is done with its batches and finds out its provider, and reports a line for each.
"""

import logging
from collections.abc import Callable

from neurona_server.app import App
from neurona_server.config.options import Config
from neurona_server.errors import printable
from neurona_server.models.model import Model
from neurona_server.start_text import describe_model


def check(config: Config, write: Callable[[str], object] = print) -> int:
    """Check options, certificates, tokens and models.

    Args:
        config: The options.
        write: Takes each line of the report.

    Returns:
        The exit status: 0 if there is no fault.

    Raises:
        ConfigError: An option, or a file that one names, is invalid.
        LoadError: A repository cannot be read, or what was named is not there or no model.
    """
    logging.getLogger("neurona_server").setLevel(logging.CRITICAL)  # each fault is reported once
    models, faults = App(config).check_models()
    for model in models:
        write(f"OK     {_describe(model)}")
    for fault in faults:
        write(f"FAULT  {printable(fault)}")
    if not models and not faults:
        write("FAULT  no model (expected ONNX files, or <name>/<version>/model.onnx)")
        return 1
    return 1 if faults else 0


def _describe(model: Model) -> str:
    facts = [
        "batched" if model.signature.batched else "not batched",
        *(["sequences"] if model.sequences is not None else []),
        model.provider,
        *([] if model.has_run else ["not run: it rejected all synthetic inputs"]),
    ]
    return f"{model}  {describe_model(model)}  ({', '.join(facts)})"
