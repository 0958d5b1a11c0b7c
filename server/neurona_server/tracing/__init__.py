"""OpenTelemetry: what is traced, and how it gets to a collector. Nobody else imports it, and this
room is entered only where an endpoint is configured."""
