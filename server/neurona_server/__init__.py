"""neurona_server: serves ONNX models over gRPC with dynamic batching.

The rooms, in the order in which they import each other:

    app         puts everything together, from start to stop; config says with which options
    supervision the process that keeps several others, if several serve on one port: `supervisor`
                starts and stops each `worker`, which is an app, and merges their metrics
    web         what is on the port of metrics: /metrics, /healthz and a page for people
    rpc         the transports: bytes come in, a Call goes to a service, bytes go out
    models      what is served: files, signatures, sessions, versions
    batching    how requests become batches
    metrics     every Prometheus series; tally counts what they do not tell
    errors      what can go wrong, in words that know no transport

The life of one Predict:

 1. `rpc.core_listener` gets the bytes and makes a `Call` (`rpc.call`).
 2. `rpc.prediction` parses them, finds the model (`models.registry`) and has dtypes and shapes
    checked (`models.signature`): what is wrong is refused here, before it can share a batch.
    The bytes become numpy arrays as they are.
 3. `models.model` submits a `Request` to its `batching.batcher`: admitted to the bounded
    `batching.queue`, or refused at once if there is no room or, says `batching.admission`, no
    time.
 4. An instance that is idle (`models.instance`) takes a batch from the queue; a model with
    short runs is run by the transport's own thread, once it has read all there is to read. Expired
    requests fall out here, cancelled ones have left before; equal shapes go together, oldest
    first; their rows are joined once (`batching.batch`).
 5. `models.session` runs it on ONNX Runtime, outside the GIL. A batch that fails is run again
    by halves; one that nobody waits for any more is terminated (`batching.running`).
 6. The rows go back to their requests; each one's callback encodes its answer
    (`rpc.answers`) and the transport sends it. `batching.curve` learns what the run has cost.

A ModelInfer of the Open Inference Protocol (`rpc.open_inference`) goes the same way: what the
two have in common is `rpc.submission`, and their requests share batches. Of a message of
PredictStream (`rpc.prediction_stream`), requests that are alike go as one: `rpc.gathering` makes
bundles of them, and each is answered, or fails, for itself (`rpc.bundle`).
"""

import os

# ONNX Runtime (1.31, on Linux too) sends events about the process and its models to Microsoft, and
# keeps a file for that in the home folder. Only this stops it, and only before it is loaded:
# disable_telemetry_events() comes too late. Whoever sets the variable decides otherwise.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
