"""Model repositories on disk: scanning, model.toml, Triton's config.pbtxt."""
