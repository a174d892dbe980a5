"""The shipped texts are the ones that were credited, unchanged, and readable."""

from __future__ import annotations

import csv
import hashlib
import json
import re

import pytest

from minitrainer.trace.scenarios import DATA_FOLDER

DIGESTS = dict(
    reversed(line.split(maxsplit=1)) for line in (DATA_FOLDER / "SHA256SUMS").read_text().splitlines() if line
)


def test_every_shipped_text_has_its_digest() -> None:
    shipped = {
        path.relative_to(DATA_FOLDER).as_posix()
        for pattern in ("*/*.csv", "*/train.json", "*/validation.json", "*/tokenizer.json")
        for path in DATA_FOLDER.glob(pattern)
    }
    assert shipped == set(DIGESTS)
    assert len(shipped) == 9


@pytest.mark.parametrize("name", DIGESTS)
def test_file_is_unchanged(name: str) -> None:
    assert hashlib.sha256((DATA_FOLDER / name).read_bytes()).hexdigest() == DIGESTS[name]


def test_every_data_set_is_credited_with_source_and_licence() -> None:
    rows = re.findall(r"^\| `(\w+)/` \|(.*)\|$", (DATA_FOLDER / "LICENSES.md").read_text(), flags=re.M)
    assert {name for name, _ in rows} == {name.split("/")[0] for name in DIGESTS} - {"tokenizer"}
    assert len(rows) == 4
    for _, row in rows:
        _, _, source, licence, changes = (cell.strip() for cell in row.split("|"))
        assert re.search(r"commit [0-9a-f]{8}\)", source)
        assert licence in ("CC BY 4.0", "CC BY-SA 4.0")
        assert changes


@pytest.mark.parametrize(
    ("name", "columns", "row_counts"),
    [
        ("polarity", ["sentence", "label", "idx"], (2000, 400)),
        ("banking_pairs", ["sentence1", "sentence2", "label", "idx"], (1500, 300)),
    ],
)
def test_csv_sets_have_the_form_they_claim(name: str, columns: list[str], row_counts: tuple[int, int]) -> None:
    texts: dict[str, set[tuple[str, ...]]] = {}
    for split, count in zip(("train", "validation"), row_counts, strict=True):
        with open(DATA_FOLDER / name / f"{split}.csv", encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert list(rows[0]) == columns
        assert len(rows) == count
        assert {row["label"] for row in rows} == {"0", "1"}
        texts[split] = {tuple(row[column] for column in columns[:-2]) for row in rows}
    assert not texts["train"] & texts["validation"], "a held-out text is also trained on"


def test_every_answer_stands_where_it_is_said_to() -> None:
    answer_count = 0
    for split in ("train", "validation"):
        for line in (DATA_FOLDER / "xquad_en" / f"{split}.json").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(text)] == text
                answer_count += 1
    assert answer_count == 145 + 47


# Read next: test_tokenizer.py
