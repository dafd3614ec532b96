"""Build a release beside the living one, prove it, and put it in its place.

At every step before the alias moves, the living release is untouched; the move is one call of the cluster;
and after it nothing is needed for readers. What loads and what proves is given from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import ExistingIndex, look, size_and_writes
from oskit.cluster.index.pipeline import called_first, pipeline_name
from oskit.cluster.index.pruning import Pruned, prune, tidy
from oskit.cluster.index.releases import Alias, move, note_move, read_alias, release_name
from oskit.cluster.ingest.accounting import IngestReport
from oskit.cluster.ingest.building import Building, Proof
from oskit.cluster.ingest.default_pipeline import DEFAULT, pipeline_of, put_pipeline
from oskit.cluster.ingest.load import RESUME
from oskit.cluster.ingest.missing import MOST_GONE
from oskit.cluster.ingest.plan import LoadPlan
from oskit.errors import IndexingError, OskitError, VerificationError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

MOST_REFUSED = 0.01
"""Largest share of refused records with which a release goes live, where nobody says."""

_SEEN_TO = ("index.hidden", DEFAULT)
"""Settings of a living release that are no loss: the alias shows what is hidden, and the default pipeline is
looked at by itself."""


class TooManyRefused(IndexingError):
    """More records were refused than a release may lack."""

    exit_code: ClassVar[int] = 10


@dataclass
class ReleaseReport:
    """A release that is living now.

    Attributes:
        alias: What people ask for.
        index: The release.
        before: What the alias stood for before; None for the first.
        load: What became of the documents.
        proof: What it was found to be.
        pruned: What went.
        notes: What a person should know, one line each.
    """

    alias: str
    index: str
    before: str | None
    load: IngestReport
    proof: Proof
    pruned: Pruned = field(default_factory=Pruned)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {"release": self.index, "alias": self.alias, "before": self.before, **asdict(self.proof)}
        return {**told, "pruned": self.pruned.to_dict(), "notes": self.notes}


def release(
    client: OpenSearch,
    name: str,
    *,
    plan: Callable[[str], LoadPlan],
    load: Callable[[str], IngestReport],
    prove: Callable[[str, str | None, IngestReport], Proof],
    encoder_name: str | None = None,
    keep: int | None = None,
    most_refused: float = MOST_REFUSED,
    force: bool = False,
    notify: Callable[[str], None] = lambda _: None,
) -> ReleaseReport:
    """Build a new index and have an alias stand for it, in the place of the one that it stands for now.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        name: The alias; there need not be one yet.
        plan: What a load into an index of this name will do.
        load: Loads the index of this name, which is there and empty.
        prove: Told the new index, the living one and what became of the documents: whether it is right, and
            good enough. What it raises keeps the release from going live, too.
        encoder_name: For the index's name.
        keep: How many releases stay after the move, the living one included; None deletes none.
        most_refused: Largest share of the records that may be refused, 0 to 1.
        force: Also if the living release was written to meanwhile, or had many more documents.
        notify: Told, in one line, what a person should know.

    Raises:
        IndexingError: The name is an index, another release is being built, nothing was loaded, the living
            one was written to or has moved meanwhile, or the cluster refuses.
        TooManyRefused: See ``most_refused``.
        VerificationError: It is not right, or not good enough. It stays to be looked at, until the next one.
        OskitError: What loading raises.
    """
    alias = read_alias(client, name, releasing=True)
    tidy(client, alias, notify)
    planned = plan(release_name(name, encoder_name))
    _check_routing(alias, planned)
    living = _State.of(client, alias)
    if living is not None and (lost := living.not_kept(planned, name)):
        notify(f"Not kept of {alias.index}, which is living: {' and '.join(lost)}")
    with Building(client, alias, planned) as building:
        report = _loaded(load, building.name)
        _check_loaded(report, most_refused)
        proof = prove(building.name, alias.index, report)
        building.keep("refused" if proof.failures else "ready", proof, report)
        if proof.failures:
            more = f" (and {len(proof.failures) - 1} more)" if len(proof.failures) > 1 else ""
            raise VerificationError(
                f"{building.name} does not go live: {proof.failures[0]}{more}",
                hint=f"{alias.name} stays as it is. Look at {building.name}; the next release deletes it",
            )
        objections = _objections(client, alias, living, building.name, notify) if living else []
        for why in objections:
            if not force:
                raise IndexingError(
                    f"{building.name} is ready and does not go live: {why}",
                    hint=f"Load it again with --yes, or take it as it is: oskit rollback {name} "
                    f"{building.name}",
                )
            notify(f"All the same, as --yes says: {why}")
        move(client, alias, building.name)
    done = ReleaseReport(name, planned.info.name, alias.index, report, proof)
    _after(client, alias, living, done, keep, notify)
    return done


def _after(
    client: OpenSearch,
    alias: Alias,
    living: _State | None,
    done: ReleaseReport,
    keep: int | None,
    notify: Callable[[str], None],
) -> None:
    """What is left to do once readers have the release: that fails without a harm, and is done next time."""

    def say(told: str) -> None:
        done.notes.append(told)
        notify(told)

    try:
        note_move(client, alias, done.index, before=alias.index)
        if living is not None and alias.index and size_and_writes(client, alias.index)[1] > living.writes:
            say(f"{alias.index} was written to until the alias moved: {done.index} lacks that")
        if keep is not None:
            done.pruned = prune(client, Alias(alias.name, done.index, alias.options), keep, say)
    except OskitError as error:
        say(f"{done.index} is living, but what follows is not done: {error}. The next release goes on")


@dataclass(frozen=True)
class _State:
    """What the living release was when the new one was begun."""

    index: ExistingIndex
    documents: int
    writes: int

    @classmethod
    def of(cls, client: OpenSearch, alias: Alias) -> _State | None:
        if alias.index is None or (index := look(client, alias.index)) is None:
            return None
        index.check_open(f"move the alias {alias.name!r} away from", writes=False)
        with cluster_errors(f"read {alias.name!r}", IndexingError):
            client.indices.refresh(index=alias.index)
        return cls(index, _visible(client, alias, alias.index), size_and_writes(client, alias.index)[1])

    def not_kept(self, plan: LoadPlan, alias: str) -> list[str]:
        """What it has of others' making and the new one will not have, for telling."""
        others = {name: value for name, value in self.index.settings.items() if name not in _SEEN_TO}
        told = replace(self.index, settings=others).not_kept(plan.settings)
        given = plan.settings.mapping.get("_meta") or {}
        if noted := [name for name in self.index.meta_of_others if name not in given]:
            told.append(f"what _meta has of {', '.join(noted)}")
        if aliases := sorted(set(self.index.aliases) - {alias}):
            told.append(f"the aliases {', '.join(aliases)}, which go on standing for it")
        return told


def _visible(client: OpenSearch, alias: Alias, index: str) -> int:
    """Documents of an index that the alias shows, or would."""
    with cluster_errors(f"count the documents of {index!r}", IndexingError):
        query = {"query": alias.options["filter"]} if "filter" in alias.options else None
        return int(client.count(index=index, body=query)["count"])


def _loaded(load: Callable[[str], IngestReport], name: str) -> IngestReport:
    try:
        return load(name)
    except OskitError as error:
        if error.hint is not None:  # of an index that goes now nothing is known again
            error.hint = error.hint.replace(RESUME, "The unfinished index is deleted; run it again")
        raise


def _check_routing(alias: Alias, plan: LoadPlan) -> None:
    routing = next(
        (alias.options[key] for key in ("search_routing", "index_routing") if key in alias.options), None
    )
    if routing is not None and (plan.settings.shards or 1) > 1:
        raise IndexingError(
            f"the alias {alias.name!r} looks on the shard of the routing {routing!r} only, and documents "
            "that are loaded go by their ids",
            hint="Leave --shards out: on a single shard all are found",
        )


def _check_loaded(report: IngestReport, most_refused: float) -> None:
    """Raises where what was loaded is no release."""
    where = f", kept in {report.dead_letter}" if report.dead_letter else ""
    why = f": {next(iter(report.reasons), '')}{where}" if report.refused else ""
    if not report.indexed:
        what = f"all {report.refused:,} records were refused{why}" if report.refused else "there are none"
        raise IndexingError(f"no documents were loaded, so nothing goes live: {what}")
    if report.refused > most_refused * report.read:
        raise TooManyRefused(
            f"{report.refused:,} of {report.read:,} records were refused, more than {most_refused:.2%} of "
            f"them, so nothing goes live{why}",
            hint="Correct them, or allow for more with --max-refused",
        )


def _objections(
    client: OpenSearch, alias: Alias, living: _State, name: str, notify: Callable[[str], None]
) -> list[str]:
    """Why a release should not take the living one's place although it is right."""
    before, found = living.index.name, []
    if (writes := size_and_writes(client, before)[1] - living.writes) > 0:
        found.append(
            f"{before} was written to {writes:,} times while it was built (documents, updates, deletions), "
            "which it lacks"
        )
    documents = _visible(client, alias, name)
    if documents < (1 - MOST_GONE) * living.documents:
        found.append(f"it shows {documents:,} documents, and {before}, which is living, {living.documents:,}")
    if why := _why_not_encoding(client, living.index, name, notify):
        found.append(why)
    return found


def _why_not_encoding(
    client: OpenSearch, living: ExistingIndex, name: str, notify: Callable[[str], None]
) -> str:
    """Have the new index encode what other programs write as the living one does; or why it cannot."""
    default, new = pipeline_of(living), look(client, name)
    if default is None or new is None:
        return ""
    encodes = default == pipeline_name(living.name)
    theirs = called_first(client, living.name) if encodes else default
    if theirs is not None and pipeline_of(new) is None:
        runs = f"runs the pipeline {theirs!r} on what is written, and it runs none"
        return f"{living.name} {runs} (--settings gives it one)"
    if not encodes:
        return ""
    try:
        put_pipeline(client, name, replace_others=True, notify=notify)
    except OskitError as error:
        return f"{living.name} encodes what other programs write (oskit pipeline), and it cannot: {error}"
    return ""
