"""Stands in for torchdistx."""
