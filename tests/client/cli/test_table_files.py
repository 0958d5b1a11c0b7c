"""Tables as inputs: columns by name, in the order of the model, or as one sequence."""

import numpy as np
import pytest

from neurona_client.cli.table_files import StepReader, read_table_samples, read_text_samples
from neurona_client.descriptions import ModelDescription, TensorSpec
from neurona_client.errors import InvalidInputError
from neurona_client.files.content import FileContentError
from neurona_protos.prediction_pb2 import DescribeModelResponse

FEATURES = TensorSpec("features", "FLOAT", (-1, 2), ("batch", ""), columns=("age", "income"))
CITY = TensorSpec("city", "STRING", (-1,), ("batch",), columns=("city",))
SERIES = TensorSpec("series", "FLOAT", (-1, -1, 1), ("batch", "time", ""), columns=("close",))
STEPS = TensorSpec("sequence", "FLOAT", (-1, -1, 2), ("batch", "time", ""), columns=("x", "y"))
LENGTHS = TensorSpec("sequence_lens", "INT32", (-1,), ("batch",))
CHARACTERS = TensorSpec("characters", "STRING", (-1, -1), ("batch", "time"), unit="character")


def describe(*specs, batched=True, target=""):
    provenance = {"target": target} if target else {}
    return ModelDescription(
        *("m", 1, "tensors", "", specs, (), (), (), batched, {}, provenance),
        DescribeModelResponse(),
    )


def read(text, *specs, batched=True, reader=read_table_samples):
    content = text if isinstance(text, bytes) else text.encode()
    return [
        (names, {name: np.asarray(array).tolist() for name, array in inputs.items()})
        for names, inputs in reader(content, "f", describe(*specs, batched=batched))
    ]


def refusal(text, *specs, reader=read_table_samples):
    with pytest.raises((InvalidInputError, FileContentError)) as caught:
        read(text, *specs, reader=reader)
    return str(caught.value)


ROWS = [[33.0, 40000.0], [44.0, 50000.5]]


@pytest.mark.parametrize(
    "text",
    [
        "age,income\n33,40000\n44,50000.5\n",
        "income,age\n40000,33\n50000.5,44\n",
        "id,income,bought,age\n1,40000,yes,33\n2,50000.5,,44\n",
        ",age,income\n0,33,40000\n1,44,50000.5\n",
        " income ;age;\n40.000,0;33;\n50000,5; 44;\n",
        "sep=\t\nage\tincome\n33\t40 000\n44\t50 000,5\n",
        "33,40000\n44,50000.5\n",
        '"33";"40000"\n"44";"50000,5"\n',
        "\ufeffincome,age\n40000,33\n50000.5,44\n",
        "income,age\n40000,33\n50000.5,44\n".encode("utf-16"),
    ],
)
def test_columns_are_found_by_name_or_taken_in_order(text):
    ((names, inputs),) = read(text, FEATURES)
    assert inputs == {"features": ROWS}
    assert names in (["f:1", "f:2"], ["f:2", "f:3"], ["f:3", "f:4"])


def test_text_and_numbers_of_one_table():
    text = "city,income,age\nBonn ,40000,33\n Bad Ems,50000.5,44\n"
    ((names, inputs),) = read(text, FEATURES, CITY)
    assert inputs == {"features": ROWS, "city": ["Bonn", "Bad Ems"]}
    assert names == ["f:2", "f:3"]
    assert len(read(text, FEATURES, CITY, batched=False)) == 2


@pytest.mark.parametrize(
    ("text", "specs", "message"),
    [
        (
            "height,weight\n180,70\n",
            [FEATURES],
            "columns do not match: first line has height, weight (expected age, income)",
        ),
        (
            "age,weight\n18,70\n",
            [FEATURES],
            "columns do not match: first line has age, weight (expected age, income; "
            "missing: income)",
        ),
        (
            "33,40000,Bonn\n",
            [FEATURES, CITY],
            "columns do not match: first line has 33, 40000, Bonn (expected age, income, city)",
        ),
        ("1,2,3\n", [FEATURES], "line 1: 3 cells (expected 2: age, income)"),
        ("age,age,income\n1,2,3\n", [FEATURES], "line 1: 2 columns 'age' (expected 1)"),
        ("age,income\n1,2\n3\n", [FEATURES], "line 3: 1 cells (expected 2)"),
        ("age,income\n1,x\n", [FEATURES], "line 2, column 'income': 'x' is not a number"),
        ("age,income\n1,-inf\n", [FEATURES], "line 2, column 'income': '-inf' is not finite"),
        ("age,income\n1,NA\n", [FEATURES], "line 2, column 'income': missing value ('NA')"),
        (
            "age,income,city\n1,2,\n",
            [FEATURES, CITY],
            "line 2, column 'city': missing value ('')",
        ),
        ("age;income\n1,5;2.5\n2.5;3\n", [FEATURES], "line 3, column 'age': decimal points and"),
        ('age,income\n3,"1,234"\n', [FEATURES], "line 2, column 'income': '1,234' may be 1234"),
        (b"age,income\n1,M\n" + b"\x81", [FEATURES], "line 3: byte 0x81 is not UTF-8"),
        ("age,income\n", [FEATURES], "no rows"),
        ("", [FEATURES], "no rows (expected age, income)"),
        ("time,open\n1,2\n", [SERIES], "columns do not match: first line has time, open"),
    ],
)
def test_a_table_that_does_not_suit_says_where_and_why(text, specs, message):
    assert refusal(text, *specs).startswith(message)


def test_names_that_are_numbers_or_have_accents():
    years = TensorSpec("x", "FLOAT", (-1, 2), ("batch", ""), columns=("2019", "größe"))
    text = "gro\u0308ße,2019\n1,2\n"  # o and two dots
    assert read(text, years)[0][1] == {"x": [[2.0, 1.0]]}
    only_years = TensorSpec("x", "FLOAT", (-1, 2), ("batch", ""), columns=("2019", "2020"))
    assert read("2020,2019\n1,2\n", only_years)[0][1] == {"x": [[2.0, 1.0]]}
    assert read("2020,2019,y\n1,2,a\n", only_years)[0][1] == {"x": [[2.0, 1.0]]}
    counted = TensorSpec("x", "FLOAT", (-1, 2), ("batch", ""), columns=("1", "2"))
    assert read("2,1\n3,4\n", counted)[0][1] == {"x": [[4.0, 3.0]]}
    assert read("3,4\n1,2\n", counted)[0][1] == {"x": [[3.0, 4.0], [1.0, 2.0]]}
    channels = TensorSpec(
        "x", "FLOAT", (-1, -1, 2), ("batch", "time", "channel"), columns=("1", "2")
    )
    assert read("2,1\n3,4\n", channels)[0][1] == {"x": [[[2.0, 1.0]], [[3.0, 4.0]]]}


def test_the_file_of_training_says_what_an_undecided_comma_is():
    def spec(mark):
        return TensorSpec(
            "x", "FLOAT", (-1, 2), ("batch", ""), columns=("a", "b"), decimal_mark=mark
        )

    assert read("a;b\n1.234;1,234\n", spec(","))[0][1]["x"] == [[1234.0, 1.234]]
    assert "may be 1234" in refusal("a,b\n1.234,5\n", spec(","))
    assert read('a,b\n1.234,"1,234"\n', spec("."))[0][1]["x"] == [[1.234, 1234.0]]
    assert "may be 1234" in refusal("a;b\n1,234;5\n", spec("."))
    assert read("a,b\n1.234,5\n", spec(""))[0][1]["x"] == [[1.234, 5.0]]


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a,b,y\n"1,234",5,"2,5"\n', [[1.234, 5.0]]),
        ("a;b;y\n1,234;5;2.5\n", [[1234.0, 5.0]]),
        ("y\ta\tb\n2.5\t1,234\t5\nx\t1\t5\n0.5\t1\t5\n", [[1234.0, 5.0], [1, 5], [1, 5]]),
        ("a;b;y\n1,234;5;x\n1;1;2.5\n", None),  # text in half of its cells
        ("a;b;y\n1,234;5;2,5\n1;1;2.5\n", None),
    ],
)
def test_the_target_says_what_an_undecided_comma_is_as_in_training(text, rows):
    spec = TensorSpec("x", "FLOAT", (-1, 2), ("batch", ""), columns=("a", "b"))
    samples = read_table_samples(text.encode(), "f", describe(spec, target="y"))
    if rows is None:
        with pytest.raises(InvalidInputError, match="may be 1234"):
            next(samples)
    else:
        assert next(samples)[1]["x"].tolist() == rows


def test_a_table_with_names_is_one_sequence_and_rows_without_are_several():
    text = "date;close\n1.1.;1,5\n2.1.;2\n3.1.;3,5\n"
    assert read(text, SERIES) == [(["f:4"], {"series": [[[1.5], [2.0], [3.5]]]})]
    window = TensorSpec(
        *("series", "FLOAT", (-1, -1, 1), ("batch", "time", "")), columns=("close",), window=2
    )
    assert read(text, window) == [(["f:4"], {"series": [[[2.0], [3.5]]]})]
    assert read("1,2,3\n4,5,6\n", SERIES) == [
        (["f:1", "f:2"], {"series": [[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]]})
    ]
    sequence = {"sequence": [[[2.0, 1.0], [4.0, 3.0]]], "sequence_lens": [2]}
    assert read("y,x\n1,2\n3,4\n", STEPS, LENGTHS) == [(["f:3"], sequence)]
    flat = read("1,2,3,4\n5,6\n", STEPS, LENGTHS)
    assert [inputs["sequence_lens"] for _, inputs in flat] == [[2], [1]]


def test_texts_are_taken_as_their_characters():
    expected = [
        (["f:1"], {"characters": [list("Abel")], "sequence_lens": [4]}),
        (["f:2"], {"characters": [list("Van den Berg")], "sequence_lens": [12]}),
    ]
    assert read("Abel\nVan  den Berg\n", CHARACTERS, LENGTHS, reader=read_text_samples) == expected
    assert read("Abel\n Van den Berg\n", CHARACTERS, LENGTHS) == expected
    assert read("D,e, ,J\n", CHARACTERS, LENGTHS)[0][1]["characters"] == [["D", "e", " ", "J"]]
    assert "expected one text" in refusal("Abel,Anna\n", CHARACTERS, LENGTHS)
    assert "expected one input of text" in refusal("1 2\n", FEATURES, reader=read_text_samples)


def test_models_that_were_not_trained_on_a_table():
    number = TensorSpec("x", "FLOAT", (-1, 2), ("batch", ""))
    text = TensorSpec("t", "STRING", (-1, 1), ("batch", ""))
    count = TensorSpec("n", "INT64", (-1, 1), ("batch", ""))
    flag = TensorSpec("b", "BOOL", (-1, 1), ("batch", ""))
    assert read("p,q\n1,nan\n", number)[0][1]["x"][0][0] == 1.0
    assert read("1,5;2,5\n", number)[0][1]["x"] == [[1.5, 2.5]]
    assert read(" a; b \n", text)[0][1]["t"] == [[" a; b "]]
    rows = read("more,n,b,t\n1,9007199254740993,true,x y \n", text, count, flag)
    assert rows == [(["f:2"], {"t": [["x y "]], "n": [[9007199254740993]], "b": [[True]]})]
    assert read("x,t,x\n1,a,2\n", number, text)[0][1] == {"x": [[1.0, 2.0]], "t": [["a"]]}
    assert "'1.5' is not an integer" in refusal("1.5\n", count)
    assert "line 1: 5000 digits are too many for INT64" in refusal("9" * 5000 + "\n", count)
    assert "1 columns 'x' (expected 2)" in refusal("x,t\n1,a\n", number, text)


def test_a_nameless_column_of_dates_has_the_name_that_it_had_in_training():
    spec = TensorSpec(
        "features",
        "FLOAT",
        (-1, 2),
        ("batch", ""),
        columns=("Unnamed: 0", "age"),
        date_columns=("Unnamed: 0",),
    )
    (_, inputs), *_ = read(",age\n1970-01-02,33\n1970-01-03,44\n", spec)
    assert inputs["features"] == [[1, 33], [2, 44]]


def follow(text, *specs):
    """What is read of each line: the steps, "" for none, or the reason why there are none."""
    reader, read = StepReader("f", describe(*specs)), []
    for line, content in enumerate(text.splitlines(), 1):
        try:
            steps = reader.read(line, content)
        except (InvalidInputError, FileContentError) as error:
            read.append(str(error))
        else:
            read.append("" if steps is None else next(iter(steps.values())).tolist())
    return read


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("1,2\n3,4\n", [[[1, 2]], [[3, 4]]]),
        ("y,x,z\n1,2,3\n\n3,4,5\n", ["", [[2, 1]], "", [[4, 3]]]),
        ("1;2;3;4\n5,5;6\n", [[[1, 2], [3, 4]], [[5.5, 6]]]),
        ("sep\tx\ty\na\t1\t2\n", ["", [[1, 2]]]),
    ],
)
def test_rows_that_come_one_by_one_are_steps(text, steps):
    assert follow(text, STEPS) == steps
    assert follow(text, STEPS, LENGTHS) == steps


def test_how_numbers_are_written_is_decided_by_the_rows_so_far():
    read = follow("1,5;1\n1.234;2\n1.5;3\n2,5;4\n", STEPS)
    assert [read[0], read[1], read[3]] == [[[1.5, 1]], [[1234, 2]], [[2.5, 4]]]
    assert "decimal points and decimal commas" in read[2]  # and it is not kept


def test_a_row_that_is_no_step_has_a_reason():
    read = follow('1,2\n1,2,3\nx,2\n"1,2\n3,4\n', STEPS)
    assert [read[0], read[4]] == [[[1, 2]], [[3, 4]]]
    assert "3 cells (expected a multiple of 2)" in read[1]
    assert "line 3, column 'x': 'x' is not a number" in read[2]
    assert "quote" in read[3]


def test_steps_of_a_model_without_columns_and_of_characters():
    nameless = TensorSpec("x", "FLOAT", (-1, -1, 2), ("batch", "time", ""))
    assert follow("a,b\n1,2\n3,4,5,6\n", nameless) == ["", [[1, 2]], [[3, 4], [5, 6]]]
    assert follow("ab\nc\n", CHARACTERS) == [["a", "b"], ["c"]]


def test_steps_of_several_inputs_are_no_table():
    with pytest.raises(InvalidInputError, match="takes 2 inputs: features, city .*lines of JSON"):
        StepReader("f", describe(FEATURES, CITY))
