"""Stands in for NVIDIA's apex: same calls, full precision."""
