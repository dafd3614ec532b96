"""The encoders of the benchmark: each a base as it is, or a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.models import BERT_BASE, BGE_SMALL, E5_SMALL, MBERT, SavedModel, bert_tiny, dense, minilm
from benchmarks.quality.bases import first_layers
from benchmarks.quality.data import ASIDE, DEV, FAQ_ENGLISH, FAQ_SWEDISH, MEDQUAD, Workspace, staged
from benchmarks.quality.measure import BUDGET, MAX_RATIO
from oskit.training.auto.choose import choose
from oskit.training.auto.look import Named
from oskit.training.loop.events import Listener
from oskit.training.recipe.file import load_recipe
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
        name: ``cpu``: some hours for all rows and three seeds on two cores. ``gpu``: larger. ``toy``: to try
            the benchmark itself, in minutes; its figures say nothing.
        tiny, small: Training of encoders of these sizes.
        faq: Training on the FAQ, which has few pairs.
        languages: Training on two languages, of encoders of BERT-base's size.
        layers: Layers of BERT-base and mBERT that are kept; None for all.
        minutes: What `oskit train auto` may take; of the FAQ, which has few pairs, a third.
        pairs: See :class:`Workspace`.
        corpus, queries: The same; 0 for all but in ``toy``.
    """

    name: str
    tiny: Effort
    faq: Effort
    small: Effort
    languages: Effort
    layers: int | None
    minutes: float
    pairs: int = 0
    corpus: int = 0
    queries: int = 0


_LONG = Effort(2000, 64, 256)
_TOY = Effort(2, 4, 16)
SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            name="cpu",
            tiny=Effort(200, 32, 64),
            faq=Effort(200, 32, 96),
            small=Effort(150, 32, 64),
            languages=Effort(60, 16, 64),
            layers=4,
            minutes=30,
        ),
        Scale("gpu", _LONG, _LONG, _LONG, _LONG, layers=None, minutes=30),
        Scale("toy", _TOY, _TOY, _TOY, _TOY, layers=1, minutes=0.02, pairs=60, corpus=600, queries=4),
    )
}


Make = Callable[[Workspace, Scale], Recipe]
"""A recipe, given the workspace and the scale."""


@dataclass(frozen=True)
class Variant:
    """An encoder of the benchmark.

    Attributes:
        name: As the results are called.
        label: For people.
        collections: What it is measured on.
        recipe: Its training; None for ``base`` as it is.
        base: The folder that is loaded where there is no training.
        head: ``lexical`` for a closed-form head instead of the random one, without training; ``dense`` for
            that of a dense model, fitted to the first collection.
        seeded: Whether it is made with every seed: not where a seed changes nothing, or costs too much.
        rules: By which rules its documents are also pruned when it is measured.
    """

    name: str
    label: str
    collections: tuple[str, ...]
    recipe: Make | None = None
    base: Callable[[Scale], Path] | None = None
    head: str = "random"
    seeded: bool = True
    rules: tuple[str, ...] = ()


def _dense(effort: Effort, **more: Any) -> Recipe:
    return {"kind": "dense", "name": str(minilm()), "required": True, "max_length": effort.length, **more}


def _loss(temperature: float = 1.0, contrastive: float = 0.3) -> list[Recipe]:
    """The dense teacher's view of the whole batch, and InfoNCE at the same temperature."""
    return [
        {"kind": "kl", "temperature": temperature, "candidates": "batch"},
        {"kind": "info_nce", "weight": contrastive, "temperature": temperature},
    ]


def _distilled(encoder: Path, data: list[Path], work: Workspace, effort: Effort) -> Recipe:
    """What all trainings have in common: stage 1, the dense teacher's view of the whole batch."""
    return {
        "encoder": {"name": str(encoder), "dropout": 0.0},
        "data": {"train": [str(path) for path in data]},
        "teachers": [_dense(effort)],
        "labels": {"scale": 20.0, "normalize": "none"},
        "loss": _loss(),
        "sparsity": {"documents": {"weight": 0.01}, "queries": {"weight": 0.02}},
        "schedule": {
            "steps": effort.steps,
            "batch_size": effort.batch_size,
            "max_length": effort.length,
            "learning_rate": 5e-5,
            "evaluate_every": effort.steps,
            "keep_checkpoints": 1,
        },
        "evaluation": {"collection": str(work.watched_folder())},
    }


def _tiny(**changes: Any) -> Make:
    def recipe(work: Workspace, scale: Scale) -> Recipe:
        made = _distilled(bert_tiny(), [work.pairs_file()], work, scale.tiny)
        return merge(merge(made, {"schedule": {"learning_rate": 2e-4}}), changes)

    return recipe


def _tiny_faq(work: Workspace, scale: Scale) -> Recipe:
    made = _distilled(bert_tiny(), [work.faq_file(FAQ_ENGLISH)], work, scale.faq)
    return merge(made, {"schedule": {"learning_rate": 2e-4}})


def _tiny_itself(work: Workspace, scale: Scale) -> Recipe:
    """The encoder as it was is a teacher too, on the same texts."""
    teachers = [_dense(scale.tiny, weight=0.7), {"kind": "itself", "weight": 0.3}]
    return merge(_tiny()(work, scale), {"teachers": teachers, "labels": {"normalize": "minmax"}})


def _minilm(work: Workspace, scale: Scale) -> Recipe:
    made = _distilled(minilm(), [work.pairs_file()], work, scale.small)
    changes = {
        "encoder": {"head": "lexical"},
        # Scores of a closed-form head lie some 16 times as far apart as 20 cosines. To learn another
        # scale first would cost most of its weights.
        "labels": {"scale": 320.0},
        "loss": _loss(temperature=16.0),
        "schedule": {"learning_rate": 5e-5, "head_learning_rate": 3e-4},
        # Its vectors start with thousands of tokens; more weight would prune what the teacher knows.
        "sparsity": {"documents": {"weight": 0.003}, "queries": {"weight": 0.006}},
    }
    return merge(made, changes)


def _quick(name: str, **changes: Any) -> Make:
    """What comes along for everybody, as it is or with changes."""

    def recipe(work: Workspace, scale: Scale) -> Recipe:
        overrides = [
            f"data.train={work.training_file(name)}",
            f"encoder.name={bert_tiny()}",
            f"teachers.dense.name={minilm()}",
            *(["schedule.steps=2"] if scale.name == "toy" else []),
        ]
        return merge(_values(load_recipe("quick", overrides)), changes)

    return recipe


def _titled(**changes: Any) -> Make:
    """``quick`` on what is searched: titles and sentences of documents as queries, teachers that read titles.

    Documents stay as they are indexed, behind their titles, and no question of any pair is trained on.
    """

    def recipe(work: Workspace, scale: Scale) -> Recipe:
        source = {
            "path": str(work.corpus_file(MEDQUAD)),
            "kind": "documents",
            "queries": {"kinds": ["title", "span"], "max_length": 200, "remove": 0},
        }
        titles = {"texts": str(work.titles_file(MEDQUAD)), "required": True}
        teachers = [
            {"kind": "dense", "name": str(dense(BGE_SMALL)), "max_length": 128, "weight": 0.7, **titles},
            {"kind": "bm25", "language": "english", "weight": 0.3, **titles},
        ]
        negatives = {"per_query": 20, "depth": 50, "positive_share": None, "sampling": "random"}
        steps = 2 if scale.name == "toy" else 800
        given = {
            "encoder": {"keep": 0.3, "max_length": 64, "dropout": 0.0},
            "data": {"train": [source], "negatives": negatives, "sampling": {"negatives": 2, "top": 0}},
            "teachers": teachers,
            "labels": {"normalize": "minmax"},
            "sparsity": {"documents": {"weight": 0.0006}, "queries": {"weight": 0.0003}},
            "schedule": {"steps": steps, "max_length": 64, "evaluate_every": steps},
            "evaluation": {"collection": str(work.watched_folder())},
        }
        return merge(merge(_quick(MEDQUAD)(work, scale), given), changes)

    return recipe


def _titled_stages(work: Workspace, scale: Scale) -> Recipe:
    """The same steps in two halves; in the second the encoder of the first is a teacher, half and half."""
    recipe = _titled()(work, scale)
    half = {"steps": recipe["schedule"]["steps"] // 2, "evaluate_every": recipe["schedule"]["steps"] // 2}
    others = [{**one, "weight": one["weight"] / 2} for one in recipe["teachers"]]
    first = {"kind": "sparse", "name": "{stage:1}", "weight": 0.5, "required": True, "max_length": 64}
    second = {
        "encoder": {"name": "{stage:1}", "keep": 0.0},
        "teachers": [*others, first],
        "schedule": {"learning_rate": 1e-4},
    }
    return merge(recipe, {"schedule": half, "stages": [{}, second]})


def _auto(name: str) -> Make:
    """What `oskit train auto` chooses in the same time, among the models at hand; once, and for all seeds.

    Of the FAQ it is given the answers too, which are searched: their sentences are queries beside the pairs'.
    """

    def recipe(work: Workspace, scale: Scale) -> Recipe:
        path = work.work / f"auto-{scale.name}-{name}-for-{work.on}.yaml"
        if not path.is_file():
            models = Named(
                (str(bert_tiny()), str(minilm())),
                tuple(map(str, (minilm(), dense(BGE_SMALL), dense(E5_SMALL)))),
            )
            faq = name != MEDQUAD
            data = [str(work.training_file(name))]
            if faq:
                data.append(f"{{path: {work.documents_file(name)}, queries: {{remove: 0}}}}")
            found = choose(
                [f"data.train=[{', '.join(data)}]", *(_at_the_end(work) if faq else ())],
                minutes=scale.minutes / 3 if faq else scale.minutes,
                beside=models,
                listener=Listener(),
            )
            with staged(path) as staging:
                staging.write_text(found.yaml, encoding="utf-8")
        return _values(load_recipe(path))

    return recipe


def _at_the_end(work: Workspace) -> list[str]:
    """All of few pairs are trained on: none is held out to choose a step by."""
    return [f"evaluation.collection={work.watched_folder()}", "schedule.evaluate_every=100000"]


def _values(recipe: Any) -> Recipe:
    return dict(recipe.model_dump(mode="json", exclude_unset=True))


def _aligned(work: Workspace, scale: Scale) -> Recipe:
    """``quick`` on Swedish by labels of the aligned English texts and of BM25.

    What BERT-tiny knows is English: nothing of it is kept. Its pieces of Swedish words are a rough stemmer.
    """
    english = {"texts": str(work.english_file()), "required": True, "max_length": 128}
    teachers = [
        *({"kind": "dense", "name": str(name), **english} for name in (minilm(), dense(E5_SMALL))),
        {"kind": "bm25", "language": "swedish"},
    ]
    steps = 2 if scale.name == "toy" else 300
    changes = {
        "encoder": {"keep": 0.0},
        "teachers": teachers,
        "labels": {"normalize": "minmax", "scale": 30.0},
        "schedule": {"steps": steps, "evaluate_every": steps},
        "evaluation": {"collection": str(work.watched_folder())},
    }
    return merge(_quick(FAQ_SWEDISH)(work, scale), changes)


_IDF_FLOPS: Recipe = {"sparsity": {"documents": {"kind": "idf_flops"}, "queries": {"kind": "idf_flops"}}}

_WIDE: Recipe = {
    # Scores five times as far apart take longer vectors, most of whose tokens count little.
    "labels": {"scale": 100.0},
    "loss": _loss(temperature=5.0),
    "sparsity": {"documents": {"weight": 0.03}, "queries": {"weight": 0.05}},
}


def _two_languages(model: SavedModel, learning_rate: float) -> Make:
    """Swedish questions of the FAQ and English pairs, without a teacher.

    Each model starts from nothing but its fitted head. Of 5e-5, 1e-4 and 2e-4 each has the learning rate that
    suits it: in so few steps the English vectors stay long at half of theirs, and mBERT's loss rises again at
    twice its own.
    """

    def recipe(work: Workspace, scale: Scale) -> Recipe:
        data = [work.faq_file(FAQ_SWEDISH), work.pairs_file()]
        encoder = first_layers(model, scale.layers, work)
        made = merge(_distilled(encoder, data, work, scale.languages), _IDF_FLOPS)
        changes = {
            "encoder": {"head": "lexical"},
            "data": {"train": [{"path": str(data[0])}, {"path": str(data[1]), "limit": 400}]},
            "loss": [{"kind": "info_nce", "temperature": 1 / 0.15}],
            "schedule": {"learning_rate": learning_rate},
            # It starts with few tokens, and has to find more.
            "sparsity": {"documents": {"weight": 0.0005}, "queries": {"weight": 0.0005}},
        }
        return merge(made, changes)

    return recipe


_SWEDISH_AND_OTHERS = (FAQ_SWEDISH, "xquad-es", "xquad-zh")
_INFERENCE_FREE: Recipe = {
    "encoder": {"architecture": "inference-free", "train_query_weights": True, "activation": "log1p_relu"},
    "sparsity": {"queries": None},
}

_RATIO = (MAX_RATIO,)

WEIGHTS = {"third": 1 / 3, "triple": 3.0}
"""Of the penalty, beside a recipe's own, for its curve over FLOPS."""


def at_weights(name: str) -> tuple[str, ...]:
    """The variants that are one recipe with each weight of its penalty."""
    return (name, *(f"{name}-{label}" for label in WEIGHTS))


def _with_curve(variant: Variant) -> Iterator[Variant]:
    yield variant
    for label, factor in WEIGHTS.items():
        make = variant.recipe
        assert make is not None

        def recipe(work: Workspace, scale: Scale, make: Make = make, factor: float = factor) -> Recipe:
            made = make(work, scale)
            sides = {
                side: {"weight": factor * part["weight"]} for side, part in made["sparsity"].items() if part
            }
            return merge(made, {"sparsity": sides})

        yield replace(
            variant,
            name=f"{variant.name}-{label}",
            label=f"{variant.label}, {label} penalty",
            recipe=recipe,
        )


_CURVES = (
    Variant("tiny-stage-1", "BERT-tiny, stage 1", (MEDQUAD, *ASIDE), _tiny(), rules=_RATIO),
    Variant("tiny-idf", "BERT-tiny, IDF-aware FLOPS", (MEDQUAD,), _tiny(**_IDF_FLOPS), rules=_RATIO),
)

VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        Variant(
            "minilm-lexical",
            "MiniLM, closed-form head, untrained",
            (MEDQUAD,),
            base=lambda _: minilm(),
            head="lexical",
            seeded=False,
        ),
        Variant(
            "minilm-dense",
            "MiniLM, dense head, untrained",
            (FAQ_ENGLISH, *ASIDE),
            base=lambda _: minilm(),
            head="dense",
            rules=(BUDGET,),
        ),
        Variant(
            "minilm-stage-1",
            "MiniLM from a closed-form head, stage 1",
            (MEDQUAD,),
            _minilm,
            rules=_RATIO,
        ),
        Variant(
            "tiny",
            "BERT-tiny SPLADE as found",
            (MEDQUAD, FAQ_ENGLISH, *ASIDE),
            base=lambda _: bert_tiny(),
            seeded=False,
            rules=_RATIO,
        ),
        *(made for variant in _CURVES for made in _with_curve(variant)),
        Variant("tiny-kept", "BERT-tiny, half of it kept", (MEDQUAD, *ASIDE), _tiny(encoder={"keep": 0.5})),
        Variant("tiny-itself", "BERT-tiny, itself as a teacher beside", (MEDQUAD, *ASIDE), _tiny_itself),
        Variant("tiny-faq", "BERT-tiny, trained on the FAQ", (FAQ_ENGLISH,), _tiny_faq),
        Variant(
            "tiny-wide",
            "BERT-tiny, scores five times as far apart",
            (MEDQUAD,),
            _tiny(**merge(_IDF_FLOPS, _WIDE)),
            rules=_RATIO,
        ),
        Variant(
            "tiny-inference-free",
            "BERT-tiny, inference-free",
            (MEDQUAD,),
            _tiny(**_INFERENCE_FREE),
            rules=_RATIO,
        ),
        *(
            Variant(f"quick-{name}", "quick", (name, *(ASIDE if name == FAQ_ENGLISH else ())), _quick(name))
            for name in DEV
        ),
        Variant(
            "quick-inference-free",
            "quick, inference-free",
            (FAQ_ENGLISH,),
            _quick(FAQ_ENGLISH, **_INFERENCE_FREE),
        ),
        Variant("titled", "quick on the documents, labels by titles", (MEDQUAD, *ASIDE), _titled()),
        Variant("titled-stages", "the same in two stages", (MEDQUAD,), _titled_stages),
        Variant("titled-unmined", "no mined negatives", (MEDQUAD,), _titled(data={"negatives": None})),
        Variant(
            "titled-inference-free",
            "inference-free",
            (MEDQUAD,),
            _titled(
                encoder={"architecture": "inference-free", "train_query_weights": True},
                sparsity={"queries": None},
            ),
        ),
        *(
            Variant(f"auto-{name}", "auto", (name,), _auto(name), rules=() if name == MEDQUAD else (BUDGET,))
            for name in DEV
        ),
        Variant("aligned", "quick, labels of the English texts and BM25", (FAQ_SWEDISH,), _aligned),
        Variant("mbert", "mBERT, first layers", _SWEDISH_AND_OTHERS, _two_languages(MBERT, 5e-5)),
        Variant(
            "english",
            "BERT-base, first layers, the same texts",
            _SWEDISH_AND_OTHERS,
            _two_languages(BERT_BASE, 1e-4),
        ),
    )
}
