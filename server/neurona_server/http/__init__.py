"""The HTTP transport: the services of gRPC over HTTP/1.1, with the same queues and rights.

transport        listens, and takes requests to their routes: hosts, tokens, deadlines, errors
routing          the routes that others add, and the requests that their handlers get
call             a call of a service's function for an HTTP request
timings          how long a request waited and ran, for the header Server-Timing
error_responses  the HTTP status and the JSON of an error
compression      compressed bodies, with a limit
neurona_api      neurona.v1 as JSON and as protobuf
open_inference   the Open Inference Protocol v2 over REST
operation        what a route says of itself
openapi          and the OpenAPI document of all of them
playground       the page at the root, on which a person tries the models
"""
