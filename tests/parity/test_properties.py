"""Our Trainer equals the real 4.31.0 on drawn runs, to the last bit.

MINITRAINER_EXAMPLES sets the number of examples in all (300 without it). The draw is the same every time; the long run
(`python -m tests.parity.search`) draws from many seeds.
"""

from __future__ import annotations

import os

import pytest

from .run import our_library
from .search import SHARES, search

pytestmark = pytest.mark.reference

EXAMPLES = int(os.environ.get("MINITRAINER_EXAMPLES", "300"))


@pytest.mark.parametrize("kind", SHARES)
def test_ours_equals_the_real_trainer(kind: str) -> None:
    """Every drawn case of this kind gives equal observations."""
    wanted = round(EXAMPLES * SHARES[kind])
    ran, difference = search(kind, wanted, our_library())
    assert difference is None, difference
    assert ran == wanted


# Read next: tests/parity/test_named.py
