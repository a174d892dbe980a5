"""Train the shipped tokenizer: a WordPiece vocabulary from the shipped training texts, the same file every time.

    python -m minitrainer.trace.scenarios.train_tokenizer            compare the shipped vocabulary with a new one
    python -m minitrainer.trace.scenarios.train_tokenizer FOLDER     write tokenizer.json into FOLDER

The `tokenizers` library has a trainer of its own, but equal counts are settled there by the order of a hash table,
so two runs disagree in a few hundred of the 3,500 words. The forty lines below settle them alphabetically.
"""

from __future__ import annotations

import csv
import heapq
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from . import DATA_FOLDER

VOCABULARY_SIZE = 3500
"""Words and word pieces in all. With 32 numbers each they are four fifths of the small BERT's weights."""

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
"""BERT's, in BERT's order: `[PAD]` must be id 0, as the model's config says."""


def training_texts() -> Iterator[str]:
    """Every English text of the shipped *training* splits; the held-out ones stay unseen."""
    for name in ("polarity", "banking_pairs"):
        with open(DATA_FOLDER / name / "train.csv", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                yield from (row[column] for column in ("sentence", "sentence1", "sentence2") if column in row)
    for path, columns in (
        ("e2e_nlg/train.json", ("content", "summary")),
        ("xquad_en/train.json", ("context", "question")),
    ):
        with open(DATA_FOLDER / path, encoding="utf-8") as lines:
            seen: set[str] = set()
            for row in map(json.loads, lines):
                # One paragraph stands in several rows, once for each question about it; it is counted once.
                yield from (row[column] for column in columns if row[column] not in seen)
                seen.update(row[column] for column in columns)


def build_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """A lower-casing BERT tokenizer over `vocabulary` (word piece to id)."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    if vocabulary:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
        )
    return tokenizer


def train_vocabulary(texts: Iterator[str], size: int = VOCABULARY_SIZE) -> dict[str, int]:
    """Join the most frequent neighbours, again and again, until there are `size` pieces.

    A word starts as its characters, all but the first marked `##`. The pair of neighbours that occurs most often
    becomes a piece of its own; of two equally frequent pairs the alphabetically first one does.

    Returns:
        Each piece with its id: special tokens, then characters in alphabetical order, then pieces in the order in
        which they were joined.
    """
    splitter = build_tokenizer({})
    word_counts: Counter[str] = Counter()
    for text in texts:
        normalized = splitter.normalizer.normalize_str(text)
        word_counts.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normalized))

    words = [[word[0], *("##" + character for character in word[1:])] for word in word_counts]
    counts = list(word_counts.values())
    pieces = SPECIAL_TOKENS + sorted({piece for word in words for piece in word})

    # -- count every pair once, and remember which words hold it ---
    pair_counts: Counter[tuple[str, str]] = Counter()
    words_with: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += counts[index]
            words_with[pair].add(index)
    queue = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(queue)

    # -- join the most frequent pair ---
    while len(pieces) < size:
        negative_count, pair = heapq.heappop(queue)
        if -negative_count != pair_counts[pair]:
            continue  # A stale entry: this pair's count has moved since, and its newer entry is in the queue too.
        joined = pair[0] + pair[1].removeprefix("##")
        pieces.append(joined)
        changed: set[tuple[str, str]] = set()
        for index in words_with.pop(pair):
            before, words[index] = words[index], _join(words[index], pair, joined)
            for old_pair in pairwise(before):
                pair_counts[old_pair] -= counts[index]
                changed.add(old_pair)
            for new_pair in pairwise(words[index]):
                pair_counts[new_pair] += counts[index]
                words_with[new_pair].add(index)
                changed.add(new_pair)
        for changed_pair in changed:
            if pair_counts[changed_pair] > 0:
                heapq.heappush(queue, (-pair_counts[changed_pair], changed_pair))
    return {piece: number for number, piece in enumerate(pieces)}


def _join(word: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    """`word` with every occurrence of the neighbours `pair` replaced by the one piece `joined`."""
    result: list[str] = []
    for piece in word:
        if result and (result[-1], piece) == pair:
            result[-1] = joined
        else:
            result.append(piece)
    return result


def main(argv: list[str]) -> int:
    vocabulary = train_vocabulary(training_texts())
    if argv:
        build_tokenizer(vocabulary).save(str(Path(argv[0]) / "tokenizer.json"))
        return 0
    shipped = json.loads((DATA_FOLDER / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    print(
        "the shipped vocabulary", "follows" if shipped == vocabulary else "does NOT follow", "from the shipped texts"
    )
    return 0 if shipped == vocabulary else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

# Read next: run_glue.py, which uses it.
