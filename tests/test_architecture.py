"""The house rules that a machine can check: layers, circles, names, sizes, words."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {f"neurona_{room}": ROOT / room for room in ("protos", "server", "client", "training")}
SOURCES = {
    ".".join(path.relative_to(folder).with_suffix("").parts): path
    for package, folder in PACKAGES.items()
    for path in sorted((folder / package).rglob("*.py"))
    if "_pb2" not in path.name
}
BANNED_FILE_NAMES = {
    *("utils", "util", "common", "core", "helpers", "base", "manager", "handler", "types", "misc")
}
PARTICIPLES = {
    *("told", "said", "seen", "found", "known", "gone", "begun", "meant", "sought", "heard"),
    *("foretold", "spoken", "written", "chosen"),
}
"""A name that is nothing but one of these says what was done, not what it holds."""

QUAINT = re.compile(
    r"\b(foretells?|foretold|mend(s|ed)?|misspelt|stands? twice|told at once|for people|"
    r"lately|at the most|under way|whoever|likewise|rungs?|doors?)\b",
    re.IGNORECASE,
)
"""The field has plain words for these: predict, fix, unknown, duplicate, in flight, bucket ..."""

TEXTS = [
    path
    for folder in ("client", "deploy", "protos", "server", "tests", "training")
    for path in [*(ROOT / folder).rglob("*"), *ROOT.glob("*.md"), ROOT / "pyproject.toml"]
    if path.suffix in {".py", ".md", ".proto", ".toml", ".yaml", ".yml", ".html", ".js", ".ts"}
    and not {"node_modules", "generated", "dist"} & set(path.parts)
    and "_pb2" not in path.name
    and path.name not in ("CHANGELOG.md", "test_architecture.py")  # which name the old words
]


def run_lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    code = "from importlinter.cli import lint_imports_command as c; c(['--no-cache'])"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, check=False, capture_output=True, text=True
    )


def test_imports_go_one_way() -> None:
    done = run_lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_a_broken_layer_is_detected(tmp_path: Path) -> None:
    """The contracts are worth something only if they can be broken."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package, folder in PACKAGES.items():
        shutil.copytree(folder / package, tmp_path / package)
    with (tmp_path / "neurona_server" / "batching" / "queue.py").open("a") as file:
        file.write("\nimport neurona_server.rpc.call\nimport grpc\n")
    done = run_lint_imports(tmp_path)
    assert done.returncode == 1
    assert "inside the server imports go one way BROKEN" in done.stdout
    assert "only rpc imports grpc BROKEN" in done.stdout


def test_a_module_without_a_layer_is_detected(tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for package, folder in PACKAGES.items():
        shutil.copytree(folder / package, tmp_path / package)
    (tmp_path / "neurona_server" / "drawer.py").write_text('"""In no layer."""\n')
    done = run_lint_imports(tmp_path)
    assert done.returncode == 1
    assert "neurona_server.drawer" in done.stdout


def test_no_import_circles() -> None:
    """Imports inside functions and under TYPE_CHECKING count as well."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    modules = graph.modules
    edges = {module: graph.find_modules_directly_imported_by(module) for module in modules}
    try:
        graphlib.TopologicalSorter(edges).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


@pytest.mark.parametrize("package", PACKAGES)
def test_a_class_name_is_unique_in_its_package(package: str) -> None:
    places = defaultdict(list)
    for module, path in SOURCES.items():
        if module.startswith(package + "."):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef):
                    places[node.name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("module", SOURCES)
def test_a_file_says_what_it_is(module: str) -> None:
    """One subject a file: below 60 lines it says why it is alone, above 500 why it is one."""
    path = SOURCES[module]
    text = path.read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert docstring, "no module docstring"
    if path.stem in ("__init__", "__main__"):
        return
    assert path.stem not in BANNED_FILE_NAMES
    lines = text.count("\n")
    if lines < 60:
        assert re.search(r"\balone\b", docstring), f"{lines} lines: say why the file is alone"
    if lines > 500:
        assert re.search(r"\bone file\b", docstring), f"{lines} lines: say why it is one file"


@pytest.mark.parametrize("module", SOURCES)
def test_names_say_what_they_hold(module: str) -> None:
    names = {
        name
        for node in ast.walk(ast.parse(SOURCES[module].read_text()))
        for name in (
            [node.name]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            else [node.arg]
            if isinstance(node, ast.arg)
            else [node.id]
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
            else [node.attr]
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            else []
        )
    }
    assert {name for name in names if name.strip("_").lower() in PARTICIPLES} == set()


def test_words_are_plain() -> None:
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in sorted(set(TEXTS))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if (match := QUAINT.search(line))
    ]
    assert hits == []
