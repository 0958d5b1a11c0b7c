"""Lifecycle of models: reconciliation with the repository, versions, registry, traffic."""
