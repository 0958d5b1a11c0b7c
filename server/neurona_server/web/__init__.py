"""The bounded HTTP server, and what it serves at the metrics port.

http_server     listens, and bounds the number of connections
connection      serves one: uvicorn's protocol on httptools, bounded in size and time
messages        requests and responses
acceptor        accepts connections, also when the process has no file descriptors left
allowed_hosts   rejects requests for the names of others
metrics_server  serves the metrics port
endpoints       answers its paths: /metrics, /healthz and the status page at /
renders         shares the renders of the metrics
page            the status page: HTML, CSS and JavaScript
"""
