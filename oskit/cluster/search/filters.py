"""Filters: ``lang=de``, ``year>=2020``, or a query of OpenSearch, as the clauses that an index can answer.

A condition is read without a cluster (:func:`parse`) and made into a clause by what the index knows of its
fields (:func:`compiled`), since a filter that cannot work finds nothing and says nothing: OpenSearch takes a
field that it has never heard of, and a term on a ``text`` field, whose words are no longer what was written.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import ClusterAuthError, SearchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.search.clauses import Clause

Operator = Literal["=", "!=", ">=", "<=", ">", "<"]

HOW = (
    "Write field=value, field=one,other, field!=value, field>=value (also >, <=, <), field=* (any value), "
    'or a query of OpenSearch as JSON: {"term": {"lang": "de"}}'
)

_CONDITION = re.compile(r"\s*([^=!<>]+?)\s*(!=|>=|<=|==?|>|<)\s*(.*?)\s*", re.DOTALL)
_RANGES = {">=": "gte", ">": "gt", "<=": "lte", "<": "lt"}

TEXT = ("text", "match_only_text", "annotated_text", "search_as_you_type", "semantic")
_KEYWORD = ("keyword", "constant_keyword", "wildcard")
# fmt: off
_BY_QUERY_ONLY = frozenset({"rank_feature", "rank_features", "sparse_vector", "knn_vector", "completion",
                            "percolator", "geo_point", "geo_shape", "xy_point", "xy_shape"})
_BY_FIELD = frozenset({"term", "terms", "terms_set", "match", "match_phrase", "match_phrase_prefix", "range",
                       "match_bool_prefix", "prefix", "wildcard", "regexp", "fuzzy", "intervals"})
# fmt: on
"""Queries that name their field as a key."""

_NO_VALUE, _SMALL, _NUMBER = re.compile("(?!)"), re.compile(r"\d{1,2}"), re.compile(r"\d{1,9}(\.\d+)?")
_SURELY_A_VALUE = {
    **dict.fromkeys(("date", "date_nanos", "ip"), _NO_VALUE),
    **dict.fromkeys(("byte", "short", "half_float"), _SMALL),
    **dict.fromkeys(("long", "integer", "unsigned_long", "double", "float", "scaled_float"), _NUMBER),
    "boolean": re.compile("true|false"),
}
"""Types that some texts are no value of, and what the cluster need not be asked about."""

_IGNORE_ABOVE = 256
"""Letters of a value that a ``keyword`` beside a ``text`` keeps, where OpenSearch made the mapping itself."""


@dataclass(frozen=True)
class Condition:
    """What a field has to hold: one of the values, none of them, or something within a range."""

    field: str
    operator: Operator
    values: tuple[str, ...]
    is_any: bool = False
    """Whether it only asks if there is a value: ``field=*``, where ``field="*"`` asks for a star."""

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{','.join(self.values)}"


@dataclass(frozen=True)
class Joined:
    """Filters of which all have to hold, one at least, or none."""

    of: Literal["all", "any", "none"]
    parts: Sequence[Given]


Given = str | Mapping[str, Any] | Condition | Joined
"""A filter: a condition, as text too, a query clause, as text or as a dictionary, or several of them."""


def as_list(given: Given | Sequence[Given] | None) -> list[Given]:
    """One filter or several as a list."""
    if isinstance(given, str | Mapping | Condition | Joined):
        return [given]
    return list(given or ())


@dataclass(frozen=True)
class Filter:
    """Filters, as an index can answer them.

    Attributes:
        clause: For ``bool.filter``.
        types: Of the fields that are named, and of those beside them.
        told: What somebody should know of how it was understood, in one line.
    """

    clause: Clause
    types: Mapping[str, str]
    told: str | None = None


def parse(given: Given | Sequence[Given] | None) -> list[Condition | Joined | Clause]:
    """Read one filter or several, all of which have to hold; without asking anybody.

    Raises:
        UsageError: It is neither a condition nor a query.
    """
    return [_parsed(each) for each in as_list(given)]


def _parsed(given: Given) -> Condition | Joined | Clause:
    if isinstance(given, Joined):
        return Joined(given.of, parse(given.parts))
    if isinstance(given, Condition):
        return given
    return _query(dict(given)) if isinstance(given, Mapping) else _read(given)


def _read(text: str) -> Condition | Clause:
    if text.lstrip().startswith("{"):
        try:
            return _query(json.loads(text))
        except json.JSONDecodeError as error:
            raise UsageError(f"the filter {text!r} is no JSON: {error}", hint=HOW) from None
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(f"the filter {text!r} is not of the form field=value", hint=HOW)
    field, operator, value = found.groups()
    if not value:
        raise UsageError(f'the filter {text!r} has no value (an empty one is {field}{operator}"")', hint=HOW)
    operator = "=" if operator == "==" else operator
    try:  # a value with a comma stands in quotes
        (values,) = csv.reader([value], skipinitialspace=True, strict=True)
    except csv.Error:
        if '"' not in value:
            raise UsageError(f"the filter {text!r} has a value of several lines", hint=HOW) from None
        raise UsageError(
            f"the filter {text!r} has a quotation mark without its other one",
            hint='Write field="one, value", and each mark inside of it twice: field="a ""b"", c"',
        ) from None
    if operator in _RANGES and len(values) > 1:
        raise UsageError(f"the filter {text!r} compares with {len(values)} values", hint=HOW)
    is_any = value == "*" and operator in ("=", "!=")
    return Condition(field, cast(Operator, operator), tuple(values), is_any)


def _query(clause: object) -> Clause:
    if not isinstance(clause, dict) or len(clause) != 1 or not isinstance(next(iter(clause.values())), dict):
        raise UsageError(
            f"the filter {json.dumps(clause, default=str)} is no query of OpenSearch: that is an object "
            "with one key, the query's name",
            hint=HOW,
        )
    return clause


@dataclass(frozen=True)
class Learnt:
    """What the fields of an index are known to be, for as long as it is the same index.

    A field keeps its type and its format; so what is there and what fits is remembered, and what is not there
    is looked up again: it may come.
    """

    fields: dict[tuple[str, ...], dict[str, dict[str, Any]]] = field(default_factory=dict)
    values: set[tuple[str, str]] = field(default_factory=set)


_REMEMBERED = 1_000
"""Of each kind."""


def compiled(
    client: OpenSearch,
    index: str,
    given: Given | Sequence[Given] | None,
    learnt: Learnt | None = None,
) -> Filter | None:
    """The filters as a clause that this index can answer; None if there are none.

    Args:
        index: The concrete index.
        given: One or several, all of which have to hold.
        learnt: What earlier filters of this index found out, and later ones will.

    Raises:
        UsageError: A filter that cannot be read, or names a field that cannot be filtered as it says.
        SearchError: The cluster refuses.
    """
    if not (conditions := parse(given)):
        return None
    names = [name for each in conditions for name in fields_in(each)]
    fields = Fields(client, index, names, learnt=learnt)
    for name in fields.asked:
        fields.type_of(name)
    clause, told = _joined(Joined("all", conditions), fields)
    return Filter(clause, fields.types, told)


class Fields:
    """What an index knows of its fields.

    Args:
        client: Asked once.
        index: The concrete index.
        names: Of the fields that will be asked for.
        purpose: What for, to be told of a field that is not there.

    Raises:
        SearchError: The cluster refuses.
    """

    def __init__(
        self,
        client: OpenSearch,
        index: str,
        names: Sequence[str],
        purpose: str = ": such a filter would find nothing",
        learnt: Learnt | None = None,
    ) -> None:
        self._client, self._index, self.asked = client, index, tuple(names)
        self._purpose, self._learnt = purpose, learnt or Learnt()
        if (known := self._learnt.fields.get(self.asked)) is not None:
            self._known = known
            return
        wanted = {part for name in names for part in (*_prefixes(name), name, f"{name}.*")}
        self._known = self._ask(sorted(wanted))
        if len(self._learnt.fields) < _REMEMBERED and all(
            name in self._known and self.exact(name)
            for name in self.asked  # a text may get a keyword beside it
        ):
            self._learnt.fields[self.asked] = self._known

    def _ask(self, names: list[str]) -> dict[str, dict[str, Any]]:
        if not names:  # which the cluster refuses
            return {}
        with cluster_errors(f"look up the fields of {self._index!r}", SearchError):
            answer = self._client.field_caps(index=self._index, body=None, params={"fields": ",".join(names)})
        return {name: next(iter(types.values())) for name, types in answer["fields"].items()}

    @property
    def types(self) -> dict[str, str]:
        """Types of the fields that there are."""
        return {name: str(field["type"]) for name, field in self._known.items()}

    def type_of(self, name: str) -> str:
        """The type of a field.

        Raises:
            UsageError: There is none of this name.
        """
        if name in self._known:
            return str(self._known[name]["type"])
        there = self._ask(["*"])
        names = [each for each, field in there.items() if each[0] != "_" and _can_be_filtered(field)]
        listed = ", ".join(sorted(names)[:20]) + (", …" if len(names) > 20 else "")
        raise UsageError(
            f"the index {self._index!r} has no field {name!r}{self._purpose}",
            hint=f"It has: {listed or 'none that can be filtered'}",
        )

    def exact(self, name: str) -> str | None:
        """The field that holds the values as they were written: itself, or one beside a text, if any."""
        if self.type_of(name) not in TEXT:
            return name
        beside = [each for each in (f"{name}.keyword", *self._known) if each.startswith(f"{name}.")]
        return next((each for each in beside if self._is_exact(each)), None)

    def _is_exact(self, name: str) -> bool:
        field = self._known.get(name, {})
        return field.get("type") in _KEYWORD and _can_be_filtered(field)

    def can_be_filtered(self, name: str) -> bool:
        """Whether a condition on its values can be answered."""
        return _can_be_filtered(self._known[name])

    def can_be_sorted(self, name: str) -> bool:
        """Whether hits can be sorted by it."""
        return bool(self._known[name]["aggregatable"])

    def check_value(self, condition: Condition, kind: str, clause: Clause) -> None:
        """Refuse a value that the field cannot have, in whose place the cluster would name no field.

        Raises:
            UsageError: Names the filter.
            SearchError: The cluster refuses.
        """
        surely, value = _SURELY_A_VALUE.get(kind), (kind, str(condition))
        if surely is None or all(surely.fullmatch(each) for each in condition.values):
            return
        if value in self._learnt.values:
            return
        try:
            with cluster_errors(f"look at the filter {condition} on {self._index!r}", SearchError):
                answer = self._client.indices.validate_query(index=self._index, body={"query": clause})
        except ClusterAuthError:  # who may search may not ask that; then the search itself fails
            return
        if not answer["valid"]:
            raise UsageError(
                f"the filter {condition} has a value that the field {condition.field!r}, which is {kind}, "
                "cannot have",
                hint="Write true or false" if kind == "boolean" else "Write it as the documents do",
            )
        if len(self._learnt.values) < _REMEMBERED:
            self._learnt.values.add(value)

    def nested(self, name: str) -> str | None:
        """The ``nested`` objects that hold a field; None where the document itself does."""
        return next((p for p in _prefixes(name) if self._known.get(p, {}).get("type") == "nested"), None)


def _can_be_filtered(field: Mapping[str, Any]) -> bool:
    return field["type"] not in _BY_QUERY_ONLY and bool(field["searchable"] or field["aggregatable"])


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def fields_in(query: object) -> Iterator[str]:
    """The fields that a filter names, as far as its queries are known."""
    if isinstance(query, Condition):
        yield query.field
    elif isinstance(query, Joined):
        yield from fields_in(list(query.parts))
    elif isinstance(query, list):
        for each in query:
            yield from fields_in(each)
    elif isinstance(query, dict):
        for name, body in query.items():
            if name in _BY_FIELD and isinstance(body, dict):
                yield from (field for field in body if field not in ("boost", "_name", "value_type"))
            elif name == "exists" and isinstance(body, dict) and isinstance(body.get("field"), str):
                yield body["field"]
            else:
                yield from fields_in(body)


def _joined(joined: Joined, fields: Fields) -> tuple[Clause, str | None]:
    """Filters as one clause, and what is to be told of them."""
    pairs = [_clause(each, fields) for each in joined.parts]
    clauses, told = [clause for clause, _ in pairs], "; ".join(note for _, note in pairs if note) or None
    if joined.of == "none":
        return ({"bool": {"must_not": clauses}} if clauses else {"match_all": {}}), told
    if not clauses:
        return {"match_all" if joined.of == "all" else "match_none": {}}, told
    if len(clauses) == 1:
        return clauses[0], told
    one_of = {"should": clauses, "minimum_should_match": 1}
    return {"bool": {"filter": clauses} if joined.of == "all" else one_of}, told


def _clause(condition: object, fields: Fields) -> tuple[Clause, str | None]:
    """A filter as a clause, and what is to be told of it."""
    if isinstance(condition, Joined):
        return _joined(condition, fields)
    if not isinstance(condition, Condition):
        return cast("Clause", condition), None
    name, kind = condition.field, fields.type_of(condition.field)
    if (nested := fields.nested(name)) is not None:
        raise UsageError(
            f"the filter {condition} is on a field of the nested objects {nested!r}, not of the document",
            hint=f'Give a query: {{"nested": {{"path": "{nested}", "query": …}}}}',
        )
    if not fields.can_be_filtered(name) and not (condition.is_any and kind == "object"):
        raise UsageError(
            f"the field {name!r} is {kind}, and its values cannot be filtered by {condition}",
            hint="Filter by another field, or give a query as JSON",
        )
    exact = name if condition.is_any else fields.exact(name)
    if condition.is_any:
        clause, told = {"exists": {"field": name}}, None
    elif condition.operator in _RANGES:
        clause, told = _range(condition, exact, fields)
        fields.check_value(condition, kind, clause)
        return clause, told
    elif exact is None:
        clause, told = _words(condition, kind)
    else:
        clause, told = _term(condition, exact)
        fields.check_value(condition, kind, clause)
    return ({"bool": {"must_not": [clause]}} if condition.operator == "!=" else clause), told


def _range(condition: Condition, exact: str | None, fields: Fields) -> tuple[Clause, str | None]:
    if exact is None:
        raise UsageError(
            f"the field {condition.field!r} is text, whose values have no order for {condition}",
            hint="Filter by a number, a date or a keyword",
        )
    by_letters = None
    if fields.type_of(exact) in _KEYWORD:
        by_letters = f"{condition} compares letter by letter, as {exact!r} is a keyword (9 comes after 10)"
    return {"range": {exact: {_RANGES[condition.operator]: condition.values[0]}}}, by_letters


def _words(condition: Condition, kind: str) -> tuple[Clause, str | None]:
    name = condition.field
    matches = [{"match": {name: {"query": value, "operator": "and"}}} for value in condition.values]
    told = f"{name!r} is {kind}, with no keyword beside it: {condition} asks if it holds all of the words"
    if len(matches) == 1:
        return matches[0], told
    return {"bool": {"should": matches, "minimum_should_match": 1}}, told


def _term(condition: Condition, exact: str) -> tuple[Clause, str | None]:
    values = list(condition.values)
    told = None
    if exact != condition.field and max(map(len, values)) > _IGNORE_ABOVE:
        told = f"{exact!r} may not hold values as long as that of the filter (ignore_above)"
    return ({"term": {exact: values[0]}} if len(values) == 1 else {"terms": {exact: values}}), told
