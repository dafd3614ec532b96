"""Cutting long documents: nothing lost, nothing too long, sentences whole, for any text and tokenizer."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from oskit.data.chunks import Chunk, Chunking
from oskit.errors import UsageError


def word_pieces() -> Tokenizer:
    letters = dict.fromkeys("abcdefghijklmnopqrstuvwxyz.!?,。！？日本語文中国")
    names = ["[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), "word", "##ing"]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(sorted(alphabet))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentence_pieces() -> Tokenizer:
    pieces = [
        ("<unk>", 0.0),
        ("▁", -3.0),
        ("▁word", -1.0),
        *((letter, -4.0) for letter in "abcdefgw.!日本。"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


TOKENIZERS = {"wordpiece": word_pieces(), "bytes": byte_level(), "unigram": sentence_pieces()}

alphabet = st.sampled_from(
    [*"abw .!?,\n\t\r\u00a0\u200b。！日本語é\u0301\ud800🙂\x00", "word", ". ", ".\n\n", "ing", '."']
)
texts = st.lists(alphabet, max_size=150).map("".join) | st.text(max_size=80)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(
    title=st.lists(alphabet, max_size=40).map("".join),
    text=texts,
    tokens=st.integers(16, 60),
    share=st.floats(0, 0.5),
)
def test_all_of_a_text_is_in_its_chunks_in_order_and_none_is_too_long(name, title, text, tokens, share):
    tokenizer = TOKENIZERS[name]
    chunking = Chunking(tokens, int(tokens * share))
    clean = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    chunks = chunking.split(title, text, tokenizer.encode)
    assert bool(chunks) == bool((title + text).strip())
    if not chunks:
        return
    covered = 0
    for before, chunk in zip([None, *chunks], chunks, strict=False):
        assert 0 <= chunk.start <= chunk.end <= len(clean)
        assert clean[chunk.start : chunk.end].strip() in chunk.text  # the piece stands in what is encoded
        assert not clean[covered : chunk.start].strip()  # nothing is left out
        assert before is None or (before.start <= chunk.start and before.end < chunk.end)
        if before is not None and before.end > chunk.start:
            repeated = clean[chunk.start : before.end]
            assert len(tokenizer.encode(repeated, add_special_tokens=False).ids) <= chunking.overlap + 1
        covered = chunk.end
        one_letter = len(clean[chunk.start : chunk.end].strip()) <= 1
        assert len(tokenizer.encode(chunk.text).ids) <= tokens or one_letter
    assert not clean[covered:].strip()


def words(sentence: str) -> int:
    return len(TOKENIZERS["wordpiece"].encode(sentence, add_special_tokens=False).ids)


def test_sentences_stay_whole_and_are_repeated_whole_behind_the_title():
    split = Chunking(20, 8).split
    sentences = [
        "Word word word.",
        "Word word word word word.",
        'Word "word word!"',
        "Word e.g. word word?",
    ] * 3
    text = " ".join(sentences)
    chunks = split("Wording", text, TOKENIZERS["wordpiece"].encode)
    assert len(chunks) > 3
    for before, chunk in pairwise(chunks):
        assert chunk.text.startswith("Wording ")
        piece = chunk.text.removeprefix("Wording ")
        assert text[chunk.start :].startswith(piece)
        assert piece[0] == "W" and piece[-1] in '.!?"'
        repeated = text[chunk.start : before.end].strip()
        assert words(repeated) <= 8 and (not repeated or repeated[-1] in '.!?"')
    assert any(chunk.start < before.end for before, chunk in pairwise(chunks))


def test_a_sentence_that_is_too_long_is_cut_between_words_and_repeats_words():
    text = " ".join(["wording"] * 60) + ". " + "Word."
    chunks = Chunking(18, 4).split("", text, TOKENIZERS["wordpiece"].encode)
    assert all(chunk.text.split()[0] in ("wording", "Word.") for chunk in chunks)
    assert all(after.start < chunk.end for chunk, after in pairwise(chunks[:-1]))


def test_scripts_without_spaces_are_cut_behind_their_marks():
    text = "日本語文。" * 4 + "中国！" * 5 + "日本語文日本語文日本語文日本語文？"
    chunks = Chunking(16).split("", text, TOKENIZERS["wordpiece"].encode)
    assert "".join(chunk.text for chunk in chunks) == text
    assert all(chunk.text[-1] in "。！？" for chunk in chunks[:-2])


def test_a_document_that_fits_is_its_passage_and_a_long_title_leaves_room():
    encode = TOKENIZERS["wordpiece"].encode
    assert Chunking(32).split("A title ", " its text\n", encode) == [Chunk("A title   its text", 0, 10)]
    assert Chunking(32).split("", " its text\n", encode) == [Chunk(" its text\n", 0, 10)]
    assert Chunking(32).split("title", "", encode) == [Chunk("title", 0, 0)]
    assert Chunking(32).split("", " \n", encode) == []
    chunks = Chunking(20).split("word " * 30, "ab ba " * 20, encode)
    assert {chunk.text.count("word") for chunk in chunks} == {9}
    assert "".join(chunk.text.replace("word ", "") for chunk in chunks).replace(" ", "") == "abba" * 20


REFUSED = "384/tokens/tokens:0/tokens:384,overlap:193/tokens:-5/tokens:384,tokens:3/tokens:99,x:1/tokens:1e3"


@pytest.mark.parametrize("text", ["", "tokens:\u0663\u0668\u0664", *REFUSED.split("/")])
def test_a_chunking_that_cannot_be_is_refused(text):
    with pytest.raises(UsageError):
        Chunking.parse(text)


def test_a_chunking_reads_as_it_writes_itself():
    assert str(Chunking.parse(" tokens:384, overlap: 64")) == "tokens:384,overlap:64"
    assert Chunking.parse("overlap:0,tokens:512") == Chunking.parse("tokens:512") == Chunking(512, 0)
    Chunking(512).check_length(512)
    with pytest.raises(UsageError, match="reads 256 tokens"):
        Chunking(512).check_length(256)
