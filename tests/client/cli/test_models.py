"""neurona models and neurona describe."""

import json


def test_versions_are_listed_with_their_states(neurona):
    done = neurona("models")
    assert done.returncode == 0, done.stderr
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["MODEL", "VERSION", "STATE", "TASK", "SHARE", "LABELS", "RUNS", "ON"]
    classifier = next(line for line in lines if line.split()[:2] == ["classifier", "2"])
    expected = "classifier 2 ready classification 100% latest CPU"
    assert classifier.split() == expected.split()
    assert "\x1b" not in done.stdout


def test_a_failed_version_is_listed_with_the_reason(neurona, served):
    done = neurona("models", "--json")
    models = {one["name"]: one for one in json.loads(done.stdout)}
    assert models["classifier"]["ready"] is True
    assert models["broken"]["ready"] is False
    assert [one["state"] for one in models["broken"]["versions"]] == ["failed"]
    plain = neurona("models").stdout
    assert f"  broken 1: {models['broken']['versions'][0]['reason']}" in plain


def test_a_folder_that_is_no_version_is_listed_without_a_number(neurona, served):
    lines = neurona("models").stdout.splitlines()
    number = next(n for n, line in enumerate(lines) if line.startswith("misnamed"))
    assert lines[number].split() == ["misnamed", "failed", "tensors"]
    assert lines[number + 1].startswith(
        "  misnamed: 'v1' is not a version (expected a whole number"
    )


def test_a_model_is_described(neurona):
    done = neurona("describe", "classifier")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("classifier, version 2: classification\n")
    assert "  input      x: FLOAT [batch, 4]\n" in done.stdout
    assert "  3 labels   ant, bee, cat\n" in done.stdout
    description = json.loads(neurona("describe", "classifier", "--json").stdout)
    assert description["metadata"]["labels"] == ["ant", "bee", "cat"]


def test_an_unknown_model_or_server_is_one_line_and_exits_with_1(neurona):
    done = neurona("describe", "nothing")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("neurona: there is no model 'nothing'")
    assert done.stderr.count("\n") == 1
    done = neurona("models", "--address", "127.0.0.1:1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("neurona: no server reachable at 127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_a_token_is_not_sent_in_plaintext_to_another_machine(neurona):
    variables = {"NEURONA_TOKEN": "secret", "NEURONA_ADDRESS": "192.0.2.1:8001"}
    done = neurona("models", variables=variables)
    assert done.returncode == 2
    assert "in plaintext" in done.stderr
    assert "secret" not in done.stderr
