"""What is on the port of metrics, over HTTP: `/metrics`, `/healthz` and a page for people, `/`."""
