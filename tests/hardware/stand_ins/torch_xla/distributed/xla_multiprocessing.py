"""accelerate imports it."""
