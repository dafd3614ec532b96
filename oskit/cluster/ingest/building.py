"""A release's index while it is built: seen by nobody, known to be alive, and gone if the run fails."""

from __future__ import annotations

import threading
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import impatient
from oskit.cluster.client.server_words import ALREADY_THERE
from oskit.cluster.index.existing import look
from oskit.cluster.index.mapping import index_uuid
from oskit.cluster.index.meta import change_record, record_of
from oskit.cluster.index.owner import owner
from oskit.cluster.index.pruning import being_built, discard
from oskit.cluster.index.recreate import create_unseen
from oskit.cluster.index.releases import RECORD, Alias, list_releases, note, now, release_body
from oskit.cluster.index.trials import settle
from oskit.cluster.ingest.accounting import IngestReport
from oskit.cluster.ingest.plan import LoadPlan
from oskit.errors import IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

BEAT_S = 30.0
"""How often a run that builds says in the index that it lives."""


@dataclass
class Proof:
    """What a release was found to be, before it goes live.

    Attributes:
        failures: Why it may not, one line each; empty if it may.
        verified: What was verified, for the record; None if nothing was.
        quality: Its retrieval quality, beside that of the living one, for the record; None if not measured.
    """

    failures: list[str] = field(default_factory=list)
    verified: dict[str, Any] | None = None
    quality: dict[str, Any] | None = None


class Building:
    """A release's index while it is built; unless it is kept, nothing is left of it.

    Args:
        client: Of the cluster.
        alias: Which it is for.
        plan: How it shall be.

    Attributes:
        name: Of the index.
    """

    def __init__(self, client: OpenSearch, alias: Alias, plan: LoadPlan) -> None:
        self._client, self._alias, self._plan = client, alias, plan
        self.name = plan.info.name
        self._is_kept = False
        self._run = uuid.uuid4().hex
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._beats, name="oskit-release", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._create()
        except BaseException:
            self._discard()
            raise
        self._beat.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._beat.join()
        if kind is not None and not self._is_kept:
            self._discard()
        elif kind is not None:
            with suppress(OskitError, TransportError), impatient(self._client):
                note(self._client, self.name, {"ended": now()})

    def keep(self, state: str, proof: Proof, report: IngestReport) -> None:
        """Whatever comes, the index stays: it may be living in a moment.

        Raises:
            IndexingError: It is not what was made, or the cluster refuses.
        """
        if index_uuid(self._client, self.name) != self._uuid:
            raise IndexingError(f"{self.name} was deleted while it was built", hint="Run it again")
        said = {"state": state, "documents": report.indexed, "refused": report.refused, "ready": now()}
        said |= {"failures": proof.failures[:5] or None, "verified": proof.verified, "quality": proof.quality}
        note(self._client, self.name, said)
        self._is_kept = True

    def _create(self) -> None:
        began = now()
        record = {"of": self._alias.name, "state": "building", "began": began, "beat": began}
        record |= {"run": self._run, **owner()}
        body = release_body(self._plan.info, self._plan.settings, record)
        try:
            with cluster_errors(f"create the index {self.name!r}", IndexingError):
                create_unseen(self._client, self.name, body)
        except IndexingError as error:
            if heard(error.__cause__) is ALREADY_THERE:  # begun in the same second
                for other in list_releases(self._client, self._alias):
                    if other.name == self.name and other.record.get("run") != self._run:
                        raise being_built(self._alias, other) from error
            raise
        self._uuid = index_uuid(self._client, self.name)
        releases = list_releases(self._client, self._alias)
        own = next(one for one in releases if one.name == self.name)
        for other in releases:
            if other.is_at_work and other.order < own.order:
                raise being_built(self._alias, other)
        if "filter" in self._alias.options:
            self._check_filter(self._alias.options["filter"])

    def _check_filter(self, only: dict[str, Any]) -> None:
        """A filter may need a mapping that the new index does not have, which documents cannot bring."""
        with cluster_errors(f"check the filter of {self._alias.name!r}", IndexingError):
            said = self._client.indices.validate_query(
                index=self.name, body={"query": only}, params={"explain": "true"}
            )
        if not said["valid"]:
            why = next((one.get("error") for one in said.get("explanations") or ()), "")
            raise IndexingError(
                f"the alias {self._alias.name!r} has a filter that the new index cannot have: {why}"
            )

    def _discard(self) -> None:
        """As at the end of a run that fails: one attempt, and the next run does what it could not do."""
        with suppress(OskitError, TransportError), impatient(self._client):
            settle(self._client)
            found = look(self._client, self.name)
            if found is not None and record_of(found.mapping, RECORD).get("run") == self._run:
                discard(self._client, self.name)

    def _beats(self) -> None:
        while not self._over.wait(BEAT_S):
            with suppress(OskitError, TransportError), impatient(self._client):
                change_record(self._client, self.name, RECORD, {"beat": now()})
