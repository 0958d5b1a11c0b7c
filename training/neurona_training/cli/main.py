"""The command `neurona-train`: a recipe by name becomes OUT/NAME/1/model.onnx.

neurona-train lenet5                          the default data set, as model `lenet5`
neurona-train lenet5 --data mnist             another one, as model `lenet5-mnist`
neurona-train lenet5 --data flowers/          own data, here a folder of images for each class
neurona-train verify x.onnx --against x.pt2   any ONNX file against what it was made from
torchrun --nproc-per-node 2 -m neurona_training.cli.main lenet5     in two processes
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from neurona_training.cli import pipeline
from neurona_training.cli.arguments import PrintTable, TrainAll, parse
from neurona_training.cli.comparison import COMPARE, parse_compare, run_compare
from neurona_training.cli.pipeline import Arguments
from neurona_training.cli.seeds import train_other_seeds
from neurona_training.cli.tables import listing, results_table
from neurona_training.cli.tuning import check_one_process, tune_settings
from neurona_training.cli.verification import VERIFY, parse_verify, run_verify
from neurona_training.errors import TrainingError
from neurona_training.export.files import check_writable
from neurona_training.recipes import RECIPES

_INTERRUPTED = 130  # exit status of a process that Ctrl-C ends: 128 + SIGINT
_BROKEN_PIPE = 141  # that of one whose reader has gone: 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command.

    Returns:
        Exit status: 0; 1 if the run failed; 2 for a wrong command line; 130 after Ctrl-C; 141 if
        the reader of the output has gone.
    """
    _prepare_streams()
    return _report_errors(partial(_run, argv))


def _run(argv: Sequence[str] | None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == COMPARE:
        return _print_lines(run_compare(parse_compare(argv[1:])))
    if argv and argv[0] == VERIFY:
        lines, status = run_verify(parse_verify(argv[1:]))
        return _print_lines(lines) or status
    command = parse(argv)
    if command is None:
        return _print_lines(listing())
    if isinstance(command, PrintTable):
        return _print_lines(results_table(command.models))
    if isinstance(command, TrainAll):
        return train_all(command)
    return _train_one(command)


def _print_lines(lines: list[str]) -> int:
    for line in lines:
        print(line)
    sys.stdout.flush()
    return 0


def _prepare_streams() -> None:
    """Has characters that the encoding of the output lacks written as escapes."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # it was closed before the start
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def train_all(command: TrainAll) -> int:
    """Trains all models that do not exist yet, so that the command can be repeated after a stop."""
    failed = []
    for number, arguments in enumerate(command.models, start=1):
        title = f"{number}/{len(command.models)} {arguments.name}"
        work = partial(_train_one, arguments)
        if _is_complete(arguments):
            if arguments.seeds == 1:
                print(f"{title}: exists, skipped")
                continue
            work = partial(_train_other_seeds, arguments)
        minutes = RECIPES[arguments.recipe].minutes.get(arguments.data, 1)
        about = f"about {minutes:g} min" if minutes > 1 else "a minute at most"
        seeds = f", {arguments.seeds} seeds" if arguments.seeds > 1 else ""
        print(f"{title}: {arguments.recipe} on {arguments.data}, {about} each{seeds}", flush=True)
        status = _report_errors(work)
        if status in (_INTERRUPTED, _BROKEN_PIPE):
            return status
        if status:
            failed.append(arguments.name)
    return _print_error(f"not trained: {', '.join(failed)}") if failed else 0


def _is_complete(arguments: Arguments) -> bool:
    """Whether nothing of the model is missing, as after a kill between two of its files."""
    path = pipeline.model_path(arguments)
    if not path.exists() or pipeline.checkpoint_path(path).exists():  # which is deleted last
        return False
    return not arguments.report or pipeline.report_path(path).exists()


def _train_one(arguments: Arguments) -> int:
    recipe, path = RECIPES[arguments.recipe], pipeline.model_path(arguments)
    check_writable(path)
    if arguments.seeds > 1:
        check_one_process("--seeds")
    if arguments.trials:
        data = pipeline.load_data(recipe, arguments).training_view
        pipeline.check_baseline(arguments, data)  # before many trainings
        arguments, lines = tune_settings(recipe, arguments, data)
        _print_lines(lines)
    _print_lines(pipeline.run(recipe, arguments, path, pipeline.checkpoint_path(path)))
    return _train_other_seeds(arguments) if arguments.seeds > 1 else 0


def _train_other_seeds(arguments: Arguments) -> int:
    for line in train_other_seeds(arguments):
        print(line, flush=True)
    return 0


def _report_errors(work: Callable[[], int]) -> int:
    """Returns the exit status of `work`; prints its error in one line."""
    try:
        return work()
    except TrainingError as error:
        return _print_error(str(error))
    except BrokenPipeError:  # the reader needs no more
        _discard_output()
        return _BROKEN_PIPE
    except OSError as error:
        _discard_output()  # perhaps it is what failed, as on a full disk, and would again at exit
        path = f"{error.filename}: " if error.filename else ""
        return _print_error(f"{path}{error.strerror or error}")
    except KeyboardInterrupt:
        _print_error("interrupted; --resume continues after the last complete epoch")
        return _INTERRUPTED
    except Exception as error:
        return _print_error(_describe_failure(error))


def _describe_failure(error: Exception) -> str:
    """Returns in one line what went wrong without an error of our own."""
    text = " ".join(str(error).split())
    # torch has no class of its own for memory that the CPU lacks.
    if isinstance(error, MemoryError) or "allocate" in text or "out of memory" in text:
        return f"not enough memory (expected fewer or smaller rows, or --batch-rows): {text}"
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("neurona"):
        return (
            f"package not installed: {error.name} (expected the packages of 'neurona[training]', "
            "or of 'neurona[recipes]' and an ONNX Runtime)"
        )
    if sys.flags.dev_mode:
        traceback.print_exc()
    return f"internal error: {type(error).__name__}: {text} (PYTHONDEVMODE=1 shows where)"


def _discard_output() -> None:
    """Has standard output swallow what it holds, which its reader no longer wants or takes."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_error(message: str) -> int:
    line = "".join(one if one.isprintable() else " " for one in message)
    print(f"neurona-train: error: {line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
