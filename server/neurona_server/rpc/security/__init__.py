"""Who may call what: TLS certificates, tokens and their rights, files reloaded when they change."""
