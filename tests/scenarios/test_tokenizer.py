"""The shipped tokenizer gives the same ids on every version, and follows from the shipped texts."""

from __future__ import annotations

import json

from transformers import AutoTokenizer

from minitrainer.trace.scenarios import DATA_FOLDER, train_tokenizer

from .support import in_both_environments

# Text (or pair of texts) -> ids, segments. Changing any of them changes every recorded run.
FROZEN: dict[tuple[str, ...], tuple[list[int], list[int]]] = {
    ("A gorgeous, witty, seductive movie.",): (
        [2, 81, 356, 35, 149, 364, 61, 1268, 242, 61, 445, 21, 955, 341, 319, 63, 3],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
    ("the whole talking-animal thing is grisly .",): (
        [2, 117, 1650, 1305, 1485, 62, 1402, 144, 1306, 127, 2233, 36, 131, 63, 3],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
    ("Why was my card DECLINED?", "My contactless payment didn't work"): (
        [2, 257, 236, 134, 189, 375, 77, 3, 134, 384, 1631, 682, 56, 100, 271, 3],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
    ),
    ("Café Sicilia costs £20 – 日本 [MASK]",): (
        [2, 547, 759, 1289, 36, 592, 111, 1, 1, 4, 3],
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ),
}


@in_both_environments
def test_ids_are_frozen(environment: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA_FOLDER / "tokenizer")
    for texts, (ids, segments) in FROZEN.items():
        encoded = tokenizer(*texts)
        assert (encoded["input_ids"], encoded["token_type_ids"]) == (ids, segments)
        assert encoded["attention_mask"] == [1] * len(ids)
    assert len(FROZEN) == 4


@in_both_environments
def test_special_tokens_and_limits(environment: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DATA_FOLDER / "tokenizer")
    assert [tokenizer.convert_ids_to_tokens(number) for number in range(5)] == train_tokenizer.SPECIAL_TOKENS
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id) == (
        0,
        1,
        2,
        3,
    )
    assert (tokenizer.padding_side, tokenizer.model_max_length, len(tokenizer)) == ("right", 512, 3500)


def test_vocabulary_follows_from_the_texts() -> None:
    shipped = json.loads((DATA_FOLDER / "tokenizer" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    trained = train_tokenizer.train_vocabulary(train_tokenizer.training_texts())
    assert trained == shipped
    assert len(shipped) == train_tokenizer.VOCABULARY_SIZE


def test_equal_counts_are_settled_alphabetically() -> None:
    # Both pairs, (a, ##b) and (c, ##d), occur twice: the first in the alphabet is joined first, whatever the order.
    for texts in (["ab cd", "ab cd"], ["cd ab", "cd ab"]):
        vocabulary = train_tokenizer.train_vocabulary(iter(texts), size=5 + 4 + 2)
        assert list(vocabulary)[5:] == ["##b", "##d", "a", "c", "ab", "cd"]


def test_a_piece_repeated_in_a_word_is_joined_each_time() -> None:
    # b ##a ##n ##a ##n ##a: (##a, ##n) and (##n, ##a) both occur twice, and the alphabet settles it. Then
    # b ##an ##an ##a: three pairs, each once, of which (##an, ##a) comes first.
    vocabulary = train_tokenizer.train_vocabulary(iter(["banana"]), size=5 + 3 + 2)
    assert list(vocabulary)[5:] == ["##a", "##n", "b", "##an", "##ana"]


# Read next: ../../minitrainer/trace/scenarios/train_tokenizer.py, which these tests check.
