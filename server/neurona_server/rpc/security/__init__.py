"""Authentication and rights: TLS certificates, tokens, and files reloaded when they change."""
