"""The metrics port, over HTTP: /metrics, /healthz and the status page at /.

server         accepts connections, and bounds their number, size and time
http           parses requests and encodes responses
allowed_hosts  rejects requests for the names of others
endpoints      answers each path
page           the status page: HTML, CSS and JavaScript
"""
