"""Indexes for sparse vectors: create one, read how it was made, refuse what does not fit.

How an index was made stands in its mapping, under ``_meta.oskit``, so that searching needs no options.

Facts of OpenSearch 3.6 behind the choices here, each tried on a node:

* ``rank_features`` takes any token as a key, ``.``, ``a.b`` and emoji included, and weights from the
  smallest normal float up. ``sparse_vector`` takes decimal token ids only.
* The ``sparse_encoding`` processor writes token texts into ``rank_features`` and token ids into
  ``sparse_vector``; it has no option for that.
* Once a segment of a ``sparse_vector`` index has ``approximate_threshold`` documents, ids are folded
  modulo 65,536, and an id from 32,768 on (a negative short) fails the shard for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from oskit.archive.text_encoder import Architecture, KeyFormat
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.given import expanded, flat_settings, joined
from oskit.cluster.index.meta import META_KEY, own_meta
from oskit.cluster.index.names import Target, check_index_name, resolve
from oskit.cluster.index.pipeline import no_pipeline
from oskit.cluster.index.sparse_fields import SEMANTIC_INFO, definition_of, sparse_fields, vector_paths
from oskit.data.chunks import Chunking
from oskit.data.documents import MARK_FIELD
from oskit.errors import IndexingError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

IndexKind = Literal["rank_features", "sparse_vector"]
EncodeMode = Literal["client", "cluster", "none"]
"""Where documents become vectors: here, in an ingest pipeline, or before, so that they bring them along."""

INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)

MARK_BODY: dict[str, Any] = {"properties": {MARK_FIELD: {"type": "keyword", "index": False}}}
"""Of the request that adds the field of the marks, with doc values alone, to a mapping."""

CHUNKS_FIELD = "passages"
"""The ``nested`` objects of an index whose documents are cut into chunks: ``{text, start, embedding}``."""

MAX_SPARSE_VECTOR_VOCABULARY = 32_768
"""Token ids from here on fail the shard when it is searched approximately."""


APPROXIMATE_THRESHOLD = 1_000_000
"""OpenSearch's default of the parameter (neural-search's ``SparseConstants``)."""


@dataclass(frozen=True)
class SparseVectorParameters:
    """Parameters of the ``seismic`` method of a ``sparse_vector`` field; None leaves OpenSearch's default.

    Args:
        approximate_threshold: Documents in a segment from which it is searched approximately; below it
            the scores are exact. OpenSearch's default is 1,000,000.
        n_postings: Longest posting list that is kept.
        summary_prune_ratio: Share of a cluster's weight that its summary keeps.
        cluster_ratio: Clusters for each posting of a list.
        quantization_ceiling_ingest: Largest weight of a document; larger ones are cut to it.
        quantization_ceiling_search: Largest weight of a query.
    """

    approximate_threshold: int | None = None
    n_postings: int | None = None
    summary_prune_ratio: float | None = None
    cluster_ratio: float | None = None
    quantization_ceiling_ingest: float | None = None
    quantization_ceiling_search: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The parameters that were given."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class IndexSettings:
    """How an index is to be made.

    Args:
        kind: Type of the vector's field.
        shards: Primary shards; None means one.
        replicas: Copies of each shard; None means one where there is a second node to hold it.
        sparse_vector: Parameters of the method, for ``sparse_vector`` only.
        embedding_field: Name of the vector's field.
        passage_field: Name of the field with the text that is encoded.
        mappings: More properties, for the documents' own fields.
        mapping: What else the mapping shall say, such as ``dynamic``.
        settings: More settings, flat and without ``index.``.
        analyzer: Of the passages, for BM25; None leaves OpenSearch's default.
        text_fields: What BM25 searches in the place of the passages, as in ``title^2,body``.
        chunking: How documents are cut; each chunk has a vector, in the nested :data:`CHUNKS_FIELD`. None
            encodes a document as one passage.
        semantic: Make the passages a ``semantic`` field, which the cluster encodes whoever writes it; its
            vectors are ``rank_features`` in a field of its own, and leave ``_source``.
    """

    kind: IndexKind = "rank_features"
    shards: int | None = None
    replicas: int | None = None
    sparse_vector: SparseVectorParameters = SparseVectorParameters()
    embedding_field: str = "embedding"
    passage_field: str = "passage"
    mappings: Mapping[str, Any] = field(default_factory=dict)
    mapping: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    analyzer: str | None = None
    text_fields: str | None = None
    chunking: Chunking | None = None
    semantic: bool = False

    def __post_init__(self) -> None:
        if self.kind not in INDEX_KINDS:
            raise UsageError(f"unknown index kind {self.kind!r}", hint=f"Use {' or '.join(INDEX_KINDS)}")
        if self.kind != "sparse_vector" and (given := self.sparse_vector.to_dict()):
            raise UsageError(f"{', '.join(given)}: only for sparse_vector, not for {self.kind}")
        if self.embedding_field == self.passage_field:
            raise UsageError(f"embedding and passage cannot both be the field {self.passage_field!r}")
        if self.semantic:
            self._be_semantic()
        index_body(IndexInfo("", self.kind, "token"), self)  # refuses what contradicts what we need
        if self.chunking is not None:
            self._check_chunks()

    @property
    def nested(self) -> str | None:
        """The ``nested`` objects that hold the vectors; None where a document has one vector."""
        return CHUNKS_FIELD if self.chunking is not None else None

    @property
    def embedding_path(self) -> str:
        """Where the vectors are."""
        return f"{self.nested}.{self.embedding_field}" if self.nested else self.embedding_field

    def _check_chunks(self) -> None:
        if "." in self.embedding_field or self.embedding_field in ("text", "start"):
            raise UsageError(f"the vectors of chunks cannot be in {self.embedding_field!r}: use a plain name")
        if CHUNKS_FIELD in (self.passage_field, *(self.text_fields or "").split(",")):
            raise UsageError(f"the field {CHUNKS_FIELD!r} holds the chunks, and no other text")
        source = self.mapping.get("_source") or {}
        of_chunks = (CHUNKS_FIELD, f"{CHUNKS_FIELD}.text")

        def names(what: str) -> bool:
            given = source.get(what) or ()
            patterns = [given] if isinstance(given, str) else given
            return any(fnmatchcase(name, pattern) for name in of_chunks for pattern in patterns)

        if names("excludes") or (source.get("includes") and not names("includes")):
            raise UsageError(
                f"--mappings leaves the texts of {CHUNKS_FIELD!r} out of _source: no passage could be told",
                hint=f"Exclude {self.embedding_path} alone",
            )

    def _be_semantic(self) -> None:
        field = f"{self.passage_field}{SEMANTIC_INFO}.embedding"
        if self.kind != "rank_features":
            raise UsageError(f"the vectors of a semantic field are rank_features, never {self.kind}")
        if self.chunking is not None:
            raise UsageError("a semantic field does not take texts in chunks", hint="Leave --chunk out")
        if self.embedding_field not in ("embedding", field):
            raise UsageError(
                f"a semantic field keeps its vectors in {field}, not in {self.embedding_field!r}",
                hint="Leave --embedding-field out",
            )
        object.__setattr__(self, "embedding_field", field)


@dataclass(frozen=True)
class EncoderIdentity:
    """Which encoder made the vectors of an index, as far as it is known.

    Args:
        sha256: Of the archive (client) or the model's content (cluster).
        name: For messages.
        architecture: Whether queries need an encoder, or a tokenizer and IDF.
        model_id: The model behind the ingest pipeline.
        query_sha256: Of the tokenizer archive of an inference-free encoder.
        query_model_id: The model that encodes queries, if it is another.
    """

    sha256: str | None = None
    name: str | None = None
    architecture: Architecture | None = None
    model_id: str | None = None
    query_sha256: str | None = None
    query_model_id: str | None = None


@dataclass(frozen=True)
class IndexInfo:
    """How an index was made.

    Args:
        name: The index.
        kind: Type of the vector's field.
        key: Whether the vector's keys are token texts or token ids.
        embedding_field: Name of the vector's field.
        passage_field: Name of the field with the text that was encoded; None in an index of others.
        encode: Where documents were encoded (``"none"``: they came with vectors); None in an index that oskit
            did not make.
        encoder: By what.
        prune: Which weights were kept, as ``TYPE:RATIO``.
        text_field: Name of the documents' own field with the text, if known; for showing hits.
        title_field: The same for the title.
        nested: The ``nested`` objects that hold the vectors; None where a document has one vector.
        chunking: How oskit cut the documents, as :class:`~oskit.data.chunks.Chunking` writes it; None if not.
        generation: Another one makes all documents unknown, whose vectors somebody's pipeline may have made.
        text_fields: What BM25 searches in the place of the passages, as in ``title^2,body``.
        given: Tells which settings and mappings were given for it (:mod:`oskit.cluster.index.given`).
        vectors: All fields of vectors that the mapping has, these and others.
    """

    name: str
    kind: IndexKind
    key: KeyFormat
    embedding_field: str = "embedding"
    passage_field: str | None = "passage"
    encode: EncodeMode | None = None
    encoder: EncoderIdentity = EncoderIdentity()
    prune: str | None = None
    text_field: str | None = None
    title_field: str | None = None
    nested: str | None = None
    chunking: str | None = None
    generation: str | None = None
    text_fields: str | None = None
    given: str | None = None
    vectors: tuple[str, ...] = field(default=(), compare=False)

    @property
    def embedding_name(self) -> str:
        """The vector's name inside of the objects that hold it."""
        return self.embedding_field[len(self.nested) + 1 :] if self.nested else self.embedding_field

    def to_meta(self) -> dict[str, Any]:
        """What stands in the mapping's ``_meta.oskit``."""
        own = {**vars(self), **vars(self.encoder)}  # the index's own name gives way to the encoder's
        del own["encoder"], own["vectors"]
        return {_RENAMED.get(name, name): value for name, value in own.items() if value is not None}

    @classmethod
    def from_meta(cls, name: str, meta: Mapping[str, Any]) -> IndexInfo:
        """The inverse of :meth:`to_meta`; entries of a later oskit are ignored."""
        of_both = (*fields(cls), *fields(EncoderIdentity))
        names = [attribute.name for attribute in of_both if attribute.name != "vectors"]
        # Anybody can write there: what is no text counts as missing.
        said = {key: value for key, value in meta.items() if isinstance(value, str)}
        own: dict[str, Any] = {key: said.get(_RENAMED.get(key, key)) for key in names}
        encoder = {attribute.name: own.pop(attribute.name) for attribute in fields(EncoderIdentity)}
        own["encoder"] = EncoderIdentity(**encoder)
        own["key"] = own["key"] or key_for(meta["kind"], "token")
        own["embedding_field"] = own["embedding_field"] or "embedding"
        if own["encode"] is not None:
            own["passage_field"] = own["passage_field"] or "passage"
        return cls(**{**own, "name": name})


_RENAMED = {"embedding_field": "field", "sha256": "encoder_sha256", "name": "encoder_name"}
"""Attributes of :class:`IndexInfo` and :class:`EncoderIdentity` that have another name in the mapping."""


def key_for(kind: IndexKind, vocabulary_key: KeyFormat) -> KeyFormat:
    """The key of an index: ids for ``sparse_vector``, and where token texts are ambiguous."""
    return "id" if kind == "sparse_vector" else vocabulary_key


def check_vocabulary(kind: IndexKind, size: int) -> None:
    """Refuse what would destroy an index later.

    Raises:
        UsageError: The vocabulary has more tokens than ``sparse_vector`` can hold.
    """
    if kind == "sparse_vector" and size > MAX_SPARSE_VECTOR_VOCABULARY:
        raise UsageError(
            f"the encoder has {size:,} tokens, and sparse_vector holds ids below "
            f"{MAX_SPARSE_VECTOR_VOCABULARY:,}: larger ones fail the shard or fall together",
            hint="Use --index-kind rank_features",
        )


def delete_index(client: OpenSearch, name: str) -> None:
    """Delete an index, and its ingest pipeline if that is ours alone; neither need exist.

    Raises:
        IndexingError: The cluster refuses.
    """
    check_index_name(name)
    with cluster_errors(f"delete the index {name!r}", IndexingError):
        client.indices.delete(index=name, params={"ignore_unavailable": "true"})
    no_pipeline(client, name).make(client)


def index_body(info: IndexInfo, settings: IndexSettings) -> dict[str, Any]:
    """Settings and mapping of an index.

    Raises:
        UsageError: What is given for it contradicts what it needs.
    """
    index: dict[str, Any] = {} if settings.shards is None else {"number_of_shards": settings.shards}
    if settings.replicas is not None:
        index["number_of_replicas"] = settings.replicas
    if info.kind == "sparse_vector":
        index["sparse"] = True
    index = joined(index, flat_settings(settings.settings), "--settings")
    index.setdefault("number_of_shards", 1)
    if not {"number_of_replicas", "auto_expand_replicas"} & index.keys():
        index["auto_expand_replicas"] = "0-1"
    properties = own_fields(settings)
    if settings.semantic:
        properties[settings.passage_field] |= _encoded_by(info)
    given = expanded(settings.mappings)
    if definition_of(given, settings.embedding_path).get("positive_score_impact") in (False, "false"):
        raise UsageError(f"--mappings makes weights of {settings.embedding_field!r} count against a document")
    mapping = {
        # Or the first text that looks like a date makes a date field, and refuses the second text.
        "date_detection": False,
        **settings.mapping,
        "properties": joined(expanded(properties), given, "--mappings", "properties"),
    }
    if settings.semantic:
        # What a bulk update sends is merged into what is there: tokens of the old text would stay.
        source = mapping.get("_source") or {}
        excludes = [*source.get("excludes", ()), settings.embedding_field]
        mapping["_source"] = {**source, "excludes": list(dict.fromkeys(excludes))}
    mapping["_meta"] = {**settings.mapping.get("_meta", {}), META_KEY: info.to_meta()}
    return {"settings": {"index": index}, "mappings": mapping}


def _encoded_by(info: IndexInfo) -> dict[str, Any]:
    """What a ``semantic`` field is told of its models, and which weights it keeps."""
    kind, _, ratio = (info.prune or "none").partition(":")
    rule = {"prune_type": kind} | ({"prune_ratio": float(ratio)} if ratio else {})
    models = {"model_id": info.encoder.model_id, "search_model_id": info.encoder.query_model_id}
    told = {name: model for name, model in models.items() if model is not None}
    return {**told, "sparse_encoding_config": rule}


def own_fields(settings: IndexSettings) -> dict[str, Any]:
    """The fields that an index needs: for vectors, marks, passages and other texts."""
    text = {"type": "text"} | ({"analyzer": settings.analyzer} if settings.analyzer else {})
    passage = {**text, "type": "semantic"} if settings.semantic else text
    fields = {**_needed(settings.kind, settings), settings.passage_field: passage}
    if settings.text_fields:
        fields |= {name.split("^")[0]: text for name in settings.text_fields.split(",")}
    return fields


def _needed(kind: IndexKind, settings: IndexSettings) -> dict[str, Any]:
    """The fields for the vectors and for the marks."""
    if settings.semantic:
        return dict(MARK_BODY["properties"])
    vector: dict[str, Any] = {"type": kind}
    if kind == "sparse_vector":
        vector["method"] = {"name": "seismic", "parameters": settings.sparse_vector.to_dict()}
    if not settings.nested:
        return {**MARK_BODY["properties"], settings.embedding_field: vector}
    # BM25 looks into the whole text at the root, where overlaps do not count twice.
    chunk = {"text": {"type": "text", "index": False}, "start": {"type": "integer", "index": False}}
    chunk[settings.embedding_field] = vector
    return {**MARK_BODY["properties"], settings.nested: {"type": "nested", "properties": chunk}}


def approximate_from(properties: Mapping[str, Any], field: str) -> int:
    """Documents of a segment from which a ``sparse_vector`` field is searched approximately."""
    method = definition_of(properties, field).get("method") or {}
    return int((method.get("parameters") or {}).get("approximate_threshold", APPROXIMATE_THRESHOLD))


def find_index(client: OpenSearch, name: str, field: str | None = None) -> tuple[Target, IndexInfo] | None:
    """The index that a name stands for, to be searched, and how it was made; None if there is none.

    Args:
        field: Of the vectors, where the index has several.

    Raises:
        IndexingError: The name stands for several indexes that are no data stream, or their vectors are not
            alike; the index has no field for sparse vectors or several; or the cluster refuses.
    """
    target = resolve(client, name)
    if target is not None and len(target.parts) > 1:
        return _find_in_parts(client, target, field)
    info = read_index(client, target.index, field) if target is not None else None
    return None if target is None or info is None else (target, info)


def _find_in_parts(client: OpenSearch, target: Target, field: str | None) -> tuple[Target, IndexInfo] | None:
    """Of a data stream those indexes that have vectors, and how the newest that is known was made."""
    with cluster_errors(f"read {target}", IndexingError):
        answer = client.indices.get_mapping(index=target.index, params={"ignore_unavailable": "true"})
    mappings = {part: answer[part]["mappings"] for part in target.parts if part in answer}
    known: dict[str, IndexInfo] = {}
    for part, mapping in mappings.items():
        if any(field in (None, found.path) for found in sparse_fields(mapping.get("properties") or {})):
            known[part] = info_of(part, mapping, field)
    if not known:
        return next(((target, info_of(part, mapping, field)) for part, mapping in mappings.items()), None)
    noted = [part for part in known if own_meta(mappings[part])] or list(known)
    chosen = known[noted[-1]]
    for part, info in known.items():
        alike = [(one.kind, one.embedding_field, one.nested) for one in (info, chosen)]
        shas = {one.encoder.sha256 for one in (info, chosen)} - {None}
        keys = {one.key for one in (info, chosen) if one.name in noted}
        if alike[0] != alike[1] or len(shas) > 1 or len(keys) > 1:
            raise IndexingError(
                f"{target} has other vectors in {part} than in {chosen.name}", hint="Name the index itself"
            )
    lacks = tuple(part for part in mappings if part not in known)
    return replace(target, index=",".join(known), lacks=lacks), chosen


def read_index(client: OpenSearch, name: str, field: str | None = None) -> IndexInfo | None:
    """How an index was made; None if there is none.

    An index that oskit did not make is read by its mapping.

    Args:
        name: Of the index itself (:func:`oskit.cluster.index.names.resolve`).
        field: Of the vectors; without it the one that oskit made, or else the only one there is.

    Raises:
        IndexingError: The index has no field for sparse vectors, not this one, or several, or the cluster
            refuses.
    """
    with cluster_errors(f"read the index {name!r}", IndexingError):
        answer = client.indices.get_mapping(index=name, params={"ignore_unavailable": "true"})
    if name not in answer:
        return None
    return info_of(name, answer[name]["mappings"], field)


def info_of(name: str, mapping: Mapping[str, Any], field: str | None = None) -> IndexInfo:
    """How an index with this mapping was made; see :func:`read_index`.

    Raises:
        IndexingError: It has no field for sparse vectors, not this one, or several.
    """
    meta, properties = own_meta(mapping), mapping.get("properties") or {}
    vectors = tuple(vector_paths(properties))
    if meta.get("kind") in INDEX_KINDS:
        own = IndexInfo.from_meta(name, meta)
        if field in (None, own.embedding_field):
            return replace(own, vectors=vectors)
    elif "kind" in meta and field is None:
        raise IndexingError(
            f"the index {name!r} is of the kind {meta['kind']!r}, which this oskit does not know",
            hint="Use a newer oskit",
        )
    candidates = sparse_fields(properties)
    chosen = [found for found in candidates if field in (None, found.path)]
    names = ", ".join(found.path for found in candidates)
    if not candidates:
        raise IndexingError(
            f"the index {name!r} has no field of the types {' or '.join(INDEX_KINDS)}",
            hint="Load documents with `oskit ingest` into an index of another name",
        )
    if not chosen:
        raise IndexingError(f"the index {name!r} has no sparse vectors in {field!r}", hint=f"It has: {names}")
    if len(chosen) > 1:
        raise IndexingError(
            f"the index {name!r} has sparse vectors in {len(chosen)} fields: {names}",
            hint="Choose one with --field",
        )
    (found,) = chosen
    kind = cast(IndexKind, found.type)
    return IndexInfo(
        name,
        kind,
        key_for(kind, "token"),
        found.path,
        found.text,
        encoder=EncoderIdentity(model_id=found.model_id, query_model_id=found.query_model_id),
        prune=found.prune,
        text_field=found.text,
        nested=found.nested,
        vectors=vectors,
    )


def index_uuid(client: OpenSearch, name: str) -> str | None:
    """What tells an index from a later one of the same name; None if there is none.

    Raises:
        IndexingError: The cluster refuses.
    """
    with cluster_errors(f"read the index {name!r}", IndexingError):
        answer = client.indices.get_settings(
            index=name, name="index.uuid", params={"flat_settings": "true", "ignore_unavailable": "true"}
        )
    return ",".join(sorted(found["settings"]["index.uuid"] for found in answer.values())) or None
