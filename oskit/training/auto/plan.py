"""From facts to a recipe, with a reason for each choice: a function that reads nothing and runs no model.

The numbers in capitals are guesses from short runs; row 8 of ``benchmarks/quality`` is there to measure them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from oskit.errors import TrainingError
from oskit.training.auto.facts import LENGTHS, TAUGHT, Facts, StudentSeen, TeacherSeen, longest_read

BATCH = 32
TRAINING = 0.7
"""Share of the time for labels and steps; the rest is for looking, and for measuring."""

MEASURING = 0.15
EVALUATIONS = 5
"""While it trains; as many figures choose the best checkpoint."""

EPOCHS = {True: 20, False: 12}
"""Passes over the data, after which an encoder knows it by heart: one that can search (a small one, mostly),
and one that has to learn it."""

KEPT = 0.3
"""Of an encoder that can search, in the average of weights: better on few pairs, and forgets less."""

CAN_SEARCH = 0.5
"""Share of BM25's nDCG@10 from which an encoder counts as trained for retrieval."""

TRIED = 160
"""Steps of an encoder that has to learn it, after which there must be new texts: more were not tried."""

TUNED = 80
"""The same of a dense model by directions, which retrieves well before the first step."""

BETTER = 1.05
"""Over the nDCG@10 of the best encoder whose tokens are words; less is not worth tokens that mean nothing."""

ENOUGH = {True: 60, False: 100}
"""Steps that are worth it: of an encoder that can search, and of one that has to learn it."""

FEW = 5000
"""Queries up to which a larger encoder that has to learn it is worth a try; more teach a small one well."""

FITTED = 16.0
"""So many times as far apart lie scores of a fitted projection; another scale would have to be learned."""

DIRECTIONS = 30.0
"""The same of a head that says what a dense model says."""

WORSE_TEACHER = 0.8
"""Share of BM25's nDCG@10 under which a dense model has nothing to teach."""

BESIDE, FEW_TEACHERS = 0.9, 3
"""Share of the best dense model's nDCG@10 from which others teach beside it, and how many in all, where
queries are few and each is looked at often."""

HELD_OUT = (40, 500)
DOCUMENT_TOKENS = 150
"""Active dimensions of a document at most; of short ones 2.5 for each of their tokens."""


@dataclass
class Plan:
    """A recipe without the sources of its data, and why, in a line, by the key that it is about."""

    recipe: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    share: float = 1.0  # of the queries, as many as fit into the time

    def _place(self, key: str) -> tuple[dict[str, Any], str]:
        *parts, name = key.split(".")
        place = self.recipe
        for part in parts:
            place = place.setdefault(part, {})
        return place, name

    def put(self, key: str, value: Any, why: str | None = None) -> None:
        """Set ``part.key`` of the recipe."""
        place, name = self._place(key)
        place[name] = value
        if why is not None:
            self.reasons[key] = why

    def drop(self, key: str) -> None:
        """Leave a key to others."""
        place, name = self._place(key)
        place.pop(name, None)
        self.reasons.pop(key, None)


@dataclass(frozen=True)
class _Training:
    """One student in the time that there is."""

    student: StudentSeen
    length: int  # tokens of a text
    batch: int
    steps: int
    queries: int  # as many as fit into the time

    @property
    def enough(self) -> float:
        """Steps over those that are worth it, at most 1."""
        return min(1.0, self.steps / ENOUGH[self.student.ndcg > 0])


def plan(facts: Facts) -> Plan:
    """Choose the encoder, its teachers, lengths, sparsity and steps.

    Raises:
        TrainingError: There is no encoder to train.
    """
    if not facts.students:
        raise TrainingError(
            "there is no encoder on this machine to train",
            hint="Name one: --set encoder.name=FOLDER, or a repository on the Hugging Face Hub.",
        )
    facts = _without_chance(facts)
    teachers = _teachers(facts)
    trainings = [_in_the_time(facts, student, teachers) for student in facts.students]
    many = facts.queries > FEW and any(one.ndcg and not one.strange for one in facts.students)
    chosen = max(
        trainings,
        key=lambda one: (
            not one.student.strange,
            not (many or one.student.strange) or one.student.ndcg > 0,
            one.student.directions,
            one.enough,
            one.student.parameters,
        ),
    )
    found = Plan(share=chosen.queries / facts.queries)
    found.put("name", "auto")
    found.put("description", "Chosen by `oskit train auto`; edit it, and train it again by its name.")
    _choose_encoder(found, facts, chosen, [one for one in trainings if one is not chosen])
    _choose_data(found, facts, chosen)
    _choose_teachers(found, facts, chosen, teachers)
    _choose_sparsity(found, chosen)
    _choose_schedule(found, facts, chosen)
    _choose_evaluation(found, facts, chosen)
    return found


def _without_chance(facts: Facts) -> Facts:
    """The same, where an encoder that finds little counts as one that was not trained to search; and one by
    directions, unless pairs are few and none whose tokens are words finds nearly as much."""
    words = max((one.ndcg for one in facts.students if not one.dense), default=0.0)

    def counts(one: StudentSeen) -> bool:
        fair = not one.dense or (facts.queries <= FEW and not one.strange and one.ndcg >= BETTER * words)
        return fair and one.ndcg >= CAN_SEARCH * facts.bm25

    students = (one if counts(one) else replace(one, ndcg=0.0) for one in facts.students)
    return replace(facts, students=tuple(students))


def _teachers(facts: Facts) -> list[TeacherSeen]:
    """The dense models that have something to teach, the best one first."""
    able = sorted(facts.teachers, key=lambda one: -one.ndcg)
    able = [one for one in able if one.ndcg >= max(WORSE_TEACHER * facts.bm25, BESIDE * able[0].ndcg)]
    return able[: FEW_TEACHERS if facts.queries <= FEW else 1]


def _in_the_time(facts: Facts, student: StudentSeen, teachers: list[TeacherSeen]) -> _Training:
    mean, long = student.document_tokens
    most = longest_read(student.parameters, student.max_length)
    length = min(max(LENGTHS[0], 32 * math.ceil(long / 32)), most)
    tokens = min(mean, length) + min(student.query_tokens, length)
    queries = facts.queries
    batch = max(2, min(BATCH, queries // 4))
    step = batch * tokens / student.learns
    read = min(mean, length, TAUGHT) + min(student.query_tokens, length, TAUGHT)
    label = sum(read / teacher.reads for teacher in teachers)
    time = 60 * facts.minutes * TRAINING
    steps = (time - queries * label) / step
    if steps * batch < queries:  # what is not trained on needs no labels
        steps = time / (step + batch * label)
        queries = min(queries, max(2 * batch, int(steps * batch)))
    worth = EPOCHS[student.ndcg > 0] * queries / batch
    if tried := _tried(student):
        worth = min(worth, max(tried, queries / batch))
    return _Training(student, length, batch, max(1, int(min(steps, worth))), queries)


def _tried(student: StudentSeen) -> int | None:
    """Steps after which there must be new texts; None for an encoder that can search by words."""
    if student.directions:
        return TUNED
    return None if student.ndcg else TRIED


def _choose_encoder(found: Plan, facts: Facts, chosen: _Training, others: list[_Training]) -> None:
    student, bm25 = chosen.student, facts.bm25
    found.put("encoder.name", student.name, "")  # the first of all; why is known below
    if student.directions:
        why = (
            f"made sparse, this dense model has nDCG@10 {student.ndcg:.2f} on a trial of your data, BM25 "
            f"{bm25:.2f}. ITS TOKENS ARE NAMES OF DIRECTIONS: they explain no hit"
        )
        found.put("encoder.head", "dense", "lexical begins with words instead, and finds less")
    elif student.ndcg:
        why = f"it can search: nDCG@10 {student.ndcg:.2f} on a trial of your data, BM25 {bm25:.2f}"
        if not student.strange:  # what it knows of another language is no use here
            found.put("encoder.keep", KEPT, "so that it does not forget what it could do before")
    else:
        why = "it cannot search yet: its head is fitted to your texts, so that it begins with their words"
        found.put("encoder.head", "lexical")
    if student.strange:
        why += (
            "; ITS VOCABULARY HARDLY KNOWS THE LANGUAGE: name an encoder of it (--set encoder.name=...), or "
            "search with BM25 beside it (docs/hybrid.md)"
        )
    told = "".join(f"; {_why_not(one, chosen)}" for one in others)
    found.reasons["encoder.name"] = why + told
    found.put("encoder.dropout", 0.0)


def _why_not(one: _Training, chosen: _Training) -> str:
    name = one.student.name
    if one.student.strange and not chosen.student.strange:
        return f"{name} hardly knows the language"
    if chosen.student.ndcg and not one.student.ndcg and one.enough >= chosen.enough:
        return f"{name} cannot search yet, and so many pairs teach {chosen.student.name} well"
    if one.enough < chosen.enough:
        return f"{name} would learn {one.steps:,} steps in the time, too few"
    return f"{name} is smaller"


def _choose_data(found: Plan, facts: Facts, chosen: _Training) -> None:
    least, most = HELD_OUT
    queries = chosen.queries
    held = max(1, min(most, max(least, facts.queries // 10), queries // 4))
    if queries < facts.queries:
        found.reasons["data.train"] = (
            f"ONLY {queries:,} of {facts.queries:,} queries, drawn at random: no time for more (--minutes)"
        )
    elif facts.made:
        found.reasons["data.train"] = (
            f"{facts.made:,} of {facts.queries:,} queries are sentences of documents. Name all that are "
            "to be searched, if you have not: data.train=[pairs, {path: documents, queries: {remove: 0}}]"
        )
    share = float(f"{held / queries:.3g}")  # by significant digits: of a million queries it is not 0
    found.put("data.hold_out", share, f"{held:,} of {queries:,} queries tell what it is worth")


def _choose_teachers(found: Plan, facts: Facts, chosen: _Training, able: list[TeacherSeen]) -> None:
    fitted = chosen.student.projected and not chosen.student.ndcg
    wide = FITTED if fitted else DIRECTIONS if chosen.student.directions else 1.0
    contrast = {"kind": "info_nce", "weight": 2.5 if fitted else 0.3, "temperature": wide}
    if facts.scored > 0.9 and facts.candidates >= 1:
        why = (
            f"the scores that came with the data, of {facts.candidates:.0f} candidates of a query in the mean"
        )
        found.put("teachers", [{"kind": "stored"}], why)
        found.put("data.sampling.negatives", min(7, math.ceil(facts.candidates)))
        found.put("labels.scale", 30.0 * wide)
        found.put("loss", [{"kind": "kl", "temperature": 2.0 * wide}, contrast])
        return
    teachers: list[dict[str, Any]] = []
    told: list[str] = []
    narrow = {"precision": "bfloat16"} if facts.bfloat16 else {}
    length = min(chosen.length, TAUGHT)
    for teacher in able:
        teachers.append(
            {"kind": "dense", "name": teacher.name, "max_length": length, "required": True, **narrow}
        )
        told.append(f"{teacher.name} has nDCG@10 {teacher.ndcg:.2f} on the trial")
    for one in facts.teachers:
        if one.ndcg < WORSE_TEACHER * facts.bm25:
            told.append(f"{one.name} has {one.ndcg:.2f}, which is no teacher")
    if not able or facts.bm25 >= WORSE_TEACHER * able[0].ndcg:
        teachers.append({"kind": "bm25", "language": facts.language, "weight": 0.3 if able else 1.0})
        told.append(f"BM25 ({facts.language or 'of plain words'}) has {facts.bm25:.2f}")
    found.put("teachers", teachers, "; ".join(told))
    found.put("labels.scale", 20.0 * wide)
    found.put("loss", [{"kind": "kl", "candidates": "batch", "temperature": wide}, contrast])


def _choose_sparsity(found: Plan, chosen: _Training) -> None:
    mean, _ = chosen.student.document_tokens
    target = round(min(DOCUMENT_TOKENS, max(32.0, 2.5 * mean)))
    why = f"{target} tokens of a document at most: yours have {mean:.0f} in the mean"
    if chosen.student.directions:
        why = f"--prune max_ratio:0.3 in export, and top_k:{DOCUMENT_TOKENS} where you ingest"
        found.put("sparsity.documents", {"weight": 2.0}, why)  # KL times T^2 is large
        found.put("sparsity.queries", {"weight": 2.0})
        return
    documents: dict[str, Any] = {"kind": "idf_flops", "weight": 0.001, "target": target}
    queries = {"kind": "idf_flops", "weight": 0.002}
    if chosen.student.ndcg:
        found.put("sparsity.documents", documents, why)
        found.put("sparsity.queries", queries)
        return
    why = f"a fitted head has hundreds: --prune max_ratio:0.3 in export, and top_k:{target} where you ingest"
    found.put("sparsity.documents", {"kind": "idf_flops", "weight": 0.003}, why)
    found.put("sparsity.queries", {"kind": "idf_flops", "weight": 0.01})


def _choose_schedule(found: Plan, facts: Facts, chosen: _Training) -> None:
    student = chosen.student
    passes = chosen.steps * chosen.batch / chosen.queries
    why = f"{TRAINING:.0%} of {facts.minutes:g} minutes on {facts.machine}, {passes:.1f} passes over the data"
    if chosen.steps == _tried(student):
        why = f"{passes:.1f} passes over the data; more steps were never tried on so few"
    elif passes > (most := EPOCHS[student.ndcg > 0]) - 1:
        why = f"{most} passes over the data; more would teach it by heart"
    found.put("schedule.steps", chosen.steps, why)
    found.put("schedule.batch_size", chosen.batch)
    long = student.document_tokens[1]
    why = f"nine of ten documents have at most {long:.0f} tokens; afterwards it reads {student.max_length}"
    found.put("schedule.max_length", chosen.length, why)
    millions = student.parameters / 1e6
    rate = 2e-4 if millions < 10 else 1e-4 if millions < 40 else 5e-5
    if student.directions:  # a little: it knows much
        rate = 2e-5
        found.put("schedule.head_learning_rate", 1e-3)
    found.put("schedule.learning_rate", rate, f"for {millions:.0f} million parameters")
    if not student.ndcg:
        found.put("schedule.head_learning_rate", 5 * rate)
    if facts.bfloat16:
        found.put("schedule.precision", "bf16", "this CPU multiplies it in hardware")
    found.put("schedule.evaluate_every", math.ceil(chosen.steps / EVALUATIONS))


def _choose_evaluation(found: Plan, facts: Facts, chosen: _Training) -> None:
    documents, student = facts.documents, chosen.student
    time = 60 * facts.minutes * MEASURING
    fit = int(time * student.reads / (student.document_tokens[0] * (EVALUATIONS + 2)))
    if fit < documents:
        why = f"of {documents:,} documents, so that measuring takes {MEASURING:.0%} of the time"
        found.put("evaluation.corpus", max(1000, fit), why)
