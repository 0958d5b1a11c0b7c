"""What tests share: servers, models, fakes, certificates."""
