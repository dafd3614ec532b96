"""Releases: indexes behind an alias, one of which is living; a new one takes its place in one atomic call.

What is living is what the alias says, and nothing else. All that is known of a release besides stands in its
index, in ``_meta.oskit.release``, and each has one writer: the run that builds it, later whoever moves the
alias. So a run that is killed at any point leaves an alias that points to one whole index, and a record by
which the next run knows what it may clean up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from opensearchpy.exceptions import TransportError

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import is_transient, policy_of, with_retries
from oskit.cluster.index.existing import ExistingIndex, look, size_and_writes
from oskit.cluster.index.mapping import IndexInfo, IndexSettings, index_body
from oskit.cluster.index.meta import META_KEY, change_record, own_meta, record_of
from oskit.cluster.index.names import NAME_ONE, resolve
from oskit.cluster.index.owner import is_gone
from oskit.errors import IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

RECORD = "release"
"""Entry of ``_meta.oskit`` that tells of a release."""

SILENT_AFTER_S = 3600.0
"""A run on another machine, or of a process id that another process has now, is dead once it has not said for
so long that it lives."""

State = Literal["live", "retired", "ready", "refused", "building", "abandoned"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_MOVED_ALONG = ("filter", "index_routing", "search_routing", "is_hidden")


def now(timespec: str = "seconds") -> str:
    """The time of a record: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


@dataclass(frozen=True)
class Alias:
    """What readers and writers know, and what it stands for.

    Attributes:
        name: The alias.
        index: The living release; None before the first.
        options: What the alias does besides: filter, routing.
    """

    name: str
    index: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def move_call(self, to: str) -> Call:
        """The request that moves it, all at once or not at all."""
        kept = {name: self.options[name] for name in _MOVED_ALONG if name in self.options}
        add = {"add": {"index": to, "alias": self.name, **kept, "is_write_index": True}}
        gone = {"remove": {"index": self.index, "alias": self.name, "must_exist": True}}
        return Call("POST", "_aliases", {"actions": [*([gone] if self.index else []), add]})


def read_alias(client: OpenSearch, name: str, *, releasing: bool = False) -> Alias:
    """What an alias stands for.

    Args:
        releasing: A release is to be made behind it: where that cannot be, what to do about it is told.

    Raises:
        IndexingError: It is an index, or stands for several, or for a data stream; or the cluster refuses.
    """
    try:
        target = resolve(client, name)
    except IndexingError as error:
        if error.hint == NAME_ONE:
            error.hint = "A release takes the place of one index: leave the alias on one of them"
        raise
    if target is None:
        return Alias(name)
    if not target.is_alias:
        raise IndexingError(
            f"{name!r} is an index itself, and releases are behind an alias, which moves among them",
            hint=_renamed(name) if releasing else "Name an alias; which there are says: GET _cat/aliases",
        )
    if target.index.startswith(f".ds-{name}-"):
        raise IndexingError(
            f"{name!r} is a data stream, and releases are behind an alias, which moves among indexes",
            hint="Release under another name",
        )
    found = look(client, target.index)
    if found is None or name not in found.aliases:
        raise IndexingError(f"the alias {name!r} moves at this moment", hint="Run the same command again")
    return Alias(name, target.index, found.aliases[name])


def _renamed(name: str) -> str:
    """How an index's users come to ask an alias of releases."""
    return (
        f"Release under another name: oskit ingest {name}-live … --release. To call that {name} "
        "afterwards, which deletes the index: POST _aliases "
        f'{{"actions": [{{"remove_index": {{"index": "{name}"}}}}, '
        f'{{"add": {{"index": "THE RELEASE", "alias": "{name}", "is_write_index": true}}}}]}}'
    )


def move(client: OpenSearch, alias: Alias, to: str) -> None:
    """Move an alias from where it was to another index, in one call; readers see the one or the other.

    Raises:
        IndexingError: It is not where it was any more, or the cluster refuses.
    """

    def attempt() -> None:
        there = read_alias(client, alias.name)  # with the filter that it has now
        if there.index == to:
            return  # an earlier attempt's answer was lost
        if there.index != alias.index:
            raise IndexingError(
                f"somebody has moved the alias {alias.name!r} meanwhile, from {alias.index} to "
                f"{there.index}, so it does not move to {to}",
                hint=f"If it shall: oskit rollback {alias.name} {to}",
            )
        client.indices.update_aliases(body=there.move_call(to).body)

    with cluster_errors(f"move the alias {alias.name!r} to {to!r}", IndexingError):
        try:
            with_retries(attempt, policy_of(client))
        except TransportError as failure:
            if not is_transient(failure) or read_alias(client, alias.name).index != to:
                raise


@dataclass(frozen=True)
class Release:
    """One index of an alias.

    Attributes:
        of: The alias.
        index: The index as it is.
        is_living: Whether the alias stands for it.
        record: ``_meta.oskit.release``; empty for an index that was not released by oskit.
    """

    of: str
    index: ExistingIndex
    is_living: bool
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The index."""
        return self.index.name

    @property
    def state(self) -> State:
        """What it is: what the alias says counts more than the record."""
        if self.is_living:
            return "live"
        if self.record.get("retired") or self.record.get("living_since") or not self.record:
            return "retired"
        said = self.record.get("state")
        if said == "refused" or said == "ready":
            return "refused" if said == "refused" else "ready"
        return "abandoned" if self.is_abandoned else "building"

    @property
    def is_abandoned(self) -> bool:
        """Whether the run that built it has ended, or is surely dead."""
        ended = "ended" in self.record
        return ended or is_gone(self.record) or _age_s(self.record.get("beat")) > SILENT_AFTER_S

    @property
    def is_at_work(self) -> bool:
        """Whether a run builds it, or is about to have the alias stand for it."""
        return self.state in ("building", "ready") and not self.is_abandoned

    @property
    def order(self) -> tuple[int, str]:
        """Who came first, by the cluster's own clock and not by those of the machines that build."""
        return int(self.index.settings["index.creation_date"]), self.index.uuid

    @property
    def lived_until(self) -> float:
        """When the alias left it, in seconds since 1970."""
        return _seconds(self.record.get("retired"))

    @property
    def info(self) -> IndexInfo | None:
        """How it was made, where that is recorded."""
        meta = own_meta(self.index.mapping)
        return IndexInfo.from_meta(self.name, meta) if isinstance(meta.get("kind"), str) else None

    @property
    def others(self) -> list[str]:
        """Further names by which somebody may use it."""
        return sorted(set(self.index.aliases) - {self.of})

    @property
    def built_by(self) -> str:
        """For messages."""
        said = f"process {self.record.get('pid')} on {self.record.get('host')}"
        return f"{said} since {self.record.get('began')}, last heard of at {self.record.get('beat')}"


def list_releases(client: OpenSearch, alias: Alias) -> list[Release]:
    """The releases of an alias, newest first, and other indexes that it stands or stood for.

    Raises:
        IndexingError: The cluster refuses.
    """
    with cluster_errors(f"look for releases of {alias.name!r}", IndexingError):
        params = {"expand_wildcards": "all", "flat_settings": "true"}
        answer = client.indices.get(index=f"{_stem(alias.name)}-*", params=params)
    there = [
        ExistingIndex(name, found["aliases"], found["mappings"], found["settings"])
        for name, found in answer.items()
    ]
    ours = {one.name: one for one in there if _own(one, alias.name)}
    named = {
        alias.index,
        *(str(_own(one, alias.name).get("before") or "") for one in ours.values()),
    } - ours.keys()
    known = [*ours.values(), *(found for name in named if name and (found := look(client, name)))]
    releases = [Release(alias.name, one, one.name == alias.index, _own(one, alias.name)) for one in known]
    return sorted(releases, key=lambda release: release.order, reverse=True)


def _own(index: ExistingIndex, alias: str) -> dict[str, Any]:
    """What is recorded of an index as a release of this alias, not of another one."""
    record = _record(index)
    return record if record.get("of") == alias else {}


def _record(index: ExistingIndex) -> dict[str, Any]:
    """What is recorded of this index: a clone of a release has its ``_meta`` too, and is somebody else's."""
    record = record_of(index.mapping, RECORD)
    return record if record.get("index", index.name) == index.name else {}


def release_name(alias: str, encoder: str | None) -> str:
    """``ALIAS-<time>-<encoder>``, as an index may be called."""
    time = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    return f"{_stem(alias)}-{time}-{_clean(encoder or '', 60) or 'encoder'}"


def _stem(alias: str) -> str:
    return _clean(alias, 160) or "release"


def _clean(name: str, most_bytes: int) -> str:
    clean = re.sub(r'[\\/*?"<>|,#:\s]+', "-", name.lower()).strip("-_+.")
    return clean.encode()[:most_bytes].decode(errors="ignore").strip("-")


def release_body(info: IndexInfo, settings: IndexSettings, record: Mapping[str, Any]) -> dict[str, Any]:
    """Of the request that creates a release's index, with what is recorded of it from the first moment on."""
    body = index_body(info, settings)
    body["settings"]["index"]["hidden"] = True  # patterns such as `articles-*` find what the alias does not
    body["mappings"]["_meta"][META_KEY] |= {RECORD: {**record, "index": info.name}}
    return body


def note(client: OpenSearch, name: str, changes: Mapping[str, Any]) -> None:
    """Record something of a release; what was not released by oskit is left alone.

    Raises:
        IndexingError: The cluster refuses.
    """
    found = look(client, name)
    if found is None or not _record(found):
        return
    with cluster_errors(f"update the index {name!r}", IndexingError):
        change_record(client, name, RECORD, changes)


def note_move(client: OpenSearch, alias: Alias, to: str, **more: Any) -> None:
    """Record that the alias has moved: since when each index lives, and what was written to it until then.

    Args:
        more: What else is recorded of the one that lives now.

    Raises:
        IndexingError: The cluster refuses.
    """
    writes = size_and_writes(client, to)[1]
    note(client, to, {"state": "live", "living_since": now(), "writes": writes, "retired": None, **more})
    if alias.index is not None:
        # A rollback and a release within one second have an order too: what lived last is what stays.
        note(client, alias.index, {"state": "retired", "retired": now("milliseconds")})


def writes_since_living(client: OpenSearch, release: Release) -> int | None:
    """How often the release was written to since it went live; None where that is not known."""
    known = release.record.get("writes")
    try:
        return size_and_writes(client, release.name)[1] - known if isinstance(known, int) else None
    except OskitError:  # a closed index
        return None


def _age_s(said: object) -> float:
    """Seconds since a time of a record; what cannot be read is old."""
    return datetime.now(UTC).timestamp() - _seconds(said)


def _seconds(said: object) -> float:
    """A time of a record in seconds since 1970; what cannot be read, or is of no time zone, was long ago."""
    try:
        return (datetime.fromisoformat(str(said)) - _EPOCH).total_seconds()
    except (ValueError, TypeError):
        return float("-inf")
