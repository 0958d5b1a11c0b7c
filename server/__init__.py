"""neurona_server: serves ONNX models over gRPC with dynamic batching.

The rooms, in the order in which they import each other:

    app         puts everything together, from start to stop; config says with which options
    rpc         the doors: bytes come in, a Call goes to a service, bytes go out
    models      what is served: files, signatures, sessions, versions
    batching    how requests become batches
    metrics     every Prometheus series
    errors      what can go wrong, in words that know no transport

The life of one Predict:

 1. `rpc.aio_listener` gets the bytes and makes a `Call` (`rpc.call`).
 2. `rpc.prediction` parses them, finds the model (`models.registry`), makes numpy views on
    the request's own bytes and has them checked (`models.signature`). What is wrong is
    refused here, before it can share a batch.
 3. `models.model` submits a `Request` to its `batching.batcher`: admitted to the bounded
    `batching.queue`, or refused at once.
 4. An instance that is idle (`models.instance`) takes a batch from the queue. Expired and
    cancelled requests fall out here; equal shapes go together, oldest first; their rows are
    joined once (`batching.batch`).
 5. `models.session` runs it on ONNX Runtime, outside the GIL.
 6. The rows go back to their requests; each one's callback encodes its answer
    (`rpc.answers`) and the door sends it.
"""
