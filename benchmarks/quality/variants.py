"""The encoders of the benchmark: each a base as it is, or a recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.models import BERT_BASE, MBERT, SavedModel, bert_tiny, minilm
from benchmarks.quality.bases import first_layers
from benchmarks.quality.data import FAQ_ENGLISH, FAQ_SWEDISH, MEDQUAD, MEDQUAD_ALL_QUERIES, Workspace
from benchmarks.quality.measure import MAX_RATIO, TOP_K
from oskit.training.recipe.tree import merge

Recipe = dict[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much one training does.

    Attributes:
        steps: Of the optimizer.
        batch_size: Pairs in a step.
        length: Tokens that the encoder and its teachers read of a text.
    """

    steps: int
    batch_size: int
    length: int


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        name: ``cpu``: an hour for all rows and three seeds on two cores. ``gpu``: larger.
        max_length: Tokens that every encoder and teacher reads of a text when it is measured.
        tiny, small, base: Training of encoders of these sizes.
        faq: Training of the tiny encoder on the FAQ, which has few pairs.
        languages: Training on two languages, of encoders of ``base``'s size.
        layers: Layers of BERT-base and mBERT that are kept; None for all.
        corpus, pairs, queries: See :class:`Workspace`.
    """

    name: str
    max_length: int
    tiny: Effort
    faq: Effort
    small: Effort
    base: Effort
    languages: Effort
    layers: int | None
    corpus: int
    pairs: int
    queries: int


CPU = Scale(
    name="cpu",
    max_length=64,
    tiny=Effort(64, 32, 48),
    faq=Effort(80, 32, 64),
    small=Effort(40, 32, 32),
    base=Effort(40, 16, 32),
    languages=Effort(16, 16, 48),
    layers=4,
    corpus=1000,
    pairs=4000,
    queries=100,
)
_LONG = Effort(2000, 64, 256)
GPU = Scale(
    name="gpu",
    max_length=256,
    tiny=_LONG,
    faq=_LONG,
    small=_LONG,
    base=_LONG,
    languages=_LONG,
    layers=None,
    corpus=0,
    pairs=0,
    queries=0,
)
SCALES = {scale.name: scale for scale in (CPU, GPU)}


@dataclass(frozen=True)
class Variant:
    """An encoder of the benchmark.

    Attributes:
        name: As the results are called.
        label: For people.
        collections: What it is measured on.
        recipe: Its training, given the workspace, the scale and the folder of another variant of the same
            seed; None for ``base`` as it is.
        base: The folder that is loaded where there is no training.
        head: ``lexical`` for a closed-form head instead of the random one, without training.
        seeded: Whether it is made with every seed: not where a seed changes nothing, or costs too much.
        rules: By which rules its documents are also pruned when it is measured.
        needs: The variant whose encoder this one's training uses.
    """

    name: str
    label: str
    collections: tuple[str, ...]
    recipe: Callable[[Workspace, Scale, Path | None], Recipe] | None = None
    base: Callable[[Scale], Path] | None = None
    head: str = "random"
    seeded: bool = True
    rules: tuple[str, ...] = ()
    needs: str | None = None


def _distilled(encoder: Path, data: list[Path], work: Workspace, effort: Effort) -> Recipe:
    """What all trainings have in common: stage 1, the dense teacher's view of the whole batch."""
    return {
        "encoder": {"name": str(encoder), "max_length": effort.length, "dropout": 0.0},
        "data": {"train": [str(path) for path in data], "negatives": None},
        "teachers": [{"kind": "dense", "name": str(minilm()), "required": True, "max_length": effort.length}],
        "labels": {"scale": 20.0, "normalize": "none"},
        "loss": [
            {"kind": "kl", "temperature": 1.0, "candidates": "batch"},
            {"kind": "info_nce", "weight": 0.3},
        ],
        "sparsity": {"documents": {"weight": 0.01}, "queries": {"weight": 0.02}},
        "schedule": {
            "steps": effort.steps,
            "batch_size": effort.batch_size,
            "learning_rate": 5e-5,
            "evaluate_every": effort.steps,
            "keep_checkpoints": 1,
            "precision": "auto",
        },
        "evaluation": {"collection": str(work.dev_folder())},
    }


def _tiny(**changes: Any) -> Callable[[Workspace, Scale, Path | None], Recipe]:
    def recipe(work: Workspace, scale: Scale, _: Path | None) -> Recipe:
        made = _distilled(bert_tiny(), [work.pairs_file()], work, scale.tiny)
        return merge(merge(made, {"schedule": {"learning_rate": 2e-4}}), changes)

    return recipe


def _tiny_stage_2(work: Workspace, scale: Scale, first: Path | None) -> Recipe:
    """The published second stage: scores of both teachers normalised for each query and averaged."""
    changes = {
        "teachers": {
            "dense": {"weight": 0.5},
            "sparse": {"name": str(first), "weight": 0.5, "required": True},
        },
        "labels": {"normalize": "minmax", "scale": 20.0},
    }
    return merge(_tiny()(work, scale, None), changes)


def _tiny_faq(work: Workspace, scale: Scale, _: Path | None) -> Recipe:
    made = _distilled(bert_tiny(), [work.faq_file(FAQ_ENGLISH)], work, scale.faq)
    return merge(made, {"schedule": {"learning_rate": 2e-4}})


def _minilm(head: str) -> Callable[[Workspace, Scale, Path | None], Recipe]:
    def recipe(work: Workspace, scale: Scale, _: Path | None) -> Recipe:
        made = _distilled(minilm(), [work.pairs_file()], work, scale.small)
        changes = {
            "encoder": {"head": head},
            # Scores of a closed-form head lie some 16 times as far apart as 20 cosines. To learn another
            # scale first would cost most of its weights.
            "labels": {"scale": 320.0},
            "loss": {"kl": {"temperature": 16.0}, "info_nce": {"temperature": 16.0}},
            "schedule": {"learning_rate": 5e-5, "head_learning_rate": 3e-4},
            # Its vectors start with thousands of tokens; more weight would prune what the teacher knows.
            "sparsity": {"documents": {"weight": 0.003}, "queries": {"weight": 0.006}},
        }
        return merge(made, changes)

    return recipe


_IDF_FLOPS: Recipe = {"sparsity": {"documents": {"kind": "idf_flops"}, "queries": {"kind": "idf_flops"}}}

_WIDE: Recipe = {
    # Scores five times as far apart take longer vectors, most of whose tokens count little.
    "labels": {"scale": 100.0},
    "loss": {"kl": {"temperature": 5.0}, "info_nce": {"temperature": 5.0}},
    "sparsity": {"documents": {"weight": 0.03}, "queries": {"weight": 0.05}},
}


def _fitted(recipe: Recipe) -> Recipe:
    """From a masked language model, which cannot search yet: its head is fitted to the texts."""
    changes = {
        "encoder": {"head": "lexical"},
        "schedule": {"learning_rate": 1e-4},
        # Its scores start about twice as far apart as 20 cosines.
        "labels": {"scale": 40.0},
        "loss": {"kl": {"temperature": 2.0}, "info_nce": {"temperature": 2.0}},
        # It starts with few tokens, and has to find more.
        "sparsity": {"documents": {"weight": 0.0005}, "queries": {"weight": 0.0005}},
    }
    return merge(merge(recipe, _IDF_FLOPS), changes)


def _base(work: Workspace, scale: Scale, _: Path | None) -> Recipe:
    encoder = first_layers(BERT_BASE, scale.layers, work)
    return _fitted(_distilled(encoder, [work.pairs_file()], work, scale.base))


def _two_languages(model: SavedModel, learning_rate: float) -> Callable[..., Recipe]:
    """Swedish questions of the FAQ and English pairs; no dense teacher here reads Swedish.

    Of 5e-5, 1e-4 and 2e-4 each model has the learning rate that suits it: in so few steps the English vectors
    stay long at half of theirs, and mBERT's loss rises again at twice its own.
    """

    def recipe(work: Workspace, scale: Scale, _: Path | None) -> Recipe:
        data = [work.faq_file(FAQ_SWEDISH), work.pairs_file()]
        encoder = first_layers(model, scale.layers, work)
        made = _fitted(_distilled(encoder, data, work, scale.languages))
        changes = {
            "data": {"train": [{"path": str(data[0])}, {"path": str(data[1]), "limit": 400}]},
            "loss": [{"kind": "info_nce", "temperature": 1 / 0.15}],
            "schedule": {"learning_rate": learning_rate},
        }
        return merge(made, changes)

    return recipe


_SWEDISH_AND_OTHERS = (FAQ_SWEDISH, "xquad-es", "xquad-zh")
_MINED = {"data": {"negatives": {"per_query": 1, "depth": 50}}}
_INFERENCE_FREE = {
    "encoder": {"architecture": "inference-free", "train_query_weights": True, "activation": "log1p_relu"},
    "sparsity": {"queries": None},
}

_RATIO = (MAX_RATIO,)
_ALL_LEVELS = (MAX_RATIO, *TOP_K)

# Random and untrained heads have one seed: with thousands of weights for each text, each takes minutes.
VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "minilm-random",
            "MiniLM, random head, untrained",
            (MEDQUAD,),
            base=lambda _: minilm(),
            seeded=False,
        ),
        Variant(
            "minilm-lexical",
            "MiniLM, closed-form head, untrained",
            (MEDQUAD,),
            base=lambda _: minilm(),
            head="lexical",
            seeded=False,
        ),
        Variant(
            "minilm-random-stage-1",
            "MiniLM from a random head, stage 1",
            (MEDQUAD,),
            _minilm("random"),
            seeded=False,
        ),
        Variant(
            "minilm-stage-1",
            "MiniLM from a closed-form head, stage 1",
            (MEDQUAD,),
            _minilm("lexical"),
            rules=_RATIO,
        ),
        Variant(
            "tiny",
            "BERT-tiny SPLADE as found",
            (MEDQUAD, MEDQUAD_ALL_QUERIES, FAQ_ENGLISH),
            base=lambda _: bert_tiny(),
            seeded=False,
            rules=_RATIO,
        ),
        Variant(
            "tiny-stage-1",
            "BERT-tiny, stage 1",
            (MEDQUAD, MEDQUAD_ALL_QUERIES),
            _tiny(),
            rules=_ALL_LEVELS,
        ),
        Variant("tiny-faq", "BERT-tiny, trained on the FAQ", (FAQ_ENGLISH,), _tiny_faq),
        Variant(
            "tiny-stage-2",
            "BERT-tiny, stage 2",
            (MEDQUAD,),
            _tiny_stage_2,
            rules=_ALL_LEVELS,
            needs="tiny-stage-1",
        ),
        Variant(
            "tiny-idf",
            "BERT-tiny, IDF-aware FLOPS",
            (MEDQUAD,),
            _tiny(**_IDF_FLOPS),
            rules=_ALL_LEVELS,
        ),
        Variant(
            "tiny-wide",
            "BERT-tiny, scores five times as far apart",
            (MEDQUAD,),
            _tiny(**merge(_IDF_FLOPS, _WIDE)),
            rules=_RATIO,
        ),
        Variant(
            "tiny-mined",
            "BERT-tiny, mined negatives",
            (MEDQUAD,),
            _tiny(**_MINED),
            rules=_ALL_LEVELS,
        ),
        Variant(
            "tiny-inference-free",
            "BERT-tiny, inference-free",
            (MEDQUAD,),
            _tiny(**_INFERENCE_FREE),
            rules=_RATIO,
        ),
        Variant(
            "mbert",
            "mBERT, first layers",
            _SWEDISH_AND_OTHERS,
            _two_languages(MBERT, 5e-5),
        ),
        Variant(
            "english",
            "BERT-base, first layers, the same texts",
            _SWEDISH_AND_OTHERS,
            _two_languages(BERT_BASE, 1e-4),
        ),
        Variant("bert-base", "BERT-base, first layers, stage 1", (MEDQUAD,), _base),
    )
}
