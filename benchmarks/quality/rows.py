"""The rows of the table: which encoders each compares, and what it claims."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.quality.data import ASIDE, DEV, FAQ_ENGLISH, FAQ_SWEDISH, MEDQUAD
from benchmarks.quality.measure import BUDGET, MAX_RATIO, Measured
from benchmarks.quality.runs import BM25, DENSE, Result
from benchmarks.quality.significance import as_they_are, at_equal_cost
from benchmarks.quality.variants import VARIANTS, at_weights

Results = Mapping[str, Sequence[Result]]
"""By variant, one result for each seed; BM25 and the dense teacher by their names."""


@dataclass(frozen=True)
class Claim:
    """What a row should show, and whether it does.

    Attributes:
        text: The claim.
        holds: The verdict; None where it cannot be judged because a training failed.
        evidence: The figures behind it.
    """

    text: str
    holds: bool | None
    evidence: str


@dataclass(frozen=True)
class Row:
    """A part of the table.

    Attributes:
        title: What it is about.
        variants: Encoders that are compared.
        references: BM25 or the dense teacher beside them.
        collections: On which.
        claims: What it should show.
    """

    title: str
    variants: tuple[str, ...]
    collections: tuple[str, ...]
    claims: Callable[[Results], list[Claim]]
    references: tuple[str, ...] = field(default=(BM25, DENSE))


def on(results: Results, name: str, collection: str) -> list[Measured]:
    """What was measured of a variant on a collection, over the seeds."""
    return [result.measured[collection] for result in results[name] if collection in result.measured]


def mean(values: Sequence[float]) -> float:
    """Their mean; NaN if there are none."""
    return statistics.fmean(values) if values else float("nan")


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation over the seeds; 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _ndcg(results: Results, name: str, collection: str) -> float:
    return mean([measured.ndcg for measured in on(results, name, collection)])


def _complete(results: Results, *names: str) -> bool:
    return all(result.failure is None for name in names for result in results[name])


def _over(text: str, value: float, limit: float) -> Claim:
    if value != value or limit != limit:
        return Claim(text, None, "not measured")
    return Claim(text, value > limit, f"{value:.3f}, needed {limit:.3f}")


def _from_nothing(results: Results) -> list[Claim]:
    after, dense = _ndcg(results, "minilm-stage-1", MEDQUAD), _ndcg(results, DENSE, MEDQUAD)
    return [
        _better("from a closed-form head above BM25", results, "minilm-stage-1", BM25, MEDQUAD),
        _over("from a closed-form head at least 90 % of the dense teacher", after, 0.9 * dense),
    ]


def _better(text: str, results: Results, name: str, baseline: str, collection: str) -> Claim:
    """Whether one variant is significantly better than another, over queries and seeds."""
    text = f"{text} on {collection}, significantly"
    ours, theirs = on(results, name, collection), on(results, baseline, collection)
    if not ours or not theirs:
        return Claim(text, None, "not measured")
    found = as_they_are(ours, theirs)
    return Claim(text, found.holds, str(found))


def _from_trained(results: Results) -> list[Claim]:
    return [
        _better("better than before", results, "tiny-stage-1", "tiny", MEDQUAD),
        _better("better than before", results, "tiny-faq", "tiny", FAQ_ENGLISH),
    ]


def _within_the_budget(results: Results, name: str, rule: str) -> list[Claim]:
    """92 % of the dense teacher on the English FAQ at 150 tokens a document and FLOPS 5."""
    found = [one.point(rule) for one in on(results, name, FAQ_ENGLISH)]
    least = 0.92 * _ndcg(results, DENSE, FAQ_ENGLISH)
    ndcg = mean([one.ndcg for one in found])
    return [
        _over(f"{name} ({rule}): 92 % of the dense teacher on {FAQ_ENGLISH}", ndcg, least),
        _at_most(f"{name}: at 150 tokens a document", [one.document_active for one in found], 150),
        _at_most(f"{name}: and FLOPS 5", [one.flops for one in found], 5),
    ]


def _at_equal_flops(text: str, results: Results, name: str, other: str) -> Claim:
    """Whether one recipe's curve over FLOPS, of three weights of its penalty, lies above another's."""
    text = f"{text} at equal FLOPS, significantly"
    sides = [[on(results, member, MEDQUAD) for member in at_weights(recipe)] for recipe in (name, other)]
    if not all(sides[0] + sides[1]) or not _complete(results, *at_weights(name), *at_weights(other)):
        return Claim(text, None, "not measured")
    ours, theirs = (list(zip(*side, strict=False)) for side in sides)
    found = at_equal_cost(ours, theirs)
    return (
        Claim(text, None, "they cost nowhere the same")
        if found is None
        else Claim(text, found.holds, str(found))
    )


def _idf_aware(results: Results) -> list[Claim]:
    return [_at_equal_flops("IDF-aware above plain FLOPS", results, "tiny-idf", "tiny-stage-1")]


def _inference_free(results: Results) -> list[Claim]:
    ours = on(results, "tiny-inference-free", MEDQUAD)
    theirs = on(results, "tiny-stage-1", MEDQUAD)
    if not ours or not theirs:
        return [Claim("an inference-free query is quicker to encode", None, "not measured")]
    quick = mean([found.query_ms or 0.0 for found in ours])
    slow = mean([found.query_ms or 0.0 for found in theirs])
    times = f"{quick:.2f} ms beside {slow:.2f} ms"
    return [
        Claim("an inference-free query is quicker to encode", quick < slow, times),
        _keeps(results, "tiny-inference-free", "tiny-stage-1", MEDQUAD),
        _keeps(results, "quick-inference-free", f"quick-{FAQ_ENGLISH}", FAQ_ENGLISH),
    ]


def _keeps(results: Results, ours: str, theirs: str, collection: str) -> Claim:
    share = _ndcg(results, ours, collection) / _ndcg(results, theirs, collection)
    text = f"it keeps 98 % of the symmetric encoder's nDCG@10 on {collection}"
    return Claim(text, None if share != share else share >= 0.98, f"{share:.1%}")


def _multilingual(results: Results) -> list[Claim]:
    return [
        _better("mBERT above the English vocabulary", results, "mbert", "english", name)
        for name in (FAQ_SWEDISH, "xquad-es", "xquad-zh")
    ]


_PRUNED = tuple(name for name, variant in VARIANTS.items() if MAX_RATIO in variant.rules)


def _pruning(results: Results) -> list[Claim]:
    claims = []
    for name in _PRUNED:
        found = on(results, name, MEDQUAD)
        if not found:
            claims.append(Claim(f"{name}: pruning 0.1", None, "not measured"))
            continue
        pairs = [(measured.point(MAX_RATIO), measured.point("none")) for measured in found]
        lost = mean([1 - pruned.ndcg / whole.ndcg for pruned, whole in pairs])
        saved = mean([1 - pruned.postings / whole.postings for pruned, whole in pairs])
        claims.append(Claim(f"{name}: pruning 0.1 costs under 1 % of nDCG@10", lost < 0.01, f"{lost:.2%}"))
        claims.append(Claim(f"{name}: pruning 0.1 saves over 30 % of postings", saved > 0.3, f"{saved:.1%}"))
    return claims


_ADAPTED = ("tiny-stage-1", "tiny-kept", "tiny-itself", f"quick-{FAQ_ENGLISH}")

FORGOTTEN = 0.01
"""Of nDCG@10, that an adapted encoder may lose on other subjects."""


def _forgetting(results: Results) -> list[Claim]:
    claims = []
    for name in _ADAPTED:
        for collection in ASIDE:
            text = f"{name} loses no more than {FORGOTTEN} on {collection}"
            after, before = on(results, name, collection), on(results, "tiny", collection)
            if not after or not before:
                claims.append(Claim(text, None, "not measured"))
                continue
            found = as_they_are(after, before)
            claims.append(Claim(text, found.mean >= -FORGOTTEN, str(found)))
    return claims


def _at_most(text: str, values: Sequence[float], limit: float) -> Claim:
    if not values:
        return Claim(text, None, "not measured")
    return Claim(text, mean(values) <= limit, f"{mean(values):.2f}, allowed {limit:g}")


def _auto(results: Results) -> list[Claim]:
    claims = [_better("auto above quick", results, f"auto-{name}", f"quick-{name}", name) for name in DEV]
    whole = _ndcg(results, f"auto-{MEDQUAD}", MEDQUAD)
    return [
        *claims,
        *_within_the_budget(results, f"auto-{FAQ_ENGLISH}", BUDGET),
        *_within_the_budget(results, "minilm-dense", BUDGET),
        _over(".60 on the whole of medquad-liveqa", whole, 0.6),
        _better("above BM25", results, f"auto-{MEDQUAD}", BM25, MEDQUAD),
        _better("above the dense teacher", results, f"auto-{MEDQUAD}", DENSE, MEDQUAD),
        _over("titles and sentences of the documents: .60", _ndcg(results, "titled", MEDQUAD), 0.6),
        _better("titles and sentences above BM25", results, "titled", BM25, MEDQUAD),
        _better("titles and sentences above MiniLM", results, "titled", DENSE, MEDQUAD),
        _better("labels of aligned texts above BM25", results, "aligned", BM25, FAQ_SWEDISH),
    ]


def _at_enough_steps(results: Results) -> list[Claim]:
    return [
        _better("two stages above one", results, "titled-stages", "titled", MEDQUAD),
        _better("mined negatives above none", results, "titled", "titled-unmined", MEDQUAD),
        _keeps(results, "titled-inference-free", "titled", MEDQUAD),
    ]


ROWS: dict[str, Row] = {
    "1": Row(
        "From a projection that knows nothing",
        ("minilm-lexical", "minilm-stage-1"),
        (MEDQUAD,),
        _from_nothing,
    ),
    "2": Row(
        "From a trained head",
        ("tiny", "tiny-stage-1", "tiny-faq"),
        (MEDQUAD, FAQ_ENGLISH),
        _from_trained,
    ),
    "3": Row(
        "IDF-aware FLOPS, at equal FLOPS",
        tuple(name for recipe in ("tiny-stage-1", "tiny-idf") for name in at_weights(recipe)),
        (MEDQUAD,),
        _idf_aware,
    ),
    "4": Row(
        "Inference-free",
        ("tiny-stage-1", "tiny-inference-free", f"quick-{FAQ_ENGLISH}", "quick-inference-free"),
        (MEDQUAD, FAQ_ENGLISH),
        _inference_free,
    ),
    "5": Row(
        "Multilingual",
        ("mbert", "english"),
        (FAQ_SWEDISH, "xquad-es", "xquad-zh"),
        _multilingual,
        references=(BM25,),
    ),
    "6": Row("Pruning", _PRUNED, (MEDQUAD,), _pruning),
    "7": Row("Forgetting", ("tiny", *_ADAPTED), (MEDQUAD, *ASIDE), _forgetting),
    "8": Row(
        "By oskit train auto",
        (
            *(f"{way}-{name}" for name in DEV for way in ("quick", "auto")),
            "titled",
            "minilm-dense",
            "aligned",
        ),
        tuple(DEV),
        _auto,
    ),
    "9": Row(
        "At enough steps: stage 2, mined negatives, inference-free",
        ("titled", "titled-stages", "titled-unmined", "titled-inference-free"),
        (MEDQUAD,),
        _at_enough_steps,
    ),
}
