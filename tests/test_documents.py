"""What the documents say is what works: links, options, metrics, commands, configuration."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from neurona_protos import model_config_pb2, open_inference_pb2, prediction_pb2
from neurona_server.config import sources
from neurona_server.config.options import Config
from neurona_server.models.onnx import provider_options
from neurona_server.models.repository import model_toml
from neurona_server.simulation.scenario import Load as SimulatedLoad
from neurona_server.simulation.scenario import ModelScenario, Scenario
from neurona_server.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    path
    for path in sorted(ROOT.rglob("*.md"))
    if not {"node_modules", "bench"} & set(path.parts)
    and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]
SERVER = [path for path in DOCUMENTS if path.is_relative_to(ROOT / "server")]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GENERATED = {"options.md", "metrics.md", "errors.md"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```$", "", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """As GitHub makes them from headings."""
    titles = re.findall(r"(?m)^#+ (.+)$", prose(path))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists(), f"{target} does not exist"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{target}: no such heading"


def test_the_readme_is_short() -> None:
    assert README.count("\n") <= 150


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_make_targets_exist(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`|(?m:^ {4}(.+)$)", prose(path))
    for span in spans:
        for target in re.findall(r"(?:^|\s)make ([a-z][a-z-]*)", "".join(span)):
            assert re.search(rf"(?m)^{target}:", makefile), f"make {target}"


@pytest.mark.parametrize("path", SERVER, ids=name_of)
def test_options_and_metrics_of_the_servers_manual_exist(path: Path) -> None:
    if path.name in GENERATED:
        return
    options = set(Config.__struct_fields__)
    metrics = Metrics(CollectorRegistry())
    metrics.watch_versions(list)
    metrics.watch_stalls(list)
    metrics.watch_process()
    series = {family.name for family in metrics.registry.collect()}
    series |= {"neurona_processes", "neurona_process_restarts"}
    gpu = ("utilization_ratio", "memory_used_bytes", "memory_total_bytes", "power_watts")
    series |= {f"neurona_gpu_{name}" for name in gpu}
    others = {"round_robin", "compute_input", "compute_output", "model_version", "same_class"}
    others |= {"labels_file", "version_labels", "metadata_props", "allow_nan", "allow_unknown"}
    others |= {"system_shared_memory", "cuda_shared_memory"}  # extensions of the protocol
    others |= {"sequence_id", "sequence_start", "sequence_end"}  # parameters of its requests
    others |= {"binary_data_size", "binary_data", "binary_data_output"}  # the same, over HTTP
    others |= {*provider_options._CUDA, *provider_options._TENSORRT}  # keys of providers
    for struct in (Scenario, ModelScenario, SimulatedLoad):  # keys of neurona-simulate's files
        others |= {*struct.__struct_fields__}
    for file in (model_config_pb2, open_inference_pb2, prediction_pb2):
        for message in file.DESCRIPTOR.message_types_by_name.values():
            others |= {field.name for field in message.fields}
    for span in re.findall(r"`([a-z]+(?:_[a-z]+)+)(?: = [^`]*)?`", prose(path)):
        if span.startswith("neurona_") and not (ROOT / "server" / span).exists():
            name = re.sub("_(total|count|sum|bucket)$", "", span)
            assert name in series or (ROOT / span.removeprefix("neurona_") / span).exists(), span
        elif span not in others and not span.startswith(("nv_", "process_")):  # metrics, too
            assert span in options or (ROOT / span).exists(), span


@pytest.mark.parametrize("path", [ROOT / "README.md", *SERVER], ids=name_of)
def test_server_commands_parse(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").mkdir()  # which is served without a name
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"(?m)^ {4}(neurona-serve\b.*)$", prose(path)):
        sources.load(shlex.split(line, comments=True)[1:], {})


def test_the_example_of_model_toml_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "server" / "docs" / "repository.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```toml\n(.*?)^```$", text)
    path = tmp_path / "model.toml"
    path.write_text(block, encoding="utf-8")
    settings = model_toml.read_model_toml(tmp_path)
    assert settings.labels == ("cat", "dog")


def test_the_example_of_tokens_is_toml() -> None:
    text = (ROOT / "server" / "docs" / "security.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```toml\n(.*?)^```$", text)
    (token,) = tomllib.loads(block)["tokens"]
    assert set(token) == {"name", "sha256", "rights", "models"}
