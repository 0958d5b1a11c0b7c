"""Writes the reference tables of this folder from the code: options, metrics, errors.

    python server/docs/generate.py [FOLDER]

`make docs` calls it; tests/test_reference.py fails when a table is not what the code says.
"""

import inspect
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from neurona_server import errors
from neurona_server.config.options import POSITIONAL, list_options
from neurona_server.config.sources import PREFIX
from neurona_server.processes.multiprocess_collector import MultiprocessCollector
from neurona_server.telemetry.metrics import OUTCOMES, Metrics

HEAD = "<!-- Written from the code by server/docs/generate.py: run `make docs`. -->\n\n"

Row = Sequence[str]


def options() -> str:
    """One row for each option: its name, default, meaning, and its other two spellings."""
    rows = [
        (
            _code([option.name]),
            _default(option.default),
            option.help.replace("<", "\\<"),
            _code(["FILE" if option.name == POSITIONAL else "--" + option.name.replace("_", "-")]),
            _code([PREFIX + option.name.upper()]),
        )
        for option in list_options()
    ]
    return f"""# Options of neurona-serve

A flag takes precedence over the environment, the environment over `neurona.toml` (or the file
that `--config` or `NEURONA_CONFIG` names), the file over the default. An unknown option is an
error; in the environment it is one only when it resembles an option, else a warning.

{_table(("Option", "Default", "Meaning", "Flag", "Environment"), rows)}"""


def metrics() -> str:
    """One row for each Prometheus series of Neurona's own."""
    rows = [
        (
            f"`{name}{'_total' if kind == 'counter' else ''}`",
            kind,
            _code(labels) or "none",
            text,
        )
        for name, kind, labels, text in sorted(set(_families()))
        if name.startswith("neurona_")
    ]
    return f"""# Metrics of neurona-serve

On `/metrics` of the metrics port, in Prometheus' text format or in OpenMetrics, together with
the usual `process_*` and `python_gc_*` series. `model` and `version` are those that are served: a
request for an unknown model counts under empty ones. `outcome` of a request is one of
{_code(OUTCOMES)}.

{_table(("Metric", "Type", "Labels", "Meaning"), rows)}"""


def error_codes() -> str:
    """One row for each error that a caller may get, by gRPC status."""
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    rows = [
        (_code([names[kind.code]]), _first_paragraph(kind), _code([kind.outcome]), kind.__name__)
        for kind in _errors()
    ]
    return f"""# Errors of neurona-serve

Every error is a gRPC status with a message that says what came and what was expected. The same
statuses stand in the responses of streams. An unforeseen error is `INTERNAL`, with a text that
tells nothing of the server's inside; its log has the traceback. A failed call carries
`x-request-id` in its trailing metadata, and one that was `rejected` for want of room or time also
`retry-after-ms`: see [latency objectives](objectives.md#what-refused-callers-do).

{_table(("Status", "When", "Outcome in metrics", "Class in `errors.py`"), sorted(rows))}"""


def _families() -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Name, type, labels and help of each metric."""
    registry = CollectorRegistry(auto_describe=True)
    server = Metrics(registry)
    server.watch_versions(list)
    server.watch_stalls(list)
    server.watch_process()
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            yield collector._name, collector._type, collector._labelnames, collector._documentation
        else:
            describe = getattr(collector, "describe", collector.collect)
            for family in describe():
                labels = tuple(getattr(family, "_labelnames", ()))
                yield family.name, family.type, labels, family.documentation
    for family in MultiprocessCollector(1).collect():
        yield (
            family.name,
            family.type,
            tuple(getattr(family, "_labelnames", ())),
            family.documentation,
        )


def _errors() -> Iterator[type[errors.NeuronaError]]:
    for kind in vars(errors).values():
        if not inspect.isclass(kind) or not issubclass(kind, errors.NeuronaError):
            continue
        if kind is not errors.NeuronaError:
            yield kind


def _default(value: object) -> str:
    if value in ((), ""):
        return "none"
    return _code([str(value).lower() if isinstance(value, bool) else str(value)])


def _first_paragraph(kind: type) -> str:
    return " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def main(folder: Path) -> None:
    """Write the three tables into a folder."""
    tables = {"options.md": options, "metrics.md": metrics, "errors.md": error_codes}
    for name, table in tables.items():
        (folder / name).write_text(HEAD + table(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
