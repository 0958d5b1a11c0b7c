"""Client and AsyncClient against a real server: results, descriptions, errors."""

import asyncio

import numpy as np
import pytest

import neurona_client
from neurona_client import AsyncClient, Client

ROW = np.array([1, 2, 3, 4], np.float32)
ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(params=[True, False], ids=["coalescing", "unary"])
def client(server, request):
    with Client(f"127.0.0.1:{server.port}", coalesce=request.param, timeout=20) as client:
        yield client


def test_one_sample_gives_one_result(client):
    prediction = client.predict("classifier", ROW, top_k=2)
    assert prediction.label == "cat"
    assert prediction.probability == pytest.approx(prediction.top[0].probability)
    assert [best.label for best in prediction.top] == ["cat", "bee"]
    assert prediction.top[1].index == 1
    assert (prediction.model, prediction.version, len(prediction)) == ("classifier", 2, 1)
    assert client.predict("classifier", ROW[np.newaxis]).label == "cat"


def test_a_batch_gives_a_sequence_of_results(client):
    prediction = client.predict("classifier", ROWS, raw_outputs=True)
    assert len(prediction) == 3
    assert [row.label for row in prediction] == ["cat"] * 3
    assert prediction.outputs["probabilities"].shape == (3, 3)
    assert prediction[-1].outputs["probabilities"].shape == (3,)
    assert prediction[2] == prediction[-1]
    with pytest.raises(ValueError, match="3 rows: take one of them"):
        prediction.label  # noqa: B018
    with pytest.raises(IndexError):
        prediction[3]


def test_lists_are_converted_to_the_dtype_of_the_input(client):
    assert client.predict("classifier", [1, 2, 3, 4]) == client.predict("classifier", ROW)
    assert client.predict("picker", [1]).outputs["picked"].tolist() == [10.0]
    assert client.predict("picker", 2).outputs["picked"] == 20.0


def test_a_regression_has_values_and_units(client):
    prediction = client.regress("regressor", [1.0, 2.0, 3.5])
    assert (prediction.value, prediction.unit) == (6.5, "kg")
    assert prediction.values == (6.5,)
    with pytest.raises(AttributeError):
        prediction.label  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(neurona_client.WrongTaskError):
        client.predict("regressor", [1.0]).label  # noqa: B018


def test_a_version_is_selected_by_number_or_label(client):
    assert client.predict("classifier", ROW, version=1).version == 1
    assert client.predict("classifier", ROW, label="latest").version == 2
    with pytest.raises(neurona_client.InvalidInputError, match="both set"):
        client.predict("classifier", ROW, version=1, label="latest")


INVALID_CALLS = {
    "model": (("nobody", ROW), "NotFoundError", "there is no model 'nobody'; served: "),
    "size": (("classifier", ROW[:3]), "InvalidInputError", r"shape [3] (expected [-1, 4], or [4]"),
    "rank": (("classifier", 1.0), "InvalidInputError", "shape [] (expected [-1, 4], or [4] for"),
    "name": (
        ("classifier", {"y": ROW}),
        "InvalidInputError",
        "unknown input 'y', missing input 'x'",
    ),
    "text": (("classifier", ["a"] * 4), "InvalidInputError", "dtype <U1 (expected numbers, FLOAT)"),
    "lost": (("picker", [1.5]), "InvalidInputError", "values that INT64 cannot hold: 1.5"),
    "ragged": (("classifier", [[1], [1, 2]]), "InvalidInputError", "differ in length"),
    "failing": (("picker", [9]), "ServerError", "the model failed on this request"),
}


@pytest.mark.parametrize("name", INVALID_CALLS)
def test_the_error_says_what_is_wrong(client, name):
    arguments, kind, text = INVALID_CALLS[name]
    with pytest.raises(getattr(neurona_client, kind)) as caught:
        client.predict(*arguments)
    assert text in str(caught.value)


def test_the_wrong_task_raises(client):
    with pytest.raises(neurona_client.WrongTaskError, match="its task is regression"):
        client.classify("regressor", [1.0])
    with pytest.raises(neurona_client.WrongTaskError, match="its task is classification"):
        client.regress("classifier", ROW)


def test_models_are_listed_and_described(client):
    models = {model.name: model for model in client.models()}
    assert models["classifier"].task == "classification"
    assert [one.state for one in models["classifier"].versions] == ["ready", "ready"]
    assert models["picker"].ready
    description = client.describe("regressor")
    assert description.inputs[0].name == "series"
    assert description.inputs[0].shape == (-1, -1)
    assert description.values[0].unit == "kg"
    assert client.describe("classifier", version=1).labels == ("ant", "bee", "cat")


def test_coroutines_get_the_same_results(server):
    async def main():
        async with AsyncClient(f"127.0.0.1:{server.port}", timeout=20) as client:
            results = await asyncio.gather(*(client.predict("classifier", row) for row in ROWS))
            assert (await client.describe("regressor")).task == "regression"
            assert len(await client.models()) == 5
            with pytest.raises(neurona_client.NotFoundError):
                await client.predict("nobody", ROW)
            return results

    results = asyncio.run(main())
    with Client(f"127.0.0.1:{server.port}", coalesce=False) as client:
        assert results == [client.predict("classifier", row) for row in ROWS]


def test_a_closed_client_raises(server):
    client = Client(f"127.0.0.1:{server.port}")
    client.close()
    client.close()
    with pytest.raises(neurona_client.ClosedError, match="client closed"):
        client.predict("classifier", ROW)


def test_a_client_belongs_to_one_event_loop(server):
    client = AsyncClient(f"127.0.0.1:{server.port}", timeout=20)
    asyncio.run(client.predict("classifier", ROW))
    with pytest.raises(neurona_client.ClosedError, match="another event loop"):
        asyncio.run(client.predict("classifier", ROW))
    asyncio.run(client.close())


def test_an_unreachable_server_raises_with_the_reason():
    retries = neurona_client.Retries(unreachable_timeout=0.2)
    with (
        Client("127.0.0.1:1", retries=retries) as client,
        pytest.raises(neurona_client.UnavailableError, match=r"127.0.0.1:1 within 0.2 s.*refused"),
    ):
        client.predict("classifier", ROW)


def test_a_request_id_that_is_not_printable_ascii_is_rejected(client):
    for request_id in ("two\nlines", "ü"):
        with pytest.raises(neurona_client.InvalidInputError, match="request_id"):
            client.predict("classifier", ROW, request_id=request_id)
