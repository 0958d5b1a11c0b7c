"""What training reads in a table, the client reads in the same file: the values are equal."""

from contextlib import suppress

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from neurona_client.cli.table_files import read_table_samples
from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.files.content import FileContentError
from neurona_protos.prediction_pb2 import DescribeModelResponse
from neurona_training.data.user.load import load_user_data
from neurona_training.data.user.spec import UserData
from neurona_training.errors import DataError

ROWS = 12
INTEGERS, DECIMALS = st.integers(-9_999_999, 9_999_999), st.integers(-99_999_999, 99_999_999)
GERMAN = str.maketrans(",.", ".,")
STYLES = (  # in which the numbers of one column are written
    INTEGERS.map(str),
    INTEGERS.map("{:,}".format),
    INTEGERS.map(lambda number: f"{number:,}".translate(GERMAN)),
    INTEGERS.map(lambda number: f"{number:,}".replace(",", " ")),
    INTEGERS.map(lambda number: f"{number} %"),
    DECIMALS.map(lambda number: f"{number / 1000}"),
    DECIMALS.map(lambda number: f"{number / 1000:.3f}".translate(GERMAN)),
    DECIMALS.map(lambda number: f" {number / 100:,.2f}"),
    DECIMALS.map(lambda number: f"{number / 100:,.2f}".translate(GERMAN)),
    st.sampled_from(["1,234", "5"]),
    st.sampled_from(["1.234", "5", "1,234"]),
    st.sampled_from(["7", "7,5", "7.5", "", "NA", "x"]),
    st.sampled_from(["7", "8.5", "", "NA"]),
    st.dates().map(str),
    st.dates().map("{:%d.%m.%Y}".format),
    st.dates().map("{:%d/%m/%Y}".format),
    st.sampled_from(["03/04/2024", "13/04/2024 10:30", "?", "4 Mar 2024"]),
)
LABELS = ["a", "b"] * (ROWS // 2)
TEXTS = st.sampled_from(["Bonn", " Bonn ", "Bad Ems", "a,b", "a;b", "12", "Ko\u0308ln", ""])


def column(cells):
    return st.lists(cells, min_size=ROWS, max_size=ROWS)


NUMBERS = st.sampled_from(STYLES).flatmap(column)


def write_table(columns, separator, encoding):
    def quoted(cell):
        return '"' + cell.replace('"', '""') + '"'

    lines = [["id", "p", "q", "city", "y"]]
    for index, cells in enumerate(zip(*columns, strict=True)):
        lines.append([str(index), *cells])
    return "\n".join(separator.join(map(quoted, line)) for line in lines).encode(encoding)


def read_as_training(path):
    """Return the inputs of the rows in the order of the file, their numbers and descriptions.

    Rows without a target are left out.
    """
    data = load_user_data(UserData(path, target="y", kept=("id",))).caller_view
    parts = (data.train, data.validation, data.test)
    arrays = [np.concatenate(one) for one in zip(*(part.arrays for part in parts), strict=True)]
    rows = arrays[0][:, data.input.columns.index("id")].astype(int)
    order = np.argsort(rows)
    values = {}
    for described, array in zip(data.inputs, arrays, strict=True):
        names = np.array([*described.categories, "?"], object)
        values[described.name] = names[array[order]] if described.categories else array[order]
    return values, rows[order], data.inputs


def read_as_client(content, described):
    specs = tuple(
        TensorSpec(
            one.name,
            "STRING" if one.categories else "FLOAT",
            (-1,) if one.categories else (-1, len(one.columns)),
            columns=one.columns,
            decimal_mark=one.decimal_mark,
            allow_nan=one.allow_nan,
            date_columns=one.date_columns,
            date_order=one.date_order,
        )
        for one in described
    )
    model = ModelDescription(
        *("m", 1, "tensors", "", specs, (), (), (), True, {}, {"target": "y"}),
        DescribeModelResponse(),
    )
    ((_, inputs),) = read_table_samples(content, "f", model)
    return inputs


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.tuples(NUMBERS, NUMBERS, column(TEXTS), NUMBERS | st.just(LABELS)),
    st.sampled_from(",;\t"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
@example((["1,5"] * ROWS, ["1.234"] * ROWS, ["Bonn"] * ROWS, LABELS), ";", "utf-8")
@example((["0,5"] * ROWS, ["1 000"] * ROWS, [" Bonn "] * ROWS, LABELS), ",", "utf-16")
@example(
    (["1,234"] * ROWS, ["5"] * ROWS, ["Bonn"] * ROWS, ["1,5", "2"] * (ROWS // 2)), ",", "utf-8"
)
@example(
    (["1,234"] * ROWS, ["5"] * ROWS, ["Bonn"] * ROWS, ["1.5", "2"] * (ROWS // 2)), "\t", "utf-8"
)
def test_training_and_client_read_the_same_values(tmp_path, columns, separator, encoding):
    content = write_table(columns, separator, encoding)
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    try:
        values, rows, described = read_as_training(path)
    except DataError:
        return  # refused alike, or not a table to learn from
    inputs = read_as_client(content, described)
    assert inputs.keys() == values.keys()
    for name, array in values.items():
        received = np.asarray(inputs[name])[rows]
        if array.dtype.kind == "f":
            received = received.astype(np.float32)
        is_unknown = array == "?"  # a text that the training rows do not have
        np.testing.assert_array_equal(received[~is_unknown], array[~is_unknown])


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | st.text('0123456789.,;\t\n\r"% -aé\ufeff', max_size=60))
def test_no_content_of_a_table_raises_another_error(content):
    content = content if isinstance(content, bytes) else content.encode()
    for specs in (
        (TensorSpec("x", "FLOAT", (-1, 2)),),
        (TensorSpec("x", "FLOAT", (-1, 2), columns=("a", "1")),),
        (TensorSpec("x", "INT64", (-1, -1)), TensorSpec("t", "STRING", (-1, 1))),
        (TensorSpec("t", "STRING", (-1, -1), unit="character"),),
        (TensorSpec("s", "FLOAT", (-1, -1, 1), ("", "time", ""), columns=("a",)),),
    ):
        model = ModelDescription(
            *("m", 1, "tensors", "", specs, (), (), (), True, {}, {}, DescribeModelResponse())
        )
        with suppress(InvalidInputError, FileContentError):
            list(read_table_samples(content, "f", model))
