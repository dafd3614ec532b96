"""A few queries as a reader wants to see them: their tokens, their hits, and why they match."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from oskit.evaluation.live.result import Example, ExampleHit
from oskit.evaluation.offline.metrics import Qrels, Run

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder, TokenWeights

SHOWN_TOKENS = 10
SHOWN_HITS = 3
SHOWN_CHARACTERS = 240


def choose_examples(run: Run, count: int) -> list[str]:
    """``count`` queries with hits, spread evenly over the run: not the best ones."""
    answered = [query for query, hits in run.items() if hits]
    step = len(answered) / max(1, count)
    places = (int((number + 0.5) * step) for number in range(count if answered else 0))
    return list(dict.fromkeys(answered[place] for place in places))


def build_examples(
    chosen: Sequence[str],
    run: Run,
    queries: Mapping[str, str],
    qrels: Qrels,
    passages: Mapping[str, Sequence[str]],
    encoder: TextEncoder,
) -> list[Example]:
    """Examples of the queries ``chosen``, with their hits in the cluster's ``run``.

    Args:
        passages: Of the documents among the first hits of the chosen queries: the texts that have a vector,
            of which the best is shown.
        encoder: Tells the weights of both sides; a token's contribution is their product.
    """
    hits = {query: list(run[query].items())[:SHOWN_HITS] for query in chosen}
    names = sorted({document for found in hits.values() for document, _ in found} & set(passages))
    texts = [(name, text) for name in names for text in passages[name]]
    weights = encoder.document_weights([text for _, text in texts])
    parts: dict[str, list[tuple[str, TokenWeights]]] = {}
    for (name, text), vector in zip(texts, weights, strict=True):
        parts.setdefault(name, []).append((text, vector))
    tokens = dict(zip(chosen, encoder.query_weights([queries[query] for query in chosen]), strict=True))

    def shown(query: str, rank: int, document: str, score: float) -> ExampleHit:
        found = [(contributions(tokens[query], vector), text) for text, vector in parts.get(document, ())]
        matched, text = max(found, key=lambda each: sum(dict(each[0]).values()), default=([], ""))
        return ExampleHit(
            rank=rank,
            document_id=document,
            score=score,
            text=shorten(text),
            relevant=qrels.get(query, {}).get(document, 0) > 0,
            matched=matched[:SHOWN_TOKENS],
        )

    return [
        Example(
            query_id=query,
            query=queries[query],
            tokens=list(tokens[query].items())[:SHOWN_TOKENS],
            hits=[shown(query, rank, *hit) for rank, hit in enumerate(hits[query], start=1)],
        )
        for query in chosen
    ]


def contributions(query: TokenWeights, document: TokenWeights) -> list[tuple[str, float]]:
    """Tokens that both sides have, with the product of their weights, largest first."""
    shared = [(token, weight * document[token]) for token, weight in query.items() if token in document]
    return sorted(shared, key=lambda item: -item[1])


def shorten(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """``text`` in one line, cut at a word if it is longer than ``limit`` characters."""
    line = " ".join(text.split())
    if len(line) <= limit:
        return line
    cut = line[:limit].rsplit(" ", 1)[0]
    return f"{cut} …"
