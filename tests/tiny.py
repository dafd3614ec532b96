"""Tiny randomly initialised encoders, built in the tests: every kind of vocabulary, no downloads.

A folder made here holds ``config.json``, ``model.safetensors`` and a fast tokenizer; it opens with
``AutoModelForMaskedLM`` (``bert-headless`` with ``AutoModel``) and ``AutoTokenizer``. The same kind is the
same model, bit for bit, each time.

:data:`KINDS` differ in their vocabularies, :data:`ARCHITECTURES` in what surgery and export meet:

=============  ==================================================================================
kind           what is particular to it
=============  ==================================================================================
bert           the plain case: WordPiece, a head with biases, tied to the embeddings
distilbert     other names in its configuration; no token types
roberta        byte-level BPE; positions start behind the padding token's id
xlmr           Unigram (SentencePiece); several ids decode to one text
bert-headless  ``bert`` without its projection to the vocabulary
modernbert     no biases but the decoder's; sliding and full attention take turns; 3 layers
deberta-v2     relative positions only, no limit of length; no token types
mpnet          WordPiece with RoBERTa's special tokens; positions start behind the padding token's id
electra        embeddings, and so the projection, half as wide as the hidden states
albert         all layers are one; embeddings as in electra
eurobert       no biases at all; a projection of its own, not tied; grouped-query attention
=============  ==================================================================================
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

Vocabulary = Literal["bert", "distilbert", "roberta", "xlmr", "bert-headless"]
Architecture = Literal["modernbert", "deberta-v2", "mpnet", "electra", "albert", "eurobert"]
Kind = Vocabulary | Architecture
KINDS: tuple[Vocabulary, ...] = get_args(Vocabulary)
ARCHITECTURES: tuple[Kind, ...] = ("bert", "distilbert", "roberta", "xlmr", *get_args(Architecture))

_ENGLISH = """
the a an of to in is and concrete bridge load beam steel water road stone wall floor roof house hello world
search engine sparse vector weight token query document index neural strong long short new old what how why
"""
_SWEDISH = "bro betong vatten väg sten hus och är en ett på för hej värld"
WORDS = (_ENGLISH + _SWEDISH).split()
LETTERS = "abcdefghijklmnopqrstuvwxyzåäöé0123456789.,!?-'"
CHINESE = "你好世界混凝土桥梁"


def sentences(count: int, seed: int = 0) -> list[str]:
    """Eight words each, at random."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=8)) for _ in range(count)]


def build(
    kind: Kind, folder: str | Path, *, padding: int = 0, holes: int = 0, dtype: str = "float32", **config: Any
) -> Path:
    """Write the tiny encoder ``kind`` into ``folder`` and return it.

    Args:
        kind: See the table above.
        folder: It is made if needed.
        padding: Rows of embeddings and columns of logits beyond the tokenizer's ids, as many encoders have.
        holes: Ids that stand for no token, before those of the words; for WordPiece and BPE only.
        dtype: Of the weights that are saved: ``float32``, ``float16`` or ``bfloat16``.
        config: More of ``config.json``.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    folder = Path(folder)
    tokenizer = fast_tokenizer(kind, holes=holes)
    tokenizer.save_pretrained(folder)
    made = AutoConfig.for_model(**{**_config(kind, tokenizer, padding), **config})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        factory = AutoModel if kind == "bert-headless" else AutoModelForMaskedLM
        factory.from_config(made).to(getattr(torch, dtype)).save_pretrained(folder)
    return folder


def build_inference_free(
    folder: str | Path,
    *,
    kind: Kind = "bert",
    activation: Literal["relu", "log1p_relu"] = "log1p_relu",
    **options: Any,
) -> Path:
    """Write a ``SparseEncoder`` whose queries are a table of token weights into ``folder``; return it.

    The weight of token ``i`` is ``0.5 + (i % 7) / 4``, the same for ids that decode to one text. ``options``
    are those of :func:`build`.
    """
    import torch
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import (
        Router,
        SparseStaticEmbedding,
        SpladePooling,
        Transformer,
    )

    folder = Path(folder)
    base = build(kind, folder.with_name(f"{folder.name}-base"), **options)
    documents = Transformer(str(base), transformer_task="fill-mask")
    tokenizer = documents.tokenizer
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
    weights = torch.tensor([0.5 + (texts.index(text) % 7) / 4 for text in texts])
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(tokenizer, weights, frozen=True)],
        document_modules=[documents, SpladePooling("max", activation_function=activation)],
    )
    SparseEncoder(modules=[router], similarity_fn_name="dot", device="cpu").save_pretrained(str(folder))
    return folder


_BRACKETS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ANGLES = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")
_SPECIALS: dict[str, tuple[str, ...]] = {
    "roberta": _ANGLES,
    "xlmr": _ANGLES,
    "mpnet": ("<pad>", "[UNK]", "<s>", "</s>", "<mask>"),
    "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "eurobert": ("<|pad|>", "<|unk|>", "<|begin_of_text|>", "<|end_of_text|>", "<|mask|>"),
}
"""Names of padding, unknown token, start, end and mask; :data:`_BRACKETS` where nothing is said."""


def fast_tokenizer(kind: Kind, *, holes: int = 0) -> Any:
    """The ``PreTrainedTokenizerFast`` of a kind; see :func:`build`."""
    from transformers import PreTrainedTokenizerFast

    specials = _SPECIALS.get(kind, _BRACKETS)
    if kind in ("roberta", "modernbert", "eurobert"):
        backend = _byte_bpe(specials, holes)
    elif kind in ("xlmr", "albert", "deberta-v2"):
        assert not holes
        backend = _unigram(specials)
    else:
        backend = _wordpiece(specials, holes)
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True)
    )
    if kind in ("roberta", "xlmr", "mpnet"):
        names |= {"bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def _config(kind: Kind, tokenizer: Any, padding: int) -> dict[str, Any]:
    size = max(tokenizer.get_vocab().values()) + 1 + padding
    common: dict[str, Any] = {"vocab_size": size, "initializer_range": 0.3}
    common["pad_token_id"] = tokenizer.pad_token_id
    if kind == "distilbert":
        return {
            **common,
            "model_type": "distilbert",
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 64,
        }
    common |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    first_and_last = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
    if kind in ("roberta", "xlmr", "mpnet"):
        # Positions of these models start behind the padding token's id.
        common |= {"max_position_embeddings": 514, "type_vocab_size": 1, **first_and_last}
    elif kind == "modernbert":
        ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        common |= {"num_hidden_layers": 3, "local_attention": 8, **first_and_last, **ends}
    elif kind == "deberta-v2":
        common |= {"type_vocab_size": 0, "position_biased_input": False, "share_att_key": True}
        common |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
        common |= {"norm_rel_ebd": "layer_norm"}
    elif kind in ("electra", "albert"):
        common["embedding_size"] = 16
    elif kind == "eurobert":
        common |= {"num_key_value_heads": 1, "mask_token_id": tokenizer.mask_token_id, **first_and_last}
    types = {"xlmr": "xlm-roberta", "bert-headless": "bert"}
    return {**common, "model_type": types.get(kind, kind)}


def _wordpiece(specials: Sequence[str], holes: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    pad, unknown, start, end, mask = specials
    first = [pad, unknown, start, end, mask] if pad == "[PAD]" else [start, pad, end, unknown, mask]
    pieces = [*first, *LETTERS, *CHINESE, *(f"##{letter}" for letter in LETTERS), "##ing", "##s", "##er"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    for word in WORDS:
        vocabulary.setdefault(word, len(vocabulary) + holes)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = _template(start, end, vocabulary)
    return tokenizer


def _template(start: str, end: str, vocabulary: dict[str, int]) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(token, vocabulary[token]) for token in (start, end)],
    )


def _byte_bpe(specials: Sequence[str], holes: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    pad, unknown, start, end, mask = specials
    byte_letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([start, pad, end, unknown, *byte_letters])}
    merges: list[tuple[str, str]] = []
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word in WORDS:
        for text in (word, f" {word}"):
            letters = splitter.pre_tokenize_str(text)[0][0]
            left = letters[0]
            for letter in letters[1:]:
                if left + letter not in vocabulary:
                    vocabulary[left + letter] = len(vocabulary) + holes
                    merges.append((left, letter))
                left += letter
    vocabulary[mask] = len(vocabulary) + holes
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    ends = (end, vocabulary[end]), (start, vocabulary[start])
    tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return tokenizer


def _unigram(specials: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pad, unknown, start, end, mask = specials
    # [PAD] is the first, <pad> the second, as where these models come from.
    first = [start, pad, end, unknown] if pad == "<pad>" else [pad, start, end, unknown]
    words = [(f"▁{word}", -3.0) for word in WORDS]
    # The same word inside of a word: both decode to one text.
    inside = [(word, -5.0) for word in WORDS if len(word) > 1]
    letters = [(letter, -8.0) for letter in (*LETTERS, *CHINESE)]
    ends = [(token, 0.0) for token in first]
    pieces = dict([*ends, ("▁", -6.0), *words, *inside, *letters, (mask, 0.0)])
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = _template(start, end, {token: i for i, token in enumerate(pieces)})
    return tokenizer


def without_dropout(folder: Path) -> Path:
    """The same model, computing in training what it computes otherwise."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config))
    return folder
