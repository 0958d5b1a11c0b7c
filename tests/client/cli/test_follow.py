"""neurona predict --follow, as a process."""

import json
import subprocess

import pytest
from support.cli import NEURONA, environment
from support.session_server import SessionServer


@pytest.fixture(scope="module")
def sum_server():
    with SessionServer() as server:
        yield server


@pytest.fixture
def follow(sum_server):
    """Runs the command to the end of its input."""

    def follow(text, *arguments):
        content = text if isinstance(text, bytes) else text.encode()
        return subprocess.run(
            [NEURONA, "predict", "sum", "--follow", *arguments],
            env=environment(NEURONA_ADDRESS=sum_server.address),
            input=content,
            check=False,
            capture_output=True,
            timeout=60,
        )

    return follow


def test_each_line_has_its_answer_before_the_next_one_comes(sum_server):
    with subprocess.Popen(
        [NEURONA, "predict", "sum", "--follow", "--json"],
        env=environment(NEURONA_ADDRESS=sum_server.address),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        for line, total in ((b"1\n", 1), (b"2\n", 3), (b"[4]\n", 7)):
            process.stdin.write(line)
            process.stdin.flush()
            row = json.loads(process.stdout.readline())
            assert row["values"][0]["value"] == total
        process.stdin.close()
        assert process.wait(30) == 0


def test_lines_are_rows_of_a_table_or_json(follow):
    text = 'value\n1\n\n[[2], [3]]\n"4"\n[[5], [6]]\n{"x": [7]}\n[[[8.5]]]\n'
    done = follow(text)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = [line.split() for line in done.stdout.decode().splitlines()]
    assert lines[0] == ["FILE", "NAME", "VALUE", "UNIT"]
    assert [line[0] for line in lines[1:]] == ["-:2", "-:4", "-:5", "-:6", "-:7", "-:8"]
    assert [line[2] for line in lines[1:]] == ["1", "6", "10", "21", "28", "36.5"]


def test_a_line_that_is_refused_is_reported_and_is_not_in_the_sequence(follow):
    done = follow("1\nx,y\n[1, 2, 3]\nnan\n[\n2\n")
    assert done.returncode == 1
    assert [line.split()[2] for line in done.stdout.decode().splitlines()[1:]] == ["1", "3"]
    reasons = done.stderr.decode().splitlines()
    assert [reason.split(": ")[1] for reason in reasons] == ["-:2", "-:3", "-:4", "-:5"]
    assert "not a number" in reasons[0]
    assert "shape [1, 3]" in reasons[1]
    assert "NaN" in reasons[2]
    assert "not JSON" in reasons[3]


def test_another_failure_ends_the_command(follow, sum_server):
    done = follow("1\n", "--label", "nobody", "--json")
    assert done.returncode == 0  # the server of this test knows no labels
    done = subprocess.run(
        [NEURONA, "predict", "nobody", "--follow", "--address", sum_server.address],
        input=b"1\n2\n",
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().count("\n") == 1
    assert "not found" in done.stderr.decode()


def test_a_model_without_a_state_cannot_be_followed(neurona):
    done = neurona("predict", "classifier", "--follow", input="1\n")
    assert done.returncode == 1
    assert (
        done.stderr == "neurona: model 'classifier' has no sessions: it has no recurrent layers\n"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"), [(["a.csv"], "standard input alone"), (["-", "a.csv"], "alone")]
)
def test_a_file_cannot_be_followed(follow, arguments, reason):
    done = follow("", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr.decode()


def test_describe_says_which_models_have_sessions(sum_server):
    done = subprocess.run(
        [NEURONA, "describe", "sum", "--address", sum_server.address],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = [line.split(maxsplit=1) for line in done.stdout.splitlines()]
    assert ["sequences", "of equal length share a run"] in lines
    assert ["sessions", "state of 8 bytes a row, 0 open"] in lines
