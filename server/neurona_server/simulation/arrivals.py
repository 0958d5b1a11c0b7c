"""When requests come: at random, in bursts, or as they were recorded."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random


def poisson(rate: float, random: Random) -> Iterator[float]:
    """Yield times of arrivals that do not depend on each other.

    Args:
        rate: Arrivals a second.
        random: Where chance comes from.
    """
    draw, now = random.expovariate, 0.0
    while True:
        now += draw(rate)
        yield now


def bursts(
    rate: float, random: Random, *, ratio: float = 4.0, share: float = 0.1, seconds: float = 0.2
) -> Iterator[float]:
    """Yield times of arrivals in bursts: a Poisson process whose rate changes between two values.

    That is a Markov-modulated Poisson process with two states, whose durations are exponential
    (Fischer and Meier-Hellstern, The Markov-modulated Poisson process cookbook, 1993).

    Args:
        rate: Arrivals a second, on average.
        random: Where chance comes from.
        ratio: The rate within bursts by the average one.
        share: The part of the time that bursts take.
        seconds: The mean duration of a burst.

    Raises:
        ValueError: There would be no arrivals between bursts, or fewer.
    """
    if not 0 < share < 1 or ratio < 1 or ratio * share > 1:
        raise ValueError(
            f"bursts of {ratio} times the rate in {share} of the time (expected a ratio of at "
            f"least 1, and a product of at most 1)"
        )
    rates = (rate * (1 - ratio * share) / (1 - share), rate * ratio)
    durations = (seconds * (1 - share) / share, seconds)
    now, state = 0.0, int(random.random() < share)
    while True:
        end = now + random.expovariate(1 / durations[state])
        while rates[state] and (now := now + random.expovariate(rates[state])) < end:
            yield now
        now, state = end, 1 - state


def recorded(times: Iterable[float], speed: float = 1.0) -> Iterator[float]:
    """Yield recorded times from 0 on, and again from the start once they have ended.

    Args:
        times: Seconds, ascending.
        speed: The rate by that of the record.

    Raises:
        ValueError: There are fewer than two times.
    """
    ascending = sorted(times)
    if len(ascending) < 2 or ascending[0] == ascending[-1]:
        raise ValueError(f"a trace has {len(ascending)} times (expected two different ones)")
    first, count = ascending[0], len(ascending)
    period = (ascending[-1] - first) * count / (count - 1)  # with a gap before it begins again
    for cycle in itertools.count():
        for time in ascending:
            yield (time - first + cycle * period) / speed


def read_trace(path: Path) -> list[float]:
    """Return the times in a file: seconds, one a line; empty lines and lines with # are left out.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line has no number.
    """
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    return [float(line.partition(",")[0]) for line in lines if line and not line.startswith("#")]
