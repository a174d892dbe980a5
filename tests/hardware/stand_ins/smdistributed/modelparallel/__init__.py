"""Model parallelism with a single part."""

import os

__version__ = os.environ.get("STAND_IN_SMP_VERSION", "1.15.0")
