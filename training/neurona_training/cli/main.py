"""The command `neurona-train`: a recipe by name becomes OUT/NAME/1/model.onnx.

neurona-train lenet5                          the default data set, as model `lenet5`
neurona-train lenet5 --data mnist             another one, as model `lenet5-mnist`
neurona-train lenet5 --data flowers/          own data, here a folder of images for each class
torchrun --nproc-per-node 2 -m neurona_training.cli.main lenet5     in two processes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

from neurona_training.cli import pipeline
from neurona_training.cli.arguments import PrintTable, TrainAll, parse
from neurona_training.cli.pipeline import Arguments
from neurona_training.cli.tables import listing, results_table
from neurona_training.errors import TrainingError
from neurona_training.export.files import check_writable
from neurona_training.recipes import RECIPES

_INTERRUPTED = 130  # exit status of a process that Ctrl-C ends: 128 + SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Exit status: 0; 1 if the run failed; 2 for a wrong command line; 130 after Ctrl-C.
    """
    command = parse(argv)
    if command is None:
        return _print_result(listing)
    if isinstance(command, PrintTable):
        return _print_result(partial(results_table, command.models))
    if isinstance(command, TrainAll):
        return train_all(command)
    return _print_result(partial(_train_one, command))


def train_all(command: TrainAll) -> int:
    """Trains all models that do not exist yet, so that the command can be repeated after a stop."""
    failed = []
    for number, arguments in enumerate(command.models, start=1):
        title = f"{number}/{len(command.models)} {arguments.name}"
        if pipeline.model_path(arguments).exists():
            print(f"{title}: exists, skipped")
            continue
        print(f"{title}: {arguments.recipe} on {arguments.data}", flush=True)
        status = _print_result(partial(_train_one, arguments))
        if status == _INTERRUPTED:
            return status
        if status:
            failed.append(arguments.name)
    return _print_error(f"not trained: {', '.join(failed)}") if failed else 0


def _train_one(arguments: Arguments) -> list[str]:
    path = pipeline.model_path(arguments)
    check_writable(path)
    checkpoint = path.parents[1] / "checkpoint.pt"
    return pipeline.run(RECIPES[arguments.recipe], arguments, path, checkpoint)


def _print_result(work: Callable[[], list[str]]) -> int:
    """Prints the lines that `work` returns, or its error in one line; returns the exit status."""
    try:
        for line in work():
            print(line)
    except TrainingError as error:
        return _print_error(str(error))
    except OSError as error:
        path = f"{error.filename}: " if error.filename else ""
        return _print_error(f"{path}{error.strerror or error}")
    except KeyboardInterrupt:
        _print_error("interrupted; --resume continues after the last complete epoch")
        return _INTERRUPTED
    return 0


def _print_error(message: str) -> int:
    print(f"neurona-train: error: {message}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
