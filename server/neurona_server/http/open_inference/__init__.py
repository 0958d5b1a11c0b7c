"""The Open Inference Protocol v2 over REST, with the extensions of the same methods over gRPC.

rest_routes      the routes, and how requests become messages of the methods
infer_requests   a request for an inference: JSON and binary data become a ModelInferRequest
infer_responses  and its ModelInferResponse becomes JSON and binary data
json_tensors     the elements of tensors as JSON
raw_tensors      a request that is nothing but the binary data of a model's only input
plain_messages   JSON of the messages without tensors
rest_schemas     what the OpenAPI document says of requests and responses with tensors
"""
