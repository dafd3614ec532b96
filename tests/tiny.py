"""Tiny randomly initialised encoders, built in the tests: every kind of vocabulary, no downloads.

A folder made here holds ``config.json``, ``model.safetensors`` and a fast tokenizer; it opens with
``AutoModelForMaskedLM`` (``bert-headless`` with ``AutoModel``) and ``AutoTokenizer``. The same kind is the
same model, bit for bit, each time.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, Literal, get_args

Kind = Literal["bert", "distilbert", "roberta", "xlmr", "bert-headless"]
KINDS: tuple[Kind, ...] = get_args(Kind)

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


def build(kind: Kind, folder: str | Path) -> Path:
    """Write the tiny encoder ``kind`` into ``folder`` and return it.

    ``bert`` and ``distilbert`` have a WordPiece vocabulary, ``roberta`` byte-level BPE and ``xlmr`` Unigram
    (SentencePiece); ``bert-headless`` is ``bert`` without its projection to the vocabulary.
    """
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

    folder = Path(folder)
    tokenizer = fast_tokenizer(kind)
    tokenizer.save_pretrained(folder)
    config = AutoConfig.for_model(**_config(kind, tokenizer))
    with torch.random.fork_rng():
        torch.manual_seed(7)
        factory = AutoModel if kind == "bert-headless" else AutoModelForMaskedLM
        factory.from_config(config).save_pretrained(folder)
    return folder


def build_inference_free(
    folder: str | Path, *, kind: Kind = "bert", activation: Literal["relu", "log1p_relu"] = "log1p_relu"
) -> Path:
    """Write a ``SparseEncoder`` whose queries are a table of token weights into ``folder``; return it.

    The weight of token ``i`` is ``0.5 + (i % 7) / 4``, the same for ids that decode to one text.
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
    base = build(kind, folder.with_name(f"{folder.name}-base"))
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


def fast_tokenizer(kind: Kind) -> Any:
    """The ``PreTrainedTokenizerFast`` of a kind."""
    from transformers import PreTrainedTokenizerFast

    if kind in ("roberta", "xlmr"):
        backend = _byte_bpe() if kind == "roberta" else _unigram()
        names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
        names |= {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    else:
        backend = _wordpiece()
        names = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]"}
        names |= {"unk_token": "[UNK]", "mask_token": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def _config(kind: Kind, tokenizer: Any) -> dict[str, Any]:
    common: dict[str, Any] = {"vocab_size": len(tokenizer), "initializer_range": 0.3}
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
    if kind in ("roberta", "xlmr"):
        # Positions of these models start behind the padding token's id.
        common |= {"max_position_embeddings": 514, "type_vocab_size": 1}
        return {**common, "model_type": "roberta" if kind == "roberta" else "xlm-roberta"}
    return {**common, "model_type": "bert"}


def _wordpiece() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*specials, *LETTERS, *CHINESE, *(f"##{letter}" for letter in LETTERS), "##ing", "##s", "##er"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *WORDS]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def _byte_bpe() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    byte_letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *byte_letters])}
    merges: list[tuple[str, str]] = []
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for word in WORDS:
        for text in (word, f" {word}"):
            letters = splitter.pre_tokenize_str(text)[0][0]
            left = letters[0]
            for letter in letters[1:]:
                if left + letter not in vocabulary:
                    vocabulary[left + letter] = len(vocabulary)
                    merges.append((left, letter))
                left += letter
    vocabulary["<mask>"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    ends = ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"])
    tokenizer.post_processor = processors.RobertaProcessing(*ends, add_prefix_space=False)
    return tokenizer


def _unigram() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    specials = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = [(f"▁{word}", -3.0) for word in WORDS]
    # The same word inside of a word: both decode to one text.
    inside = [(word, -5.0) for word in WORDS if len(word) > 1]
    letters = [(letter, -8.0) for letter in (*LETTERS, *CHINESE)]
    pieces = dict([*specials, ("▁", -6.0), *words, *inside, *letters, ("<mask>", 0.0)])
    tokenizer = Tokenizer(models.Unigram(list(pieces.items()), unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def without_dropout(folder: Path) -> Path:
    """The same model, computing in training what it computes otherwise."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    path.write_text(json.dumps(config))
    return folder
