"""Dates as people and programs write them."""

from datetime import date

import pytest

from neurona_client.files.content import FileContentError
from neurona_client.files.dates import DateEvidence, date_formats, format_day, is_date, read_times
from neurona_client.files.numbers import is_number

DAY = (date(2024, 3, 31) - date(1970, 1, 1)).days


def read_dates(*columns, default=None):
    evidence = [DateEvidence(f"column {index}") for index in range(len(columns))]
    for one, cells in zip(evidence, columns, strict=True):
        for line, cell in enumerate(cells, start=2):
            one.add(line, cell)
    formats = date_formats(evidence, default)
    return [
        [one.parse(cell) for cell in cells] for one, cells in zip(formats, columns, strict=True)
    ]


@pytest.mark.parametrize(
    "cell",
    [
        *("2024-03-31", "2024/3/31", "2024.03.31", "31.03.2024", "31.3.24", "31. 3. 2024"),
        *("31/03/2024", "3/31/2024", "3/31/24", "31-03-2024", "31 Mar 2024", "31-Mar-24"),
        *("March 31, 2024", "Mar 31 2024", "31st March 2024", " 2024-03-31 "),
        *("2024-03-31T00:00", "2024-03-31 00:00:00", "2024-03-31T02:00:00+02:00"),
        *("2024-03-30T22:00-0200", "2024-03-31T00:00:00.000Z", "3/31/2024 12:00 AM"),
    ],
)
def test_a_day_is_its_number_however_it_is_written(cell):
    assert read_dates([cell]) == [[DAY]]
    assert not is_number(cell)
    assert format_day(DAY) == "2024-03-31"


@pytest.mark.parametrize(
    ("cell", "days"),
    [
        ("2024-03-31 18:00", DAY + 0.75),
        ("3/31/2024 6:00 PM", DAY + 0.75),
        ("31.03.2024, 06:00:00", DAY + 0.25),
        ("1949-01", -7670),
        ("Jan 1949", -7670),
        ("1/1/69", -365),
        ("1/1/68", 35794),
    ],
)
def test_times_months_and_years_of_two_digits(cell, days):
    assert read_dates([cell]) == [[pytest.approx(days)]]


@pytest.mark.parametrize(
    "cell",
    [
        *("", "2024", "3.4", "20240331", "31.02.2024", "2024-13-01", "1.2.3", "12:30", "5 kg"),
        *("2024-03-31 25:00", "31 Foo 2024", "13/13/2024", "0/1/2024", "192.168.2.1", "x" * 99),
    ],
)
def test_anything_else_is_no_date(cell):
    assert not is_date(cell)
    with pytest.raises(FileContentError):
        read_dates([cell])


def test_another_cell_says_which_is_the_month():
    april, march = DAY + 3, DAY - 27
    assert read_dates(["03/04/2024", "13/04/2024"]) == [[april, april + 10]]
    assert read_dates(["03/04/2024", "3/31/2024"]) == [[march, DAY]]
    assert read_dates(["03/04/2024"], ["13/04/2024"])[0] == [april]  # another column
    assert read_dates(["03/04/2024"], default="month-day-year") == [[march]]
    assert read_dates(["03/03/2024"]) == [[march - 1]]  # the same either way
    with pytest.raises(FileContentError) as caught:
        read_dates(["03/04/2024"])
    assert str(caught.value) == (
        "'03/04/2024' may be 3 April 2024 or 4 March 2024, and no other cell says which (expected "
        "2024-04-03 or 2024-03-04)"
    )
    with pytest.raises(FileContentError, match=r"line 3, column 0: day first and month first: '13"):
        read_dates(["13/04/2024", "04/13/2024"])


def test_rows_can_be_put_in_order_by_dates_or_numbers():
    assert read_times([(2, "2,5"), (3, "10")], "column 't'") == [2.5, 10]
    assert read_times([(2, "2024-03-31"), (3, "1970-01-02")], "column 't'") == [DAY, 1]
    with pytest.raises(FileContentError, match=r"line 3, column 't': missing value \(''\)"):
        read_times([(2, "1"), (3, ""), (4, "2")], "column 't'")
