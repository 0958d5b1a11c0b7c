from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNDEFINED: _ClassVar[DataType]
    DATA_TYPE_FLOAT: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]
    DATA_TYPE_INT8: _ClassVar[DataType]
    DATA_TYPE_UINT16: _ClassVar[DataType]
    DATA_TYPE_INT16: _ClassVar[DataType]
    DATA_TYPE_INT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_STRING: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]
    DATA_TYPE_FLOAT16: _ClassVar[DataType]
    DATA_TYPE_DOUBLE: _ClassVar[DataType]
    DATA_TYPE_UINT32: _ClassVar[DataType]
    DATA_TYPE_UINT64: _ClassVar[DataType]
    DATA_TYPE_BFLOAT16: _ClassVar[DataType]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_NORMAL: _ClassVar[Priority]
    PRIORITY_HIGH: _ClassVar[Priority]
    PRIORITY_LOW: _ClassVar[Priority]

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_TENSORS: _ClassVar[Task]
    TASK_CLASSIFICATION: _ClassVar[Task]
    TASK_REGRESSION: _ClassVar[Task]

class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATE_LOADING: _ClassVar[State]
    STATE_READY: _ClassVar[State]
    STATE_DRAINING: _ClassVar[State]
    STATE_FAILED: _ClassVar[State]
    STATE_UNLOADED: _ClassVar[State]

class SequenceMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SEQUENCE_METHOD_EQUAL_LENGTHS: _ClassVar[SequenceMethod]
    SEQUENCE_METHOD_RAGGED: _ClassVar[SequenceMethod]
    SEQUENCE_METHOD_CELLULAR: _ClassVar[SequenceMethod]

class ImageLayout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_LAYOUT_HW: _ClassVar[ImageLayout]
    IMAGE_LAYOUT_CHW: _ClassVar[ImageLayout]
    IMAGE_LAYOUT_HWC: _ClassVar[ImageLayout]

class ImageColours(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_COLOURS_GREY: _ClassVar[ImageColours]
    IMAGE_COLOURS_RGB: _ClassVar[ImageColours]
    IMAGE_COLOURS_BGR: _ClassVar[ImageColours]

class ImageResize(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_RESIZE_FIT: _ClassVar[ImageResize]
    IMAGE_RESIZE_STRETCH: _ClassVar[ImageResize]
    IMAGE_RESIZE_SHORTER_SIDE: _ClassVar[ImageResize]

class ImageFilter(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_FILTER_BOX: _ClassVar[ImageFilter]
    IMAGE_FILTER_BILINEAR: _ClassVar[ImageFilter]
    IMAGE_FILTER_BICUBIC: _ClassVar[ImageFilter]

class ImageInversion(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_INVERSION_NEVER: _ClassVar[ImageInversion]
    IMAGE_INVERSION_ALWAYS: _ClassVar[ImageInversion]
    IMAGE_INVERSION_BRIGHT_BORDER: _ClassVar[ImageInversion]
DATA_TYPE_UNDEFINED: DataType
DATA_TYPE_FLOAT: DataType
DATA_TYPE_UINT8: DataType
DATA_TYPE_INT8: DataType
DATA_TYPE_UINT16: DataType
DATA_TYPE_INT16: DataType
DATA_TYPE_INT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_STRING: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_FLOAT16: DataType
DATA_TYPE_DOUBLE: DataType
DATA_TYPE_UINT32: DataType
DATA_TYPE_UINT64: DataType
DATA_TYPE_BFLOAT16: DataType
PRIORITY_NORMAL: Priority
PRIORITY_HIGH: Priority
PRIORITY_LOW: Priority
TASK_TENSORS: Task
TASK_CLASSIFICATION: Task
TASK_REGRESSION: Task
STATE_LOADING: State
STATE_READY: State
STATE_DRAINING: State
STATE_FAILED: State
STATE_UNLOADED: State
SEQUENCE_METHOD_EQUAL_LENGTHS: SequenceMethod
SEQUENCE_METHOD_RAGGED: SequenceMethod
SEQUENCE_METHOD_CELLULAR: SequenceMethod
IMAGE_LAYOUT_HW: ImageLayout
IMAGE_LAYOUT_CHW: ImageLayout
IMAGE_LAYOUT_HWC: ImageLayout
IMAGE_COLOURS_GREY: ImageColours
IMAGE_COLOURS_RGB: ImageColours
IMAGE_COLOURS_BGR: ImageColours
IMAGE_RESIZE_FIT: ImageResize
IMAGE_RESIZE_STRETCH: ImageResize
IMAGE_RESIZE_SHORTER_SIDE: ImageResize
IMAGE_FILTER_BOX: ImageFilter
IMAGE_FILTER_BILINEAR: ImageFilter
IMAGE_FILTER_BICUBIC: ImageFilter
IMAGE_INVERSION_NEVER: ImageInversion
IMAGE_INVERSION_ALWAYS: ImageInversion
IMAGE_INVERSION_BRIGHT_BORDER: ImageInversion

class Tensor(_message.Message):
    __slots__ = ("name", "dtype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class PredictRequest(_message.Message):
    __slots__ = ("model", "version", "label", "inputs", "top_k", "raw_outputs", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    RAW_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    label: str
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    top_k: int
    raw_outputs: bool
    priority: Priority
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., top_k: _Optional[int] = ..., raw_outputs: bool = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class PredictResponse(_message.Message):
    __slots__ = ("model", "version", "classification", "regression", "outputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    classification: Classification
    regression: Regression
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., regression: _Optional[_Union[Regression, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("model", "version", "classification", "outputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CLASSIFICATION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    classification: Classification
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., classification: _Optional[_Union[Classification, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class RegressResponse(_message.Message):
    __slots__ = ("model", "version", "regression", "outputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REGRESSION_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    regression: Regression
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., regression: _Optional[_Union[Regression, _Mapping]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[ClassificationRow]
    def __init__(self, rows: _Optional[_Iterable[_Union[ClassificationRow, _Mapping]]] = ...) -> None: ...

class ClassificationRow(_message.Message):
    __slots__ = ("labels", "indices", "probabilities")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[str]
    indices: _containers.RepeatedScalarFieldContainer[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, labels: _Optional[_Iterable[str]] = ..., indices: _Optional[_Iterable[int]] = ..., probabilities: _Optional[_Iterable[float]] = ...) -> None: ...

class Regression(_message.Message):
    __slots__ = ("values", "rows")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedCompositeFieldContainer[ValueDescription]
    rows: _containers.RepeatedCompositeFieldContainer[RegressionRow]
    def __init__(self, values: _Optional[_Iterable[_Union[ValueDescription, _Mapping]]] = ..., rows: _Optional[_Iterable[_Union[RegressionRow, _Mapping]]] = ...) -> None: ...

class RegressionRow(_message.Message):
    __slots__ = ("values",)
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, values: _Optional[_Iterable[float]] = ...) -> None: ...

class PredictStreamRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[StreamedRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[StreamedRequest, _Mapping]]] = ...) -> None: ...

class StreamedRequest(_message.Message):
    __slots__ = ("id", "request")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    id: int
    request: PredictRequest
    def __init__(self, id: _Optional[int] = ..., request: _Optional[_Union[PredictRequest, _Mapping]] = ...) -> None: ...

class PredictStreamResponse(_message.Message):
    __slots__ = ("responses",)
    RESPONSES_FIELD_NUMBER: _ClassVar[int]
    responses: _containers.RepeatedCompositeFieldContainer[StreamedResponse]
    def __init__(self, responses: _Optional[_Iterable[_Union[StreamedResponse, _Mapping]]] = ...) -> None: ...

class StreamedResponse(_message.Message):
    __slots__ = ("id", "response", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: PredictResponse
    error: Error
    def __init__(self, id: _Optional[int] = ..., response: _Optional[_Union[PredictResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message", "retry_after_ms")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_MS_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    retry_after_ms: int
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., retry_after_ms: _Optional[int] = ...) -> None: ...

class SessionRequest(_message.Message):
    __slots__ = ("start", "inputs", "id", "return_state")
    START_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    RETURN_STATE_FIELD_NUMBER: _ClassVar[int]
    start: SessionStart
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    id: int
    return_state: bool
    def __init__(self, start: _Optional[_Union[SessionStart, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., id: _Optional[int] = ..., return_state: bool = ...) -> None: ...

class SessionStart(_message.Message):
    __slots__ = ("model", "version", "label", "top_k", "raw_outputs", "priority", "state")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    RAW_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    label: str
    top_k: int
    raw_outputs: bool
    priority: Priority
    state: bytes
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ..., top_k: _Optional[int] = ..., raw_outputs: bool = ..., priority: _Optional[_Union[Priority, str]] = ..., state: _Optional[bytes] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("id", "response", "error", "state", "steps", "ending")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ENDING_FIELD_NUMBER: _ClassVar[int]
    id: int
    response: PredictResponse
    error: Error
    state: bytes
    steps: int
    ending: str
    def __init__(self, id: _Optional[int] = ..., response: _Optional[_Union[PredictResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., state: _Optional[bytes] = ..., steps: _Optional[int] = ..., ending: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelSummary]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelSummary, _Mapping]]] = ...) -> None: ...

class ModelSummary(_message.Message):
    __slots__ = ("model", "task", "versions")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    task: Task
    versions: _containers.RepeatedCompositeFieldContainer[VersionState]
    def __init__(self, model: _Optional[str] = ..., task: _Optional[_Union[Task, str]] = ..., versions: _Optional[_Iterable[_Union[VersionState, _Mapping]]] = ...) -> None: ...

class VersionState(_message.Message):
    __slots__ = ("version", "state", "reason", "labels", "provider", "share", "shadow", "nodes", "degraded", "devices", "run_method")
    class NodesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    RUN_METHOD_FIELD_NUMBER: _ClassVar[int]
    version: int
    state: State
    reason: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    provider: str
    share: float
    shadow: bool
    nodes: _containers.ScalarMap[str, int]
    degraded: str
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    run_method: str
    def __init__(self, version: _Optional[int] = ..., state: _Optional[_Union[State, str]] = ..., reason: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., provider: _Optional[str] = ..., share: _Optional[float] = ..., shadow: bool = ..., nodes: _Optional[_Mapping[str, int]] = ..., degraded: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ..., run_method: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("label", "name", "uuid", "memory_bytes")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    label: str
    name: str
    uuid: str
    memory_bytes: int
    def __init__(self, label: _Optional[str] = ..., name: _Optional[str] = ..., uuid: _Optional[str] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class LoadModelResponse(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: ModelSummary
    def __init__(self, model: _Optional[_Union[ModelSummary, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class UnloadModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DescribeModelRequest(_message.Message):
    __slots__ = ("model", "version", "label")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    label: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class DescribeModelResponse(_message.Message):
    __slots__ = ("model", "version", "inputs", "outputs", "batched", "metadata", "batching", "sequences")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    BATCHED_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    BATCHING_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: VersionState
    inputs: _containers.RepeatedCompositeFieldContainer[TensorDescription]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorDescription]
    batched: bool
    metadata: ModelMetadata
    batching: Batching
    sequences: SequenceServing
    def __init__(self, model: _Optional[str] = ..., version: _Optional[_Union[VersionState, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorDescription, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorDescription, _Mapping]]] = ..., batched: bool = ..., metadata: _Optional[_Union[ModelMetadata, _Mapping]] = ..., batching: _Optional[_Union[Batching, _Mapping]] = ..., sequences: _Optional[_Union[SequenceServing, _Mapping]] = ...) -> None: ...

class SequenceServing(_message.Message):
    __slots__ = ("method", "reason", "chunk_steps", "state_bytes", "stateless_reason", "open_sessions", "time_axes")
    class TimeAxesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHUNK_STEPS_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STATELESS_REASON_FIELD_NUMBER: _ClassVar[int]
    OPEN_SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TIME_AXES_FIELD_NUMBER: _ClassVar[int]
    method: SequenceMethod
    reason: str
    chunk_steps: int
    state_bytes: int
    stateless_reason: str
    open_sessions: int
    time_axes: _containers.ScalarMap[str, int]
    def __init__(self, method: _Optional[_Union[SequenceMethod, str]] = ..., reason: _Optional[str] = ..., chunk_steps: _Optional[int] = ..., state_bytes: _Optional[int] = ..., stateless_reason: _Optional[str] = ..., open_sessions: _Optional[int] = ..., time_axes: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Batching(_message.Message):
    __slots__ = ("max_rows", "limit_rows", "latency_objective_seconds", "instances", "inline", "costs", "request_seconds", "stalls")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_ROWS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_OBJECTIVE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INLINE_FIELD_NUMBER: _ClassVar[int]
    COSTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STALLS_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    limit_rows: int
    latency_objective_seconds: float
    instances: int
    inline: bool
    costs: _containers.RepeatedCompositeFieldContainer[RunCost]
    request_seconds: float
    stalls: _containers.RepeatedCompositeFieldContainer[Stall]
    def __init__(self, max_rows: _Optional[int] = ..., limit_rows: _Optional[int] = ..., latency_objective_seconds: _Optional[float] = ..., instances: _Optional[int] = ..., inline: bool = ..., costs: _Optional[_Iterable[_Union[RunCost, _Mapping]]] = ..., request_seconds: _Optional[float] = ..., stalls: _Optional[_Iterable[_Union[Stall, _Mapping]]] = ...) -> None: ...

class RunCost(_message.Message):
    __slots__ = ("rows", "seconds", "padded", "quantiles")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PADDED_FIELD_NUMBER: _ClassVar[int]
    QUANTILES_FIELD_NUMBER: _ClassVar[int]
    rows: int
    seconds: float
    padded: bool
    quantiles: _containers.RepeatedCompositeFieldContainer[CostQuantile]
    def __init__(self, rows: _Optional[int] = ..., seconds: _Optional[float] = ..., padded: bool = ..., quantiles: _Optional[_Iterable[_Union[CostQuantile, _Mapping]]] = ...) -> None: ...

class CostQuantile(_message.Message):
    __slots__ = ("level", "join_seconds", "run_seconds", "answer_seconds", "cycle_seconds")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    JOIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    RUN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    CYCLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    level: float
    join_seconds: float
    run_seconds: float
    answer_seconds: float
    cycle_seconds: float
    def __init__(self, level: _Optional[float] = ..., join_seconds: _Optional[float] = ..., run_seconds: _Optional[float] = ..., answer_seconds: _Optional[float] = ..., cycle_seconds: _Optional[float] = ...) -> None: ...

class Stall(_message.Message):
    __slots__ = ("seconds", "per_second")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    per_second: float
    def __init__(self, seconds: _Optional[float] = ..., per_second: _Optional[float] = ...) -> None: ...

class TensorDescription(_message.Message):
    __slots__ = ("name", "dtype", "shape", "axes", "optional", "any_shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    AXES_FIELD_NUMBER: _ClassVar[int]
    OPTIONAL_FIELD_NUMBER: _ClassVar[int]
    ANY_SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    axes: _containers.RepeatedScalarFieldContainer[str]
    optional: bool
    any_shape: bool
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., axes: _Optional[_Iterable[str]] = ..., optional: bool = ..., any_shape: bool = ...) -> None: ...

class ModelMetadata(_message.Message):
    __slots__ = ("task", "description", "inputs", "answer", "labels", "values", "figures", "provenance")
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ProvenanceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TASK_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    task: Task
    description: str
    inputs: _containers.RepeatedCompositeFieldContainer[InputDescription]
    answer: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedCompositeFieldContainer[ValueDescription]
    figures: _containers.ScalarMap[str, float]
    provenance: _containers.ScalarMap[str, str]
    def __init__(self, task: _Optional[_Union[Task, str]] = ..., description: _Optional[str] = ..., inputs: _Optional[_Iterable[_Union[InputDescription, _Mapping]]] = ..., answer: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[_Union[ValueDescription, _Mapping]]] = ..., figures: _Optional[_Mapping[str, float]] = ..., provenance: _Optional[_Mapping[str, str]] = ...) -> None: ...

class InputDescription(_message.Message):
    __slots__ = ("name", "description", "unit", "columns", "categories", "window", "decimal_mark", "finite", "allow_nan", "lengths_of", "lengths_axis", "only_categories", "sample_rate", "date_columns", "date_order", "time_column", "image", "example")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    DECIMAL_MARK_FIELD_NUMBER: _ClassVar[int]
    FINITE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NAN_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_OF_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_AXIS_FIELD_NUMBER: _ClassVar[int]
    ONLY_CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    DATE_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DATE_ORDER_FIELD_NUMBER: _ClassVar[int]
    TIME_COLUMN_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    unit: str
    columns: _containers.RepeatedScalarFieldContainer[str]
    categories: _containers.RepeatedScalarFieldContainer[str]
    window: int
    decimal_mark: str
    finite: bool
    allow_nan: bool
    lengths_of: str
    lengths_axis: int
    only_categories: bool
    sample_rate: int
    date_columns: _containers.RepeatedScalarFieldContainer[str]
    date_order: str
    time_column: str
    image: ImageDescription
    example: str
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., unit: _Optional[str] = ..., columns: _Optional[_Iterable[str]] = ..., categories: _Optional[_Iterable[str]] = ..., window: _Optional[int] = ..., decimal_mark: _Optional[str] = ..., finite: bool = ..., allow_nan: bool = ..., lengths_of: _Optional[str] = ..., lengths_axis: _Optional[int] = ..., only_categories: bool = ..., sample_rate: _Optional[int] = ..., date_columns: _Optional[_Iterable[str]] = ..., date_order: _Optional[str] = ..., time_column: _Optional[str] = ..., image: _Optional[_Union[ImageDescription, _Mapping]] = ..., example: _Optional[str] = ...) -> None: ...

class ImageDescription(_message.Message):
    __slots__ = ("layout", "colours", "width", "height", "resize", "filter", "shorter_side", "stored_width", "stored_height", "inversion", "black", "white", "mean", "std")
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    COLOURS_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    RESIZE_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    SHORTER_SIDE_FIELD_NUMBER: _ClassVar[int]
    STORED_WIDTH_FIELD_NUMBER: _ClassVar[int]
    STORED_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    INVERSION_FIELD_NUMBER: _ClassVar[int]
    BLACK_FIELD_NUMBER: _ClassVar[int]
    WHITE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    layout: ImageLayout
    colours: ImageColours
    width: int
    height: int
    resize: ImageResize
    filter: ImageFilter
    shorter_side: int
    stored_width: int
    stored_height: int
    inversion: ImageInversion
    black: float
    white: float
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, layout: _Optional[_Union[ImageLayout, str]] = ..., colours: _Optional[_Union[ImageColours, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., resize: _Optional[_Union[ImageResize, str]] = ..., filter: _Optional[_Union[ImageFilter, str]] = ..., shorter_side: _Optional[int] = ..., stored_width: _Optional[int] = ..., stored_height: _Optional[int] = ..., inversion: _Optional[_Union[ImageInversion, str]] = ..., black: _Optional[float] = ..., white: _Optional[float] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ...) -> None: ...

class ValueDescription(_message.Message):
    __slots__ = ("name", "unit", "quantile")
    NAME_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    QUANTILE_FIELD_NUMBER: _ClassVar[int]
    name: str
    unit: str
    quantile: float
    def __init__(self, name: _Optional[str] = ..., unit: _Optional[str] = ..., quantile: _Optional[float] = ...) -> None: ...
