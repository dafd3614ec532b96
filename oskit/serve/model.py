"""An archive that is served: its ways for documents and for queries, and the proof that it is itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson

from oskit.archive.agreement import agree, is_quantized, largest_difference
from oskit.archive.encoder import CHARACTERS_A_TOKEN
from oskit.errors import ParityError
from oskit.serve.bodies import Asked, Kind
from oskit.serve.lane import Lane
from oskit.serve.refusals import Refusal
from oskit.serve.writers import Style, Writers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from oskit.archive.archive import Archive
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.serve.metrics import Metrics

PROBE = "How long does it take to get a building permit?"
"""For archives whose manifest has no probes."""

PROBE_TIMEOUT_S = 60.0

AT_ONCE_CHARACTERS = 2_000
"""Of queries that need no model, which are tokenized within a millisecond; more of them wait their turn."""


@dataclass(frozen=True)
class _Probe:
    kind: Kind
    text: str
    weights: dict[str, float]
    style: Style
    archive: Archive
    whole: bool
    """Whether all weights of the text are known, not only the heaviest."""


class Model:
    """An archive that is served.

    Args:
        name: In paths.
        encoder: The archive, opened.
        threads: Batches of documents that are computed at once.
        limit: Texts of each kind that may be under way.
        metrics: Told what happens.
    """

    def __init__(
        self, name: str, encoder: ArchiveEncoder, *, threads: int, limit: int, metrics: Metrics
    ) -> None:
        self.name = name
        self.encoder = encoder
        writers = Writers(encoder.vocabulary)
        self._writers = {"WORD": writers.word, "TOKEN_ID": writers.token_id, "TEI": writers.tei}
        self._lanes: dict[Kind, Lane] = {}
        wanted: dict[Kind, int] = {}
        if encoder.archive.kind == "encoder":
            wanted["documents"] = threads
        if encoder.query is not None or encoder.architecture == "symmetric":
            wanted["queries"] = 1
        for kind, number in wanted.items():
            steps = encoder.document_steps() if kind == "documents" else encoder.query_steps()
            lane = Lane(
                steps,
                threads=number,
                limit=limit,
                watcher=metrics.lane(name, kind),
                name=f"{name}-{kind}",
                nice=kind == "documents",
            )
            self._lanes[kind] = lane
            metrics.watch(name, kind, lane)
        metrics.truncated.labels(name).set_function(lambda: encoder.truncation.cut)
        self._probes = list(self._found_probes())

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it encodes."""
        return tuple(self._lanes)

    def encode(self, asked: Asked) -> Future[list[bytes]]:
        """Queue texts; a piece of JSON for each comes back.

        Raises:
            Refusal: It does not encode such texts, or too many are under way.
        """
        lane = self._lanes.get(asked.kind)
        if lane is None:
            other = "/v1/sparse" if asked.kind == "queries" else "/v1/sparse/query"
            raise Refusal("Validation", f"{self.name} does not encode {asked.kind}; it answers {other}")
        if len(asked.texts) == 1 and self.encoder.architecture == "symmetric":
            # Who has one text for the model may be waiting for a search; documents come several at a time.
            lane = self._lanes["queries"]
        needs_model = asked.kind == "documents" or self.encoder.query is None
        if not needs_model and sum(map(len, asked.texts)) <= AT_ONCE_CHARACTERS:
            return lane.at_once(asked.texts, self._writers[asked.style])
        return lane.submit(asked.texts, self._writers[asked.style])

    def refuse_long(self, texts: Sequence[str]) -> None:
        """Refuse texts that would be cut off.

        Raises:
            Refusal: One is longer than the encoder reads.
        """
        limit = self.encoder.max_length
        for text in texts:
            start = text[: CHARACTERS_A_TOKEN * limit]
            given, less = len(self._whole_texts.encode(start).ids), "more than " if start != text else ""
            if given <= limit and start != text:  # of few tokens for its size
                given, less = len(self._whole_texts.encode(text).ids), ""
            if given > limit:
                wanted = f"`inputs` must have less than {limit} tokens"
                raise Refusal("Validation", f"Input validation error: {wanted}. Given: {less}{given}")

    @cached_property
    def _whole_texts(self) -> Tokenizer:
        return self.encoder.vocabulary.tokenizer()

    def prove(self) -> None:
        """Encode all probes, the way that requests go.

        Raises:
            ParityError: A weight is not the archive's.
        """
        for probe in self._probes:
            self._check(probe, self._ask(probe).result(PROBE_TIMEOUT_S))

    def probe(self) -> list[Future[list[bytes]]]:
        """Have one probe of each kind encoded before all that waits; :meth:`judge` says what of it."""
        return [self._ask(probe) for probe in self._first_probes()]

    def judge(self, answers: Sequence[list[bytes]]) -> None:
        """Compare what :meth:`probe` brought.

        Raises:
            ParityError: A weight is not the archive's.
        """
        for probe, answer in zip(self._first_probes(), answers, strict=True):
            self._check(probe, answer)

    def close(self) -> None:
        """Answer what is under way, then end the threads."""
        for lane in self._lanes.values():
            lane.close()

    def _first_probes(self) -> list[_Probe]:
        return list({probe.kind: probe for probe in reversed(self._probes)}.values())

    def _ask(self, probe: _Probe) -> Future[list[bytes]]:
        return self._lanes[probe.kind].submit([probe.text], self._writers[probe.style], urgent=True)

    def _check(self, probe: _Probe, answer: list[bytes]) -> None:
        given: dict[str, float] = orjson.loads(answer[0])
        if not probe.whole:
            least = min(probe.weights.values(), default=0.0)
            given = {key: weight for key, weight in given.items() if key in probe.weights or weight > least}
        manifest = probe.archive.manifest
        pruned = manifest is not None and manifest.prune is not None
        narrow = is_quantized(manifest) or "bf16" in (self.encoder.runtime or "")
        if not agree(probe.weights, given, quantized=narrow, pruned=pruned):
            token, _ = largest_difference(probe.weights, given, pruned=pruned)
            raise ParityError(
                f"{self.name} does not compute what its archive should: for {probe.text[:40]!r} the token "
                f"{token!r} weighs {given.get(token, 0):.4f} instead of {probe.weights.get(token, 0):.4f}",
                hint="Export the encoder again, or choose another --backend",
            )

    def _found_probes(self) -> Iterator[_Probe]:
        for kind in self._lanes:
            queries = kind == "queries"
            archive = (self.encoder.query if queries else None) or self.encoder.archive
            manifest = archive.manifest
            style: Style = "WORD" if self.encoder.vocabulary.key_format == "token" else "TOKEN_ID"
            if manifest is not None and manifest.probes:
                style = "WORD" if manifest.key_format == "token" else "TOKEN_ID"
                for probe in manifest.probes:
                    yield _Probe(kind, probe.text, dict(probe.weights), style, archive, whole=False)
            else:
                run = self.encoder.query_weights if queries else self.encoder.document_weights
                (weights,) = run([PROBE], key="token" if style == "WORD" else "id")
                yield _Probe(kind, PROBE, weights, style, archive, whole=True)

    def info(self) -> dict[str, Any]:
        """What it is, in TEI's words and, where TEI has none, in ours."""
        encoder, archive = self.encoder, self.encoder.archive
        budget = encoder.document_steps().budget if "documents" in self._lanes else None
        source = archive.manifest.source.model if archive.manifest else None
        return {
            "model_id": self.name,
            "model_sha": archive.sha256,
            "model_dtype": "float32",
            "model_type": {"embedding": {"pooling": "splade"}},
            "max_input_length": encoder.max_length,
            "max_batch_tokens": budget,
            "max_batch_requests": None,
            "tokenization_workers": len(self._lanes),
            "auto_truncate": True,
            "sha": None,
            "docker_label": None,
            "version": archive.version,
            "source": source,
            "architecture": encoder.architecture,
            "kinds": self.kinds,
            "key_format": encoder.vocabulary.key_format,
            "vocabulary_size": encoder.vocabulary.size,
            "query_sha": encoder.query.sha256 if encoder.query else None,
            "runtime": encoder.runtime,
        }
