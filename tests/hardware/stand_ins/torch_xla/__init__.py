"""Stands in for torch_xla: one device, which is the CPU."""
