"""The names of the package, and what importing it costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import neurona_client


def test_importing_the_package_imports_no_library():
    code = (
        "import sys, neurona_client, neurona_client.errors, neurona_client.options\n"
        "print([name for name in ('grpc', 'numpy', 'google.protobuf') if name in sys.modules])\n"
        "neurona_client.Client\n"
        "print([name for name in ('asyncio', 'PIL', 'opentelemetry') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == "[]"
    assert "PIL" not in done.stdout
    assert "opentelemetry" not in done.stdout


def test_every_public_name_exists():
    for name in neurona_client.__all__:
        assert getattr(neurona_client, name) is not None
    assert set(neurona_client.__all__) <= set(dir(neurona_client))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        neurona_client.nothing  # noqa: B018


def test_type_checkers_see_the_names_that_python_finds():
    tree = ast.parse(Path(neurona_client.__file__).read_text())
    (block,) = [one for one in tree.body if isinstance(one, ast.If)]
    static = {
        alias.asname: line.module
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert static == neurona_client._MODULE_BY_NAME
