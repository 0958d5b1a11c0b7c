"""Finished runs for the tests of the report: trained for a few epochs, without their files."""

from collections.abc import Callable
from functools import cache
from typing import cast

import pytest
import torch

from neurona_training.baselines.comparison import Comparison
from neurona_training.export.metadata import describe_scaling, model_metadata
from neurona_training.learning.evaluation import evaluate
from neurona_training.learning.run import Run
from neurona_training.recipes import RECIPES
from neurona_training.report.results import RunResults


@pytest.fixture(scope="session")
def finished_run() -> Callable[[str, str, int | None], RunResults]:
    """Trains a recipe on a data set of the catalogue; None epochs are the recipe's own."""

    @cache
    def train(recipe_name: str, data_name: str, epochs: int | None = None) -> RunResults:
        torch.set_num_threads(1)
        recipe = RECIPES[recipe_name]
        data = recipe.load(data_name)
        settings = recipe.settings(data, data_name)
        if epochs is not None:
            settings = settings.with_changes({"epochs": epochs})
        result = recipe.fit(data, settings, Run(f"{recipe_name}-{data_name}", seed=0))
        network = result.network
        provenance = {
            "seed": 0,
            "parameters": sum(one.numel() for one in network.parameters()),
            "scaling": describe_scaling(network),
        }
        described = model_metadata(data, "a test", evaluate(network, data), provenance)
        return RunResults(
            name=f"{recipe_name}-{data_name}",
            network=network,
            data=data,
            fit_result=result,
            hyperparameters=settings.hyperparameters,
            baselines=(),
            comparison=cast(Comparison, None),  # of the whole page alone
            metadata=described,
            files={"float32": (1, described)},
            seconds=1.0,
        )

    return train
