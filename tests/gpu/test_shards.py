"""FSDP through accelerate on cards: trained on shards, saved, resumed, by the real Trainers and by ours."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .facts import Facts, part
from .places import PRETENDED_CARDS, Schedule, Wave, cards

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    """Both environments at once; gives the facts of one, rank by rank."""
    names = ("installed", "reference")
    work = {(name, "shards"): (name, "apart", ["shards"]) for name in names}
    schedule = Schedule(tmp_path_factory.mktemp("shards"), [Wave(len(work), work)])
    found = Facts(schedule)
    yield found
    schedule.end()
    found.keep_what_is_done()


@pytest.mark.skipif(cards() < 2 or bool(PRETENDED_CARDS), reason="takes two cards")
@pytest.mark.parametrize("environment", ["reference", "installed"])
def test_fsdp_trains_saves_and_resumes(facts: Facts, environment: str) -> None:
    """A resumed run ends where an unbroken one ends, on every rank; what the real Trainer cannot do, ours cannot either."""
    for found in facts(environment, "shards"):
        libraries = part(found, "shards")["libraries"]
        real, ours = libraries["transformers"], libraries["minitrainer"]
        if real["error"] is not None:
            # accelerate 0.21.0 asks for an argument of FSDP that newer torch has not
            assert ours["error"] == real["error"]
            continue
        assert ours["error"] is None, ours["stack"]
        for side in (real, ours):
            assert side["resumed"]["shards"] == side["unbroken"]["shards"]
            assert side["resumed"]["losses"][-3:] == side["unbroken"]["losses"][-3:]
            assert side["unbroken"]["elements_here"] < side["unbroken"]["elements_of_the_model"]


# Read next: tests/gpu/test_command_line.py
