"""Tensors whose shape differs between requests and the graph: `reshape` in config.pbtxt.

The signature of a model has the shapes of requests; each run converts its inputs to the shapes of
the graph, and its outputs back. So nothing else of the server knows of the graph's shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from neurona_server.batching.batch import ReserveInputs, Run
from neurona_server.batching.request import Array, Inputs, Outputs
from neurona_server.models.repository.settings import DeclaredTensor
from neurona_server.models.signature import Size, TensorSpec

Shape = tuple[int, ...]


class ReshapeError(Exception):
    """An array does not have the shape that its declaration says."""


@dataclass(frozen=True)
class Reshape:
    """Two shapes of one tensor, of all axes; both have the same number of free sizes, -1."""

    in_request: Shape
    in_graph: Shape

    def to_graph(self, array: Array) -> Array:
        """Return an input of a request in the shape that the graph expects."""
        return array.reshape(_convert(array.shape, self.in_request, self.in_graph))

    def graph_shape(self, shape: Shape) -> Shape:
        """Return the shape in the graph of an input that has this shape in a request."""
        return _convert(shape, self.in_request, self.in_graph)

    def to_request(self, array: Array) -> Array:
        """Return an output of the graph in the shape that callers expect.

        The number of axes that a graph declares may be wrong: one of that shape is returned as is.

        Raises:
            ReshapeError: It has another shape than declared.
        """
        if not _fits(array.shape, self.in_graph) and _fits(array.shape, self.in_request):
            return array
        return array.reshape(_convert(array.shape, self.in_graph, self.in_request))

    @property
    def free_sizes(self) -> tuple[Size, ...]:
        """The shape in requests, as that of a specification."""
        return tuple(None if size < 0 else size for size in self.in_request)

    def spec_in_request(self, spec: TensorSpec) -> TensorSpec:
        """Return the specification for callers; `spec` is the graph's."""
        pairs = zip(self.in_graph, spec.shape, strict=True)
        free_sizes = iter([size for declared, size in pairs if declared < 0])
        shape: tuple[Size, ...] = tuple(
            next(free_sizes) if size < 0 else size for size in self.in_request
        )
        return TensorSpec(spec.name, spec.dtype, shape)


def _fits(shape: Shape, declared: Shape) -> bool:
    return len(shape) == len(declared) and all(
        expected in (-1, size) for size, expected in zip(shape, declared, strict=True)
    )


def _convert(shape: Shape, source: Shape, target: Shape) -> Shape:
    if not _fits(shape, source):
        raise ReshapeError(f"an array has shape {list(shape)} (expected {list(source)})")
    free_sizes = iter([size for size, one in zip(shape, source, strict=True) if one < 0])
    return tuple([next(free_sizes) if size < 0 else size for size in target])


def find_reshapes(
    declared: Sequence[DeclaredTensor], role: str, specs: Sequence[TensorSpec]
) -> dict[str, Reshape]:
    """Return the reshapes of inputs or outputs by name.

    Triton has no tensor without axes: its files declare a scalar of the graph with the dims [1].

    Args:
        declared: What config.pbtxt declares.
        role: input or output.
        specs: The tensors of the graph.
    """
    reshapes = {}
    by_name = {spec.name: spec for spec in specs}
    for tensor in declared:
        spec = by_name.get(tensor.name)
        if tensor.role != role or spec is None or tensor.shape is None:
            continue
        if tensor.graph_shape is not None:
            reshapes[tensor.name] = Reshape(tensor.shape, tensor.graph_shape)
        elif _is_scalar(tensor.shape, role, spec):
            reshapes[tensor.name] = Reshape(tensor.shape, tensor.shape[:-1])
    return reshapes


def _is_scalar(declared: Shape, role: str, spec: TensorSpec) -> bool:
    """Return whether a declared size of 1 stands for a scalar, or one per row, of the graph.

    What the graph declares of an output may be wrong: see `Reshape.to_request`.
    """
    if declared not in ((1,), (-1, 1)):
        return False
    if role == "output" and spec.any_shape:
        return True
    return (
        not spec.any_shape
        and len(spec.shape) == len(declared) - 1
        and (role == "output" or not any(isinstance(size, int) for size in spec.shape))
    )


class ReshapedRun:
    """A run of a graph with the shapes of requests."""

    def __init__(
        self, run: Run, inputs: Mapping[str, Reshape], outputs: Mapping[int, Reshape]
    ) -> None:
        """Wrap a `run`; the reshapes are by name of input, and by index of output."""
        self._run = run
        self._inputs = inputs
        self._outputs = outputs
        self._reserved: tuple[Inputs, Inputs] | None = None  # in shapes of requests, of the graph

    def reserve_inputs(self, shapes: Mapping[str, Shape]) -> Inputs | None:
        """Return the run's own memory for inputs, if it has some, in the shapes of requests."""
        reserve: ReserveInputs | None = getattr(self._run, "reserve_inputs", None)
        if reserve is None:
            return None
        reshapes = self._inputs
        targets = reserve(
            {n: reshapes[n].graph_shape(s) if n in reshapes else s for n, s in shapes.items()}
        )
        if targets is None:
            return None
        arrays = {name: target.reshape(shapes[name]) for name, target in targets.items()}
        self._reserved = arrays, targets
        return arrays

    def __call__(self, inputs: Inputs) -> Outputs:
        reshapes = self._inputs
        if (reserved := self._reserved) is not None and inputs is reserved[0]:
            outputs = [*self._run(reserved[1])]
        else:
            outputs = [
                *self._run(
                    {n: reshapes[n].to_graph(a) if n in reshapes else a for n, a in inputs.items()}
                )
            ]
        for index, reshape in self._outputs.items():
            outputs[index] = reshape.to_request(outputs[index])
        return outputs

    def terminate(self) -> None:
        self._run.terminate()


def reshape_runs(
    new_run: Callable[[], Run],
    inputs: Mapping[str, Reshape],
    outputs: Mapping[str, Reshape],
    specs: Sequence[TensorSpec],
) -> Callable[[], Run]:
    """Return `new_run` itself, or a function that makes runs with the reshapes if there are any.

    Args:
        new_run: Makes runs of the graph.
        inputs: Reshapes by name.
        outputs: Reshapes by name.
        specs: The outputs in the graph's order.
    """
    if not inputs and not outputs:
        return new_run
    by_index = {i: outputs[spec.name] for i, spec in enumerate(specs) if spec.name in outputs}
    return lambda: ReshapedRun(new_run(), inputs, by_index)
