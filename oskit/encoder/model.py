"""The torch encoder: a sentence-transformers ``SparseEncoder`` that knows what the cluster would answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from sentence_transformers import SparseEncoder
from torch import Tensor, nn

from oskit.archive.batching import checked_texts, encode_in_batches, token_budget, weigh_each_once
from oskit.archive.idf import merged_idf
from oskit.archive.text_encoder import SERVER_MAX_LENGTH, Activation, Architecture
from oskit.archive.token_weights import TokenWeightsMixin
from oskit.archive.truncation import Truncation
from oskit.encoder.anatomy import Anatomy, dissect, inference
from oskit.encoder.head.projection import forget_mark
from oskit.encoder.head.streaming import HandedOn, attach, streamed
from oskit.encoder.loader.hub import HubOptions
from oskit.encoder.loader.load import LoadOptions, load
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.encoder.loader.report import LoadAttempt, LoadReport, Tier
from oskit.encoder.loader.tiers import DEFAULT_BASE
from oskit.encoder.pipeline import Precision, arithmetic, on, sparse_rows, tokens_at_once
from oskit.encoder.surgery.survival import check_survives
from oskit.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.archive.vocabulary import Vocabulary


class NeuralSparseEncoder(TokenWeightsMixin, SparseEncoder):
    """A sparse encoder over a tokenizer's vocabulary; see :class:`oskit.archive.text_encoder.TextEncoder`.

    ``encode``, ``encode_query`` and ``encode_document`` are those of sentence-transformers and return what it
    returns: weights of [CLS] and [SEP] included, prompts and ``max_active_dims`` applied.
    ``document_matrix``, ``query_matrix``, ``document_weights`` and ``query_weights`` return what the cluster
    returns once the encoder is exported: special tokens weigh nothing, at most 512 tokens are read.

    Load one with :meth:`from_pretrained`.

    Documents and queries go through the streaming vocabulary head (:mod:`oskit.encoder.head.streaming`), in
    training as well: the same numbers without the tensor of all logits. What it does not fit goes the usual
    way.

    Attributes:
        streaming: Whether to use the streaming vocabulary head.
        precision: What :meth:`document_matrix` computes in: ``"fp32"`` (as the weights are), ``"bf16"``
            (autocast), or ``"auto"``, which is bf16 on a GPU that has it and fp32 elsewhere.
    """

    streaming: bool = True
    precision: Precision = "fp32"

    own_max_length: int | None = None
    """What :attr:`max_length` was before ``max_seq_length`` changed it, as far as the loader knows."""

    _counted: Truncation | None = None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        base: str | Path = DEFAULT_BASE,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_folder: str | Path | None = None,
        local_files_only: bool = False,
        device: str | None = None,
        trust_remote_code: bool = False,
        activation: Activation | None = None,
        max_seq_length: int | None = None,
        seed: int = 0,
        fallback: bool = True,
    ) -> Self:
        """Load an encoder: from a folder, else from the Hub, else the base with a random projection.

        docs/loading.md says what each tier understands, and what is an error rather than the next tier.

        Args:
            name_or_path: A folder, or a repository on the Hugging Face Hub.
            base: The same for the last tier; its own head, if it has one, is not used.
            revision: Branch, tag or commit on the Hub.
            token: Token for the Hub; None takes ``HF_TOKEN`` or the login, False sends none.
            cache_folder: Cache of the Hub; None takes huggingface_hub's.
            local_files_only: Use the cache and never the network, as ``HF_HUB_OFFLINE=1`` does.
            device: Where torch puts it; None takes the best there is.
            trust_remote_code: Run Python code that the encoder brings. Read it first.
            activation: ``relu`` (log1p(relu(x)), OpenSearch's v1 and v2) or ``log1p_relu`` (one more log1p,
                v3). None takes what the encoder's files say, ``relu`` where they say nothing.
            max_seq_length: Tokens that a text is truncated to; None takes the encoder's own.
            seed: Of a random projection.
            fallback: Whether a random projection may stand in for a missing one. With False an encoder that
                is not found, or has no head, is an error.

        Raises:
            EncoderNotFoundError: No tier has it.
            BrokenEncoderError: It is there, but truncated, misshapen or incomplete.
            EncoderError: There is no memory left for it, or a file of it cannot be read.
            MissingDependencyError: It needs a package that is not installed.
            HubAccessError: The Hub wants a login, or access to a gated repository.
            UntrainedEncoderError: It has no head and ``fallback`` is False.
            UsageError: An argument cannot be right.

        Warns:
            CachedCopyWarning: A copy in the cache is used, because the Hub did not give what was asked for.
            UntrainedProjectionWarning: The projection to the vocabulary is random.
        """
        options = LoadOptions(
            base=str(base),
            hub=HubOptions(revision, token, cache_folder, local_files_only, code=trust_remote_code),
            device=device,
            activation=activation,
            max_seq_length=max_seq_length,
            seed=seed,
            fallback=fallback,
        )
        encoder, report = load(cls, str(name_or_path), options)
        encoder.__dict__["_report"] = report
        return encoder

    def forward(self, input: dict[str, Tensor], **kwargs: Any) -> dict[str, Any]:
        """Features of a batch to features with ``sentence_embedding``, ``[batch, vocabulary]``."""
        with self._head():
            output: dict[str, Any] = super().forward(input, **kwargs)
            return output

    def _head(self, activate: bool = True) -> AbstractContextManager[HandedOn | None]:
        """In which context modules must run to go through the streaming head, or not."""
        # A compiler or a tracer wants one path without surprises, and fuses on its own.
        tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if tracing or not self.streaming:
            return nullcontext()
        self._attach_head()
        return streamed(activate=activate)

    def _attach_head(self) -> None:
        with suppress(EncoderError):  # an encoder of other parts has no such head
            attach(self.anatomy)

    def _replicate_for_data_parallel(self) -> Self:
        # Replicas live for one batch: what is found out about the head has to stay with the original.
        if self.streaming:
            self._attach_head()
        replica: Self = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        return replica

    @property
    def anatomy(self) -> Anatomy:
        """The encoder taken apart, as it is now.

        Raises:
            EncoderError: Documents or queries do not go through it as OpenSearch needs it.
        """
        return dissect(self)

    @property
    def load_report(self) -> LoadReport:
        """How this encoder was found and what it is; the head counts as pretrained once it was trained."""
        report: LoadReport | None = self.__dict__.get("_report")
        if report is None:
            attempt = LoadAttempt("local", "memory", "loaded", "built from modules, not by from_pretrained")
            return self.describe(
                name="modules",
                tier="local",
                source="memory",
                folder="",
                revision=None,
                layout="modules",
                attempts=(attempt,),
            )
        return replace(report, head="random" if self.is_untrained else "pretrained")

    @property
    def is_untrained(self) -> bool:
        """Whether the projection to the vocabulary is still the random one that the loader made up."""
        return self.anatomy.is_untrained

    def describe(
        self,
        *,
        name: str,
        tier: Tier,
        source: str,
        folder: str,
        revision: str | None,
        layout: str,
        attempts: tuple[LoadAttempt, ...],
    ) -> LoadReport:
        """A report on this encoder as it is now, with what the loader knows of its origin."""
        parameters = list(self.parameters())
        anatomy = self.anatomy
        return LoadReport(
            name=name,
            tier=tier,
            source=source,
            folder=folder,
            revision=revision,
            layout=layout,
            head="random" if self.is_untrained else "pretrained",
            architecture=anatomy.architecture,
            activation=anatomy.pooling.activation_function,
            pooling=anatomy.pooling.pooling_strategy,
            model_type=str(anatomy.config.model_type),
            vocabulary_size=self.vocabulary.size,
            hidden_size=anatomy.hidden_size,
            layers=anatomy.layers,
            parameters=sum(parameter.numel() for parameter in parameters),
            bytes=sum(parameter.numel() * parameter.element_size() for parameter in parameters),
            max_length=self.max_length,
            attempts=attempts,
            notes=tuple(self._notes()),
        )

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save to a folder, as ``save_pretrained`` does; it opens in plain sentence-transformers.

        Raises:
            EncoderError: What was changed on it would not be there after loading; nothing is written.
            UsageError: The folder cannot be written.
        """
        self.check_saving()
        if not self.is_untrained:
            forget_mark(self.anatomy.config)
        try:
            with quiet_libraries():
                super().save(str(path), *args, **kwargs)
        except OSError as error:
            raise UsageError(
                f"cannot save the encoder to {path}: {error.strerror or error}",
                hint="Give a folder that can be written, on a disk with room.",
            ) from error

    def check_saving(self) -> None:
        """Refuse what would be something else after saving and loading.

        Raises:
            EncoderError: Names the weights that would be lost.
        """
        check_survives(self.modules())

    def _notes(self) -> list[str]:
        notes = []
        prompts = sorted(name for name, text in self.prompts.items() if text)
        if prompts:
            notes.append(
                f"The cluster does not prepend prompts; this encoder has some ({', '.join(prompts)})."
            )
        if self.max_active_dims is not None:
            notes.append(
                f"encode() keeps the {self.max_active_dims} largest weights; on the cluster prune with top_k."
            )
        own = self.anatomy.transformer.max_seq_length
        if own is not None and own > SERVER_MAX_LENGTH:
            notes.append(f"It reads {own} tokens; the cluster reads {SERVER_MAX_LENGTH} of a text.")
        if self.vocabulary.is_ambiguous:
            notes.append("Several token ids decode to the same text: use token ids as keys in the index.")
        return notes

    def with_modules(self, modules: Sequence[nn.Module]) -> Self:
        """An encoder of other modules, on the same device."""
        return type(self)(modules=list(modules), similarity_fn_name="dot", device=str(self.device))

    @property
    def architecture(self) -> Architecture:
        """``"symmetric"``, or ``"inference-free"`` when queries are a table of token weights."""
        return self.anatomy.architecture

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Token ids and the cluster's keys."""
        return dissect(self, self.anatomy.config.name_or_path or "this encoder").vocabulary

    @property
    def max_length(self) -> int:
        """Tokens that a text is truncated to on the cluster, special tokens included."""
        return self.anatomy.max_length

    @property
    def truncation(self) -> Truncation:
        """What of all texts so far, documents and queries alike, was too long to be encoded.

        Counts what goes through the methods of :class:`oskit.archive.text_encoder.TextEncoder`.
        """
        return Truncation(self.max_length) + (self._counted or Truncation(0))

    def tokenize_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document as the model gets them; they count as :attr:`truncation` does."""
        return self._token_ids(checked_texts(texts))

    def query_idf(self) -> NDArray[np.float32] | None:
        """The weight of each token in a query, ``[vocabulary.size]``, special tokens 0; None if symmetric.

        Raises:
            BrokenEncoderError: The table is wider than the encoder's output.
        """
        return self.anatomy.query_weights(self.vocabulary)

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero.

        Computed in :attr:`precision`; on a GPU only the positive weights leave it. Where several processes
        evaluate together, while they train, each computes its share.

        Args:
            texts: Texts of any length; long ones are truncated to :attr:`max_length`, an empty one has no
                weights. No prompt is prepended, the cluster knows none.

        Raises:
            UsageError: ``texts`` is no list of texts, or :attr:`precision` is none.
        """
        texts = checked_texts(texts)
        # Set while the trainer evaluates, since sentence-transformers 6.2.
        together = getattr(self, "_distributed_inference", None)
        if together is None:
            return self._documents(texts)
        from scipy.sparse import vstack

        return vstack(together(texts, documents=True), format="csr")

    def _inference(self, inputs: list[Any], *, documents: bool = False, **kwargs: Any) -> Any:
        """As the base class, which has processes share the texts; of documents their matrix, in a list."""
        return [self._documents(inputs)] if documents else super()._inference(inputs, **kwargs)

    def _documents(self, texts: Sequence[str]) -> csr_matrix:
        with inference(self):
            self._attach_head()
            anatomy, vocabulary = self.anatomy, self.vocabulary
            weights = next(anatomy.model.parameters())
            never = torch.tensor(sorted(vocabulary.special_ids), device=weights.device)

            def run(ids: Sequence[Sequence[int]]) -> csr_matrix:
                with torch.inference_mode(), arithmetic(self.precision, weights), self._head(False) as head:
                    features = anatomy.features(ids)
                    for module in anatomy.document_modules:
                        features = module(features)
                    return sparse_rows(features["sentence_embedding"], never, head.logarithms if head else 0)

            return encode_in_batches(
                texts,
                tokenize=self._token_ids,
                run=run,
                width=vocabulary.size,
                budget=self.token_budget,
                over=on(weights.device),
            )

    @property
    def blocks_at_once(self) -> int:
        """How many times as many documents an exact ranking should hand to it at once as to one CPU."""
        together = getattr(self, "_distributed_inference", None)
        return (8 if self.device.type == "cuda" else 1) * (1 if together is None else together.world_size)

    @property
    def token_budget(self) -> int:
        """Tokens of documents that are computed at once, padding included.

        With the streaming head hidden states are the largest tensors, else the logits.
        """
        anatomy = self.anatomy
        if not (self.streaming and attach(anatomy) and anatomy.pooling.pooling_strategy == "max"):
            return token_budget(anatomy.width)
        return tokens_at_once(anatomy.hidden_size, self.device)

    def query_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero.

        An inference-free encoder gives each token of a query its weight once, however often it occurs. Of ids
        that the cluster gives one key the largest weight counts, as there.

        Raises:
            UsageError: ``texts`` is no list of texts.
        """
        idf = self.query_idf()
        if idf is None:
            return self.document_matrix(texts)
        if self.vocabulary.is_ambiguous:
            idf = merged_idf(idf, self.vocabulary)
        return weigh_each_once(self._token_ids(checked_texts(texts)), idf)

    def _token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, special tokens around them; nothing at all for a text without tokens."""
        anatomy = self.anatomy
        encodings = anatomy.tokenize(texts)
        cut = Truncation(self.max_length).with_texts(encodings)
        self._counted = self.truncation + cut  # at once: other threads may count too
        return [encoding.ids if len(encoding.ids) > anatomy.around else [] for encoding in encodings]
