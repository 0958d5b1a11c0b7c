"""The metrics port, over HTTP: /metrics, /healthz and the status page at /.

server         serves connections, and bounds their number, size and time
http           parses requests and encodes responses
acceptor       accepts them, also when the process has no file descriptors left
allowed_hosts  rejects requests for the names of others
endpoints      answers each path
renders        shares the renders of the metrics
page           the status page: HTML, CSS and JavaScript
"""
