"""What is simulated: servers, devices, models and the requests that come, as JSON says it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from msgspec.structs import replace

from neurona_server.batching.policy import BatchPolicy, Priority
from neurona_server.simulation.costs import BatchCosts, Quantiles, SizeCosts, constant

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]


class CostQuantile(msgspec.Struct, frozen=True):
    """See the message of this name in prediction.proto."""

    level: float
    join_seconds: NotNegative = 0.0
    run_seconds: NotNegative = 0.0
    answer_seconds: NotNegative = 0.0
    cycle_seconds: NotNegative = 0.0


class RunCost(msgspec.Struct, frozen=True):
    """See the message of this name in prediction.proto."""

    rows: Count
    seconds: NotNegative
    padded: bool = False
    quantiles: tuple[CostQuantile, ...] = ()


class Batching(msgspec.Struct, frozen=True):
    """See the message of this name in prediction.proto, whose other fields are not read."""

    costs: Annotated[tuple[RunCost, ...], Meta(min_length=1)]
    max_rows: int = 0
    """0: the largest batch size that has costs."""
    latency_objective_seconds: NotNegative = 0.0
    instances: Count = 1
    inline: bool = False
    request_seconds: NotNegative = 0.0

    def batch_costs(self) -> BatchCosts:
        """Return the costs to draw from.

        Raises:
            ValueError: Quantiles are not ascending.
        """
        varying = [cost for cost in self.costs if cost.quantiles]
        sizes = {}
        for cost in self.costs:
            if not varying:
                sizes[cost.rows] = SizeCosts(constant(0), constant(cost.seconds), constant(0))
                continue
            # A size that no request has used yet varies as the next one does that was used.
            nearest = min(varying, key=lambda one: abs(one.rows - cost.rows))
            factor = cost.seconds / nearest.seconds if nearest.seconds else 1.0
            sizes[cost.rows] = _size_costs(nearest.quantiles, 1.0 if cost is nearest else factor)
        return BatchCosts(sizes, [cost.rows for cost in self.costs if cost.padded])


class Load(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The requests of a model."""

    rate: Positive = 100.0
    """Requests a second, on average: a trace is played faster or slower."""
    arrivals: Literal["poisson", "bursts", "trace"] = "poisson"
    burst_ratio: Positive = 3.0
    """The rate within bursts by the average one."""
    burst_share: Positive = 0.2
    """The part of the time that bursts take."""
    burst_seconds: Positive = 0.2
    """The mean duration of a burst."""
    trace: str = ""
    """The file of a trace: a time in seconds on each line."""
    rows: Mapping[str, Positive] = field(default_factory=lambda: {"1": 1.0})
    """How often a request has so many rows."""
    priorities: Mapping[Literal["high", "normal", "low"], Positive] = field(
        default_factory=lambda: {"normal": 1.0}
    )
    """How often a request has a priority."""
    deadline_ms: NotNegative = 0.0
    """From arrival; 0: none."""


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Requests of one shape, which share no runs with others."""

    factor: Positive
    """By how much their runs take longer than the costs say."""
    share: Positive
    """How often a request has it."""


class ModelScenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model, as each server has it, and the requests that come for it."""

    name: str
    batching: Batching
    load: Load = Load()
    devices: Annotated[tuple[str, ...], Meta(min_length=1)] = ("cpu",)
    """Where its instances are, which take turns in these."""
    max_queue_rows: Count = 4096
    max_delay_ms: NotNegative = 0.0
    batched: bool = True
    groups: tuple[Group, ...] = ()
    request_bytes: int = 0

    @property
    def policy(self) -> BatchPolicy:
        """The batching of the real server."""
        batching = self.batching
        return BatchPolicy(
            max_rows=batching.max_rows or max(cost.rows for cost in batching.costs),
            max_queue_rows=self.max_queue_rows,
            max_delay=self.max_delay_ms / 1000,
            latency_objective=batching.latency_objective_seconds or None,
            inline=batching.inline,
        )


class Stall(msgspec.Struct, frozen=True):
    """See the message of this name in prediction.proto."""

    seconds: Positive
    per_second: NotNegative


class Scenario(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Servers that have the same models, and a balancer before them."""

    models: Annotated[tuple[ModelScenario, ...], Meta(min_length=1)]
    replicas: Count = 1
    balancer: Literal["round_robin", "least_outstanding"] = "round_robin"
    """Which server gets a request: the next one, or that with the fewest unanswered requests."""
    slots: Mapping[str, Count] = {}
    """Runs that a device does at once; of others 2."""
    handover_seconds: NotNegative = 0.0
    """From waking a thread until it works."""
    stalls: tuple[Stall, ...] = ()
    """How often a server stands still for so long or longer. Measured costs of batches contain the
    stalls of their time, so this is for costs without."""

    def with_rate(self, rate: float) -> "Scenario":
        """Return the scenario with so many requests a second, in the same proportions."""
        factor = rate / self.rate
        return self._with_models(
            lambda model: {"load": replace(model.load, rate=model.load.rate * factor)}
        )

    def with_load(self, **changes: Any) -> "Scenario":
        """Return the scenario with some fields of the loads of all models changed."""
        return self._with_models(lambda model: {"load": replace(model.load, **changes)})

    def with_objective(self, seconds: float) -> "Scenario":
        """Return the scenario with one latency objective for all models; 0: none."""
        return self._with_models(
            lambda model: {"batching": replace(model.batching, latency_objective_seconds=seconds)}
        )

    def with_replicas(self, replicas: int) -> "Scenario":
        """Return the scenario with so many servers."""
        return replace(self, replicas=replicas)

    @property
    def rate(self) -> float:
        """The requests a second of all models."""
        return sum([model.load.rate for model in self.models])

    def _with_models(self, changes: Callable[[ModelScenario], dict[str, Any]]) -> "Scenario":
        return replace(self, models=tuple([replace(one, **changes(one)) for one in self.models]))


def read_scenario(path: Path) -> Scenario:
    """Return what a JSON file says: a scenario, or what `neurona describe MODEL --json` prints.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not valid; the message says where.
    """
    return parse_scenario(msgspec.json.decode(path.read_bytes()))


def parse_scenario(content: object) -> Scenario:
    """Return what decoded JSON says; see `read_scenario`.

    Raises:
        ValueError: It is not valid.
    """
    if isinstance(content, dict) and "batching" in content and "model" in content:
        return Scenario(models=(described_model(content),))
    return msgspec.convert(content, Scenario)


def described_model(description: Mapping[str, Any], load: Load | None = None) -> ModelScenario:
    """Return a model as a server describes it.

    Args:
        description: A DescribeModelResponse as a dictionary, names as in prediction.proto.
        load: The requests that come for it.

    Raises:
        ValueError: It has no costs: the server has not measured the model.
    """
    batching = msgspec.convert(description.get("batching", {}), Batching)
    return ModelScenario(
        name=description["model"],
        batching=batching,
        load=load or Load(),
        batched=bool(description.get("batched", True)),
    )


def _size_costs(quantiles: Sequence[CostQuantile], factor: float) -> SizeCosts:
    def distribution(field: str) -> Quantiles:
        by_level = {one.level: factor * getattr(one, field) for one in quantiles}
        # Histograms that are read one after the other may be off by a little.
        largest, ascending = 0.0, {}
        for level in sorted(by_level):
            largest = max(largest, by_level[level])
            ascending[level] = largest
        return Quantiles(ascending)

    return SizeCosts(
        join=distribution("join_seconds"),
        run=distribution("run_seconds"),
        answer=distribution("answer_seconds"),
        cycle=distribution("cycle_seconds") if any(q.cycle_seconds for q in quantiles) else None,
    )


def level_of(name: str) -> Priority:
    """Return the priority of a name in a scenario."""
    return Priority[name.upper()]
