"""Mixed precision of torch_xla."""
