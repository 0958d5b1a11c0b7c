"""Which versions serve: reconciliation with the repository, publication, traffic."""
