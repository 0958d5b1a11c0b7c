"""Tables and numbers as people and programs write them."""

import numpy as np
import pytest

from neurona_client.files.content import FileContentError
from neurona_client.files.numbers import (
    NumberEvidence,
    NumberFormat,
    are_simple,
    is_number,
    number_formats,
)
from neurona_client.files.tables import TableText, read_table
from neurona_client.files.texts import decode_text, text_lines


def rows(text):
    content = text if isinstance(text, bytes) else text.encode()
    return list(TableText(content).records())


def read_numbers(*columns):
    evidence = [NumberEvidence(f"column {index}") for index in range(len(columns))]
    for one, cells in zip(evidence, columns, strict=True):
        for line, cell in enumerate(cells, start=2):
            one.add(line, cell)
    formats = number_formats(evidence)
    return [
        [one.parse(cell) for cell in cells] for one, cells in zip(formats, columns, strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "separator", "cells"),
    [
        ("a,b\n1,x\n", ",", ["1", "x"]),
        ("a;b\n1,5;2,5\n", ";", ["1,5", "2,5"]),
        ("a\tb\n1,5\tx y\n", "\t", ["1,5", "x y"]),
        ("a\tb\n1;5\t2,5\n", "\t", ["1;5", "2,5"]),
        ("1,5;2,5\n3;4,25\n", ";", ["3", "4,25"]),
        ("close\n1,5\n", ",", None),
        ('"a;b",y\n"1;2",no\n', ",", ["1;2", "no"]),
        ("name,notes\nx,a; b; c\n", ",", ["x", "a; b; c"]),
        ("name;notes\nx;a, b, c\n", ";", ["x", "a, b, c"]),
        ("sep=;\na;b\n1;2\n", ";", ["1", "2"]),
        ('a, "b"\n1, "x, y"\n', ",", ["1", "x, y"]),
        ('a,b\n"he said ""no""", z \n', ",", ['he said "no"', "z"]),
    ],
)
def test_the_separator_is_that_of_the_rows(text, separator, cells):
    assert rows(text)[-1][1] == (cells or ["1,5"])
    assert TableText(text.encode()).separator == separator or cells is None


def test_a_row_has_the_line_in_which_it_begins():
    content = 'a,b\n\n1,"x\ny"\r\n\n2,z\n'
    assert [line for line, _ in rows(content)] == [1, 3, 6]
    assert [line for line, _ in rows("sep=,\na,b\n1,2\n")] == [2, 3]
    assert [line for line, _ in rows("a,b\r1,2\r3,4\r")] == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_says_the_encoding(encoding):
    text = "straße,größe\nAm Köln,1\n"
    assert rows(text.encode(encoding)) == [(1, ["straße", "größe"]), (2, ["Am Köln", "1"])]
    for mark, big in ((b"\xfe\xff", "utf-16-be"), (b"\x00\x00\xfe\xff", "utf-32-be")):
        assert decode_text(mark + text.encode(big)) == text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n\n3,\xfc\xfc\xfc\n", "line 4: byte 0xfc is not UTF-8; it is 'ü' in Windows"),
        (b"a,b\r1,2\r3,\x81\r", "line 3: byte 0x81 is not UTF-8 (expected UTF-8)"),
        ("a,b\n1,2\n".encode("utf-16-le"), "line 1: a NUL character, as in UTF-16 without a byte"),
        (b"\xff\xfea\0,\0b\0\n\0\x00\xd8\n\0", "line 2: invalid UTF-16"),
        (b"PK\x03\x04rest", "a ZIP archive, such as an Excel workbook (expected text"),
        (b'a,b\n1,2\n3,"x\n4,5\n', "line 3: a quote that is not closed"),
        (b'a,b\n1,"x"y\n', "line 2: invalid quotes"),
        (b"a,b\n1,2,3\n", "line 2: 3 cells (expected 2; numbers with decimal commas need quotes)"),
        (b"a;b\n1;2;3\n", "line 2: 3 cells (expected 2)"),
        (b"a,a\n1,2\n", "line 1: duplicate column 'a'"),
        (b"a,,b\n1,x,2\n", "line 1: column 2 has no name (expected one; pandas writes its index"),
        (b"a,b\n", "no data (expected a line of column names and rows below it)"),
        (b"", "no data"),
    ],
)
def test_what_is_no_table_is_told_with_its_line(content, message):
    with pytest.raises(FileContentError) as caught:
        read_table(content)
    assert str(caught.value).startswith(message)


def test_what_programs_add_to_a_table_is_left_out():
    pandas = read_table(b",age,city\n0,33,Bonn\n1,44,Essen\n")
    assert pandas.columns == {"age": ["33", "44"], "city": ["Bonn", "Essen"]}
    assert pandas.index_columns == [1]
    again = read_table(b"Unnamed: 0,age\n1,33\n2,44\n")
    assert dict(again.columns) == {"age": ["33", "44"]}
    excel = read_table(b"age;city;;\n33;Bonn;;\n44;Essen;;;\n")
    assert dict(excel.columns) == {"age": ["33", "44"], "city": ["Bonn", "Essen"]}


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["1", "-2", "+3", "1e3", ".5", "5."], [1, -2, 3, 1000, 0.5, 5]),
        (["1,5", "2", "1,234", "1.234"], [1.5, 2, 1.234, 1234]),
        (["1.5", "1,234", "1.234"], [1.5, 1234, 1.234]),
        (["1.234.567", "1,234"], [1234567, 1.234]),
        (["1,234,567.8", "1,234"], [1234567.8, 1234]),
        (["1.234,5", "7"], [1234.5, 7]),
        (["1 234,5", "12 345", "1\u202f234\u202f567"], [1234.5, 12345, 1234567]),
        (["1'234.5", "1\u2019234"], [1234.5, 1234]),
        (["0,123", "1,234"], [0.123, 1.234]),
        (["12,34,567.5", "1,234"], [1234567.5, 1234]),  # as in India
        (["12 %", "7,5%", "0%"], [12, 7.5, 0]),
        (["\u22125", "-1,5e-3"], [-5, -0.0015]),
        (["1.234", "2.345"], [1.234, 2.345]),
    ],
)
def test_numbers_are_read_as_their_column_writes_them(cells, expected):
    (values,) = read_numbers(cells)
    assert values == pytest.approx(expected, rel=1e-12)


def test_another_column_says_what_a_comma_is():
    assert read_numbers(["1,234"], ["0,5"]) == [[1.234], [0.5]]
    assert read_numbers(["1,234"], ["0.5"]) == [[1234], [0.5]]
    assert read_numbers(["1.234"], ["0,5"]) == [[1234], [0.5]]
    with pytest.raises(FileContentError, match=r"'1,234' may be 1234 or 1\.234, and no other"):
        read_numbers(["1,234"])
    with pytest.raises(FileContentError, match=r"may be 1234 or 1\.234"):
        read_numbers(["1,234"], ["0,5"], ["0.5"])  # the others do not agree
    assert NumberFormat(",").parse("1.234") == 1234
    with pytest.raises(FileContentError, match=r"'1\.234' may be 1234"):
        NumberFormat(refuses_points=True).parse("1.234")


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["1,5", "2.5"], "line 3, column 0: decimal points and decimal commas: '2.5' in line 3"),
        (["5%", "5"], "numbers with and without a sign of per cent: '5%' in line 2 and '5' in"),
        (["1", ""], "missing value ('')"),
        (["1", " N/A "], "missing value (' N/A ')"),
        (["1", "1_000"], "'1_000' is not a number"),
        (["1", "12 34"], "'12 34' is not a number"),
        (["1", "1,23,45"], "'1,23,45' is not a number"),
        (["1", "01.02.2024"], "'01.02.2024' is not a number"),
        (["1", "٣"], "'٣' is not a number"),
    ],
)
def test_what_is_no_number_is_an_error(cells, message):
    with pytest.raises(FileContentError) as caught:
        read_numbers(cells)
    assert message in str(caught.value)


def test_lines_of_text_have_single_spaces():
    content = "\ufeff Abels \r\n\r\nVan\u00a0 den Berg\n".encode()
    assert text_lines(content) == [(1, "Abels"), (3, "Van den Berg")]


def test_simple_columns_are_those_that_every_way_reads_the_same():
    """Random cells: what is called simple is the same number with each decimal mark."""
    random = np.random.default_rng(5)
    letters = list("0123456789" * 4 + "...,+-e% \n'")
    simple = 0
    for cell in ("".join(random.choice(letters, size)) for size in [1, 2, 3, 4, 5, 6] * 2000):
        if are_simple([cell, "", "7"]):
            simple += 1
            assert is_number(cell)
            for mark in (None, "."):
                assert NumberFormat(mark).parse(cell) == float(cell)
    assert simple > 3000
    assert are_simple(["", "12", "-1.25", "0.125", "1234.125"])
    assert not are_simple(["1.234"])  # may be a thousand
    assert not are_simple(["1\n2"])
