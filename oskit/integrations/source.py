"""What the retrievers share: settings that become a searcher, and hits as texts with fields.

A retriever holds plain settings and nothing that lives, so it can be copied, pickled and written down. The
searcher is made when it is first asked; retrievers with the same settings share it, and others its client and
its archive.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from oskit.archive.encoder import ArchiveEncoder
from oskit.cluster.client.connection import ConnectionSettings, connect, split_url
from oskit.cluster.search.filters import Condition, Given, Joined
from oskit.cluster.search.hybrid import Hybrid
from oskit.cluster.search.result import SearchBy
from oskit.cluster.search.search import Searcher
from oskit.cluster.search.wanted import Wanted
from oskit.errors import MissingDependencyError, UsageError

OPTIONS = frozenset(each.name for each in fields(Wanted)) - {"size", "filter", "hybrid"}
"""Of :meth:`Searcher.search`, what ``search_kwargs`` may hold."""

_making = threading.Lock()


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Has the import of a framework that is not installed say what to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0].replace("_", "-")
        raise MissingDependencyError.for_extra(f"oskit's retriever for {extra}", package, extra) from error


class How(TypedDict, total=False):
    """The settings of :class:`Source` that are not the index's name, nor a secret."""

    url: str | None
    username: str | None
    connection: Mapping[str, Any]
    archive: str | None
    by: SearchBy | None
    model_id: str | None
    analyzer: str | None
    field: str | None
    hybrid: str | Mapping[str, Any] | Hybrid | None
    search_kwargs: Mapping[str, Any]
    searcher: Searcher | None


class Source(BaseModel):
    """Where is searched and how, as plain values.

    Attributes:
        index: An index, or an alias.
        url: Of the cluster; else ``OSKIT_URL``. A user and a password in it are taken out.
        username: Else ``OSKIT_USERNAME``.
        password: Else ``OSKIT_PASSWORD`` or ``OSKIT_PASSWORD_FILE``.
        connection: More of :class:`~oskit.cluster.client.connection.ConnectionSettings`, such as
            ``{"ca_certs": "ca.pem", "timeout": 10}``.
        archive: Folder of an exported encoder, which encodes queries here; else the cluster's model does.
        by: How a query becomes a vector; this, ``model_id``, ``analyzer`` and ``field`` are those of
            :class:`~oskit.cluster.search.search.Searcher`.
        hybrid: Search in several ways at once: ``"bm25=0.3,sparse=0.7"``, or a mapping with that as ``sides``
            and more of :meth:`oskit.Hybrid.parse`, such as ``fusion``.
        search_kwargs: More of :meth:`Searcher.search`, such as ``two_phase`` and ``min_score``.
        searcher: In place of all up to ``field``. Such a retriever cannot be written down or pickled.

    Raises:
        UsageError: Values that cannot be right.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    index: str = ""
    url: str | None = None
    username: str | None = None
    password: SecretStr | None = None
    connection: dict[str, Any] = Field(default_factory=dict)
    archive: str | None = None
    by: SearchBy | None = None
    model_id: str | None = None
    analyzer: str | None = None
    field: str | None = None
    hybrid: str | dict[str, Any] | Hybrid | None = None
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    searcher: Searcher | None = Field(default=None, exclude=True, repr=False)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            name = ".".join(map(str, first["loc"]))
            raise UsageError(f"the retriever's setting {name!r}: {first['msg']}") from None

    @model_validator(mode="before")
    @classmethod
    def _take_credentials_out_of_the_url(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(values.get("url"), str):
            return values
        url, username, password = split_url(values["url"])
        found = {"username": username, "password": password} if not values.get("username") else {}
        return {**values, "url": url, **{key: value for key, value in found.items() if value is not None}}

    @model_validator(mode="after")
    def _check(self) -> Source:
        others = [self.index, self.url, self.username, self.password, self.connection, self.archive, self.by]
        others += [self.model_id, self.analyzer, self.field]
        if (self.searcher is None) == (not any(others)) or not (self.index or self.searcher):
            raise UsageError("a retriever is given the name of an index, or a searcher and nothing beside it")
        if "password" in self.connection:
            raise UsageError("a password does not belong into `connection`", hint="Give it as `password`")
        if self.searcher is None:
            self._settings()
        _hybrid(self.hybrid)
        _options(self.search_kwargs)
        return self

    def _settings(self) -> ConnectionSettings:
        own = {"url": self.url, "username": self.username, "password": self.password}
        try:
            return ConnectionSettings.from_environment(**{**self.connection, **own})
        except TypeError as error:
            raise UsageError(f"the retriever's connection: {error}") from None

    def opened(self) -> Searcher:
        """The searcher, made when it is first asked for.

        Raises:
            ArchiveError: The archive cannot be used.
        """
        if self.searcher is not None:
            return self.searcher
        with _making:
            archive = self.archive and str(Path(self.archive).expanduser().absolute())
            how = (self.by, self.model_id, self.analyzer, self.field)
            return _searcher(self._settings(), self.index, archive, *how)

    def find(
        self, query: str, size: int, filter: Given | Sequence[Given] | None, more: Mapping[str, Any] = {}
    ) -> list[Found]:  # fmt: skip
        """Search; what makes the answer doubtful is a warning.

        Args:
            query: A text.
            size: Number of documents.
            filter: One or several, all of which have to hold.
            more: ``hybrid`` and :data:`OPTIONS`, in place of the settings.

        Raises:
            OskitError: As :meth:`Searcher.search` does.
        """
        wanted = {"hybrid": self.hybrid, **self.search_kwargs, **more}
        hybrid = _hybrid(wanted.pop("hybrid"))
        _options(wanted)
        result = self.opened().search(query, size=size, filter=filter, hybrid=hybrid, **wanted)
        if result.warning:
            warnings.warn(f"{result.index}: {result.warning}", stacklevel=2)
        return [
            Found(hit.id, hit.text, hit.score, hit.others)
            if hit.passage is None
            else Found(hit.id, hit.passage.text, hit.score, hit.others, hit.passage.start)
            for hit in result.hits
        ]

    def written(self) -> dict[str, Any]:
        """The settings that were given, but for the password.

        Raises:
            UsageError: Some of them are no plain values.
        """
        if self.searcher is not None or isinstance(self.hybrid, Hybrid):
            what = "a searcher" if self.searcher is not None else "a Hybrid"
            hint = "Give index, url and so on, and hybrid as text or a mapping"
            raise UsageError(f"a retriever with {what} cannot be written down", hint=hint)
        own = {name: getattr(self, name) for name in Source.model_fields if name != "password"}
        return {name: value for name, value in own.items() if value}


class Found(NamedTuple):
    """A document that was found.

    Attributes:
        text: The passage that matched best, of a document that has several; else the whole text.
        fields: Its other fields, without vectors.
        start: Where the passage begins in the document's text, in characters; None if it is no passage.
    """

    id: str
    text: str
    score: float
    fields: dict[str, Any]
    start: int | None = None


_client = lru_cache(16)(connect)


@lru_cache(16)
def _encoder(archive: str) -> ArchiveEncoder:
    return ArchiveEncoder.open(archive)


@lru_cache(1024)
def _searcher(
    settings: ConnectionSettings, index: str, archive: str | None, by: SearchBy | None, *how: str | None
) -> Searcher:
    encoder = None if archive is None else _encoder(archive)
    model_id, analyzer, field = how
    notify = logging.getLogger("oskit").warning
    return Searcher(
        _client(settings), index, by=by, model_id=model_id, analyzer=analyzer, encoder=encoder, field=field,
        notify=notify,
    )  # fmt: skip


def _hybrid(given: str | Mapping[str, Any] | Hybrid | None) -> Hybrid | None:
    if given is None or isinstance(given, Hybrid):
        return given
    more = {"sides": given} if isinstance(given, str) else dict(given)
    try:
        return Hybrid.parse(more.pop("sides"), **more)
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(
            f"{given!r} is no hybrid search: {error}",
            hint='Give "bm25=0.3,sparse=0.7", or {"sides": that, "fusion": "rrf:60"}',
        ) from None


def _options(given: Mapping[str, Any]) -> None:
    if unknown := sorted(set(given) - OPTIONS):
        known = ", ".join(sorted(OPTIONS))
        raise UsageError(f"a search has no option {unknown[0]!r}", hint=f"It has: {known}")


def one_of(field: str, values: Sequence[object]) -> Condition | Joined:
    """That a field has one of the values, or, being a list, holds one.

    Raises:
        UsageError: One is no text, number, truth value or time.
    """
    return Condition(field, "=", tuple(as_text(field, each) for each in values)) if values else NEVER


def as_text(field: str, value: object) -> str:
    """A value to compare with, as conditions have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(
        f"the field {field!r} cannot be compared with {value!r}",
        hint="Compare with a text, a number, true or false, or a time",
    )


def missing(field: str) -> Joined:
    """That a field has no value."""
    return Joined("none", [Condition(field, "=", ("*",), is_any=True)])


NEVER = Joined("any", ())
"""What no document fulfils."""
