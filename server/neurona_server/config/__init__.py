"""The options of the server: their declaration, how a value is parsed, where values come from."""
