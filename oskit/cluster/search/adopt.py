"""Indexes that others made, with a note of ours in ``_meta``, so that searching them needs no options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from oskit.archive.token_weights import Prune
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import ExistingIndex, existing_index
from oskit.cluster.index.mapping import IndexInfo, info_of
from oskit.cluster.index.meta import ADOPTED, META_KEY, own_meta, replace_own_meta
from oskit.cluster.index.passages import texts_of
from oskit.cluster.index.sparse_fields import definition_of
from oskit.cluster.ingest.encoders import check_are_one, check_vectors, find_encoder_model, identity
from oskit.cluster.models.predict import await_ready, predict
from oskit.cluster.models.registry import find_model, serving
from oskit.cluster.search.place import with_key
from oskit.data.text_fields import TextFields
from oskit.errors import IndexingError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.models.registry import ModelInfo

_SEARCHED = ("text", "match_only_text", "semantic")


@dataclass(frozen=True)
class Adoption:
    """What was found of an index, and what was written down.

    Attributes:
        index: The index itself.
        entries: ``_meta.oskit``.
        changed: Whether that is new.
        compared: Documents whose vectors were compared with the encoder's.
        note: Why none was.
    """

    index: str
    entries: Mapping[str, Any]
    changed: bool
    compared: int
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def adopt_index(
    client: OpenSearch,
    index: str,
    *,
    embedding_field: str | None = None,
    text_fields: TextFields | None = None,
    title_field: str | None = None,
    encoder: TextEncoder | None = None,
    model_id: str | None = None,
    query_model_id: str | None = None,
    prune: Prune | None = None,
    notify: Callable[[str], object] | None = None,
) -> Adoption:
    """Write into ``_meta.oskit`` of an index that others made what search and verify need to know.

    Nothing else of the mapping is touched, and nothing at all where something does not hold.

    Args:
        index: Its name, or that of an alias of it alone.
        embedding_field: Path of the vectors' field; None for the only one.
        text_fields: Where the text is that was encoded; for BM25, and for what is shown of hits.
        title_field: The field whose text was put in front of it.
        encoder: Made the vectors; a few are compared.
        model_id: Name or id of the deployed model that made them; compared too, and recorded for queries.
        query_model_id: The model that encodes queries, if it is another.
        prune: Which weights were kept.
        notify: Told, in one line, that a model is being waited for.

    Raises:
        UsageError: Options do not fit together.
        IndexingError: There is no such index, oskit made it, or something does not hold.
        ModelError: There is no such model.
    """
    existing = existing_index(client, index)
    existing.check_open("adopt")
    if existing.is_own:
        raise IndexingError(
            f"the index {existing.name!r} was made by oskit, and records all of it already",
            hint="Look at it with: oskit index show " + existing.name,
        )
    before = (existing.mapping.get("_meta") or {}).get(META_KEY, {})
    if not isinstance(before, Mapping) or (before and ADOPTED not in before):
        raise IndexingError(
            f"_meta.{META_KEY} of {existing.name!r} is somebody else's, so nothing is written there"
        )
    mapping = {key: value for key, value in existing.mapping.items() if key != "_meta"}
    found = with_key(client, info_of(existing.name, mapping, embedding_field))
    field = definition_of(existing.mapping.get("properties") or {}, found.embedding_field)
    if field.get("positive_score_impact", True) in (False, "false"):
        raise IndexingError(
            f"the weights in {found.embedding_field!r} of {existing.name!r} count against a document "
            "(positive_score_impact)"
        )
    info = _with_texts(existing, found, text_fields, title_field)
    encodes = model_id or found.encoder.model_id
    model = find_encoder_model(client, encodes) if encodes else None
    query_model = find_model(client, query_model_id) if query_model_id else None
    own = identity("client" if encoder is not None else "cluster", encoder, model, query_model, None)
    rule = str(prune) if prune is not None else found.prune
    info = replace(info, encoder=own, prune=rule)
    if query_model is None and found.encoder.query_model_id:
        info = replace(info, encoder=replace(own, query_model_id=found.encoder.query_model_id))
    if encoder is not None and model is not None:
        check_are_one(client, model, encoder, queries=False, notify=notify)
    if encoder is not None and query_model is not None and encoder.architecture == "inference-free":
        check_are_one(
            client, serving(client, query_model, IndexingError), encoder, queries=True, notify=notify
        )
    compared, note = _compared(client, info, encoder, model, notify)
    entries = {**info.to_meta(), ADOPTED: "yes"}
    if entries != before:
        with cluster_errors(f"write down how {existing.name!r} was made", IndexingError):
            replace_own_meta(client, existing.name, entries)
    return Adoption(existing.name, entries, entries != before, compared, note)


def undo_adoption(client: OpenSearch, index: str) -> Adoption:
    """Take out again what :func:`adopt_index` wrote.

    Raises:
        IndexingError: There is no such index, or it was not adopted.
    """
    existing = existing_index(client, index)
    entries = own_meta(existing.mapping)
    if ADOPTED not in entries:
        what = "was made by oskit" if existing.is_own else "was not adopted"
        raise IndexingError(f"the index {existing.name!r} {what}, so there is nothing to take back")
    existing.check_open("change")
    with cluster_errors(f"take out what oskit wrote of {existing.name!r}", IndexingError):
        replace_own_meta(client, existing.name, None)
    return Adoption(existing.name, entries, True, 0)


def _with_texts(
    existing: ExistingIndex, info: IndexInfo, fields: TextFields | None, title: str | None
) -> IndexInfo:
    """The same, saying where its texts are."""
    if fields is None:
        if title is not None:
            raise UsageError("--title-field has no effect without --text-field")
        return info
    names = fields.names
    if title is not None and title not in names:
        names = (title, *names)
        fields = TextFields(names, fields.boosts)
    elif title is None and len(names) > 1 and names[0] == "title":
        title = "title"
    elif title is not None and names[0] != title:
        raise UsageError(f"the title {title!r} stands in front of the text, so name it first")
    for name in names:
        kind = definition_of(existing.mapping.get("properties") or {}, name).get("type")
        if kind not in _SEARCHED:
            found = f"is of the type {kind}" if kind else "is not in its mapping"
            raise IndexingError(
                f"the field {name!r} of {existing.name!r} {found}, so it is no text to search"
            )
    rest = [name for name in names if name != title]
    return replace(
        info,
        text_fields=fields.for_bm25,
        passage_field=names[0] if len(names) == 1 else None,
        title_field=title,
        text_field=rest[0] if len(rest) == 1 else None,
    )


def _compared(
    client: OpenSearch,
    info: IndexInfo,
    encoder: TextEncoder | None,
    model: ModelInfo | None,
    notify: Callable[[str], object] | None,
) -> tuple[int, str]:
    """How many stored vectors are the encoder's, or why that was not looked at."""
    if encoder is None and model is None:
        return 0, "no encoder was named to compare them with"
    if not texts_of(info)[1]:
        return 0, "which texts they are of is not known; --text-field names them"
    if info.nested:
        return 0, f"they are of parts of texts, in {info.nested}"
    if encoder is not None:
        compared = check_vectors(client, info, lambda texts: encoder.document_weights(texts, key=info.key))
    else:
        assert model is not None
        await_ready(client, model, notify=notify)
        compared = check_vectors(client, info, lambda texts: predict(client, model, texts, key=info.key))
    return compared, "" if compared else "there are none in _source"
