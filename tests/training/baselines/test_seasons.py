"""Seasons that are there are found, and none where there is none."""

import numpy as np
import pytest

from neurona_training.baselines.seasons import find_season

RANDOM = np.random.default_rng(7)
STEPS = np.arange(240)


@pytest.mark.parametrize("season", [4, 7, 12, 24, 52])
@pytest.mark.parametrize("trend", [0, 3])
def test_a_season_with_and_without_a_trend(season, trend):
    shape = RANDOM.normal(size=season)
    series = np.tile(shape, 240 // season + 1)[:240] + 0.2 * RANDOM.normal(size=240)
    assert find_season(series + trend * STEPS) == season


@pytest.mark.parametrize(
    "series",
    [
        RANDOM.normal(size=240),
        RANDOM.normal(size=240).cumsum(),
        3.0 * STEPS,
        np.exp(STEPS / 50),
        np.ones(240),
        RANDOM.normal(size=9),
    ],
    ids=["noise", "random walk", "line", "growth", "constant", "short"],
)
def test_no_season(series):
    assert find_season(series) is None
