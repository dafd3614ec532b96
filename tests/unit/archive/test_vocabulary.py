"""The cluster's keys, special tokens and ambiguity of every kind of vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers

from oskit.archive.vocabulary import Vocabulary
from oskit.errors import EncoderError


def vocabulary_of(kind: tiny.Kind) -> Vocabulary:
    return Vocabulary(tiny.fast_tokenizer(kind).backend_tokenizer)


def test_wordpiece_keys_are_the_tokens_and_special_tokens_have_none() -> None:
    vocabulary = vocabulary_of("bert")
    for token_id in range(vocabulary.size):
        expected = "" if token_id in vocabulary.special_ids else vocabulary.token_of(token_id)
        assert vocabulary.key_of(token_id) == expected
    assert {vocabulary.token_of(i) for i in vocabulary.special_ids} == {
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    }
    assert vocabulary.token_of(vocabulary.id_of("##ing") or 0) == "##ing"
    assert not vocabulary.is_ambiguous
    assert vocabulary.key_format == "token"


def test_byte_bpe_is_ambiguous_because_half_characters_decode_to_one_text() -> None:
    vocabulary = vocabulary_of("roberta")
    assert vocabulary.ambiguous_keys == {"\ufffd"}
    assert vocabulary.key_format == "id"
    space_the = vocabulary.id_of(" world")
    assert space_the is not None
    assert vocabulary.token_of(space_the) == "Ġworld"


def test_unigram_is_ambiguous_because_words_inside_of_words_decode_like_words() -> None:
    vocabulary = vocabulary_of("xlmr")
    assert {"the", "hello"} <= vocabulary.ambiguous_keys
    assert vocabulary.key_format == "id"
    # The lowest of the ids that share a key.
    assert vocabulary.token_of(vocabulary.id_of("hello") or 0) == "▁hello"


def test_what_decodes_to_nothing_is_special() -> None:
    vocabulary = vocabulary_of("xlmr")
    spelled = {vocabulary.token_of(i) for i in vocabulary.special_ids}
    assert spelled == {"<s>", "<pad>", "</s>", "<unk>", "<mask>", "▁"}


def test_unknown_token_of_a_model_is_special_without_being_declared() -> None:
    wordlevel = Tokenizer(models.WordLevel({"word": 0, "odd-one": 1}, unk_token="odd-one"))
    assert Vocabulary(wordlevel).special_ids == {1}
    unigram = Tokenizer(models.Unigram([("a", -1.0), ("b", -1.0)], unk_id=1))
    assert Vocabulary(unigram).special_ids == {1}
    without = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    assert Vocabulary(without).special_ids == frozenset()


def test_conventional_special_tokens_are_special_without_being_declared() -> None:
    tokenizer = Tokenizer(models.WordLevel({"[CLS]": 0, "[PAD]": 1, "word": 2}, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert Vocabulary(tokenizer).special_ids == {0, 1}


def test_padding_columns_have_no_key_and_no_weight() -> None:
    tokenizer = tiny.fast_tokenizer("bert").backend_tokenizer
    known = tokenizer.get_vocab_size()
    vocabulary = Vocabulary(tokenizer, size=known + 8)
    assert vocabulary.size == known + 8
    assert vocabulary.keys[known:] == ("",) * 8
    assert vocabulary.weight_mask()[known:].sum() == 0
    assert vocabulary.weight_mask().sum() == known - 5


def test_a_tokenizer_of_another_encoder_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"161 tokens.*only 100 columns"):
        Vocabulary(tiny.fast_tokenizer("bert").backend_tokenizer, size=100)


def test_from_file(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tiny.fast_tokenizer("bert").backend_tokenizer.save(str(path))
    assert Vocabulary.from_file(path).keys == vocabulary_of("bert").keys
    path.write_text("{}")
    with pytest.raises(EncoderError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        Vocabulary.from_file(path)
    with pytest.raises(EncoderError, match="cannot be read"):
        Vocabulary.from_file(tmp_path / "absent.json")


def test_unknown_keys_have_no_id() -> None:
    vocabulary = vocabulary_of("bert")
    assert vocabulary.id_of("no such token") is None
    assert vocabulary.id_of("") is None
