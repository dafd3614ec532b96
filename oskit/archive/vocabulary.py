"""The vocabulary as the cluster sees it: which key stands for which token id.

ML Commons names the tokens of a sparse vector by ``tokenizer.decode([id], skip_special_tokens=true)``
(its ``SparseEncodingTranslator`` and ``SparseTokenizerModel``) and drops a token that decodes to nothing.
For WordPiece that is the token itself (``##ing`` keeps its prefix). SentencePiece and byte-level BPE decode
several ids to one text, so there a token's text cannot be its key.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from oskit.archive.text_encoder import KeyFormat
from oskit.errors import EncoderError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

# Names of special tokens, for a tokenizer.json that has them but does not declare them special.
_CONVENTIONAL = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]"),
    *("<s>", "</s>", "<pad>", "<unk>", "<mask>", "<bos>", "<eos>"),
)


class Vocabulary:
    """Token ids, the keys that the cluster gives them, and which of them never weigh anything.

    Args:
        tokenizer: The tokenizer that the archive carries.
        size: Width of the encoder's output, where that is larger than the tokenizer's vocabulary
            (padded embeddings).

    Raises:
        EncoderError: The tokenizer has ids that the encoder's output has no column for.
    """

    def __init__(self, tokenizer: Tokenizer, *, size: int | None = None) -> None:
        tokens = tokenizer.get_vocab(with_added_tokens=True)
        known = max(tokens.values(), default=-1) + 1
        if size is not None and size < known:
            raise EncoderError(
                f"the tokenizer has {known} tokens, the encoder's output only {size} columns",
                hint="Use the tokenizer that it was trained with, or resize its embeddings.",
            )
        self._tokenizer = tokenizer
        self._token_ids = tokens
        self.size = known if size is None else size

    @classmethod
    def from_file(cls, path: str | Path, *, size: int | None = None) -> Vocabulary:
        """Read ``tokenizer.json``.

        Raises:
            EncoderError: The file is missing or is not a tokenizer.
        """
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more specific
            raise EncoderError(
                f"{path} cannot be read as a tokenizer: {error}",
                hint="A tokenizer.json as written by the `tokenizers` library is needed.",
            ) from error
        return cls(tokenizer, size=size)

    def __repr__(self) -> str:
        return f"Vocabulary(size={self.size}, key_format={self.key_format!r})"

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The cluster's key of each id; empty where the cluster drops the token (special tokens)."""
        return tuple(self._tokenizer.decode_batch([[i] for i in range(self.size)], skip_special_tokens=True))

    def key_of(self, token_id: int) -> str:
        """The key under which the cluster returns this token; ``""`` when it never does."""
        return self.keys[token_id]

    def token_of(self, token_id: int) -> str:
        """The token as the tokenizer spells it (``▁the``, ``Ġthe``, ``##s``); ``""`` for a padding column."""
        return self._tokenizer.id_to_token(token_id) or ""

    def id_of(self, key: str) -> int | None:
        """The id behind a key, the lowest where several share it; None for a key that no token has."""
        return self._ids.get(key)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {key: i for i, key in reversed(tuple(enumerate(self.keys))) if key}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that never carry weight.

        The tokenizer's special tokens ([CLS], [SEP], [PAD], [MASK], …), the model's unknown token, what the
        tokenizer puts around a text, and whatever the cluster decodes to nothing and so could never return.
        """
        added = self._tokenizer.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        special.update(self._tokenizer.encode("").ids)
        special.update(self._token_ids[token] for token in _CONVENTIONAL if token in self._token_ids)
        special.update(i for i, key in enumerate(self.keys) if not key)
        unknown = self.unknown_id
        if unknown is not None:
            special.add(unknown)
        return frozenset(special)

    @cached_property
    def unknown_id(self) -> int | None:
        """Id of what the tokenizer puts for what it does not know; None where it knows everything."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        if token is not None:
            return self._tokenizer.token_to_id(token)
        if hasattr(self._tokenizer.model, "unk_token"):  # BPE without an unknown token
            return None
        # Unigram knows an id, not a token, and offers it nowhere but in its JSON.
        unknown = json.loads(self._tokenizer.to_str())["model"].get("unk_id")
        return None if unknown is None else int(unknown)

    def weight_mask(self) -> NDArray[np.float32]:
        """1 for the tokens that may carry weight, 0 for :attr:`special_ids`; shape ``[size]``."""
        import numpy as np

        mask = np.ones(self.size, dtype=np.float32)
        mask[sorted(self.special_ids)] = 0
        return mask

    @cached_property
    def first_ids(self) -> NDArray[np.int64]:
        """For each id the lowest id with the same key, itself where it has none; shape ``[size]``."""
        import numpy as np

        return np.array([self._ids.get(key, i) for i, key in enumerate(self.keys)], dtype=np.int64)

    def tokenizer(self) -> Tokenizer:
        """A copy of the tokenizer that neither truncates nor pads."""
        copy = type(self._tokenizer).from_str(self._tokenizer.to_str())
        copy.no_padding()
        copy.no_truncation()
        return copy

    @cached_property
    def ambiguous_keys(self) -> frozenset[str]:
        """Keys that more than one id decodes to."""
        return frozenset(key for key, count in Counter(self.keys).items() if key and count > 1)

    @property
    def is_ambiguous(self) -> bool:
        """Whether keys by token text would lose weights, because several ids decode to the same text."""
        return bool(self.ambiguous_keys)

    @property
    def key_format(self) -> KeyFormat:
        """The safe key for an index: ``"token"``, or ``"id"`` where token texts are ambiguous."""
        return "id" if self.is_ambiguous else "token"
