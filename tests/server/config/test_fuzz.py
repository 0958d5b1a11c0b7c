"""Fuzzing of the options of neurona-serve: flags, variables and files of all kinds.

The cases are the same in each run; the slow test tries more of them.
"""

import contextlib
import io
import random

import pytest

from neurona_server.config import sources
from neurona_server.config.options import list_options
from neurona_server.errors import ConfigError

TEXTS = [
    *("", "0", "-1", "2", "nan", "inf", "1e400", "1e300", "9" * 30, "9" * 5000, "½", "٣", "0x10"),
    *("\udcff", "ü", "a\nb", "\x1b[31m", "--", "-", " ", "=", ",", "%s", "{}", "true", "1_000"),
    *("/", ".", "/dev/null", "/nonexistent/x", "a" * 5000, "x=y", "unix:", "[::1", "127.0.0.1:1"),
]
TOML = [*TEXTS, '"x"', "[1]", "{a = 1}", "1979-05-27", '[["a"]]', '"\\u0000"', "[", '"""']


@pytest.mark.parametrize(
    ("count", "seed"), [(200, 1), pytest.param(2_000, 2, marks=pytest.mark.slow)]
)
def test_options_are_accepted_or_rejected_with_a_line(tmp_path, count, seed):
    rng = random.Random(seed)  # noqa: S311
    names = [option.name for option in list_options()]
    file = tmp_path / "neurona.toml"
    outcomes = set()
    for _ in range(count):
        arguments = ["--repository", rng.choice(["models", rng.choice(TEXTS)])]
        for _ in range(rng.randrange(3)):
            flag, value = "--" + rng.choice(names).replace("_", "-"), rng.choice(TEXTS)
            arguments += [f"{flag}={value}"] if rng.random() < 0.5 else [flag, value]
        environment = {}
        if rng.random() < 0.4:
            environment["NEURONA_" + rng.choice(names).upper()] = rng.choice(TEXTS)
        if rng.random() < 0.3:
            line = f"{rng.choice(names)} = {rng.choice(TOML)}\n"
            file.write_bytes(line.encode("utf-8", "surrogateescape"))
            arguments += ["--config", str(file)]
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            try:
                sources.load(arguments, environment)
                outcomes.add("accepted")
            except ConfigError as error:
                reason = str(error)
                assert reason, arguments
                assert reason.isprintable(), (arguments, reason)
                outcomes.add("rejected")
            except SystemExit as stop:
                outcomes.add(stop.code)
    assert outcomes == {"accepted", "rejected", 2}
