"""Options that say how `oskit ingest` makes an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.cli.output import Output
    from oskit.cluster.index.mapping import IndexSettings
    from oskit.data.text_fields import TextFields

# fmt: off
INDEX_OPTIONS = [
    click.option("--settings", "settings_file", metavar="FILE", type=click.Path(dir_okay=False),
                 help="JSON with more settings of the index, analyzers for one."),
    click.option("--mappings", "mappings_file", metavar="FILE", type=click.Path(dir_okay=False),
                 help="JSON with the mapping of the documents' own fields."),
    click.option("--analyzer", metavar="NAME",
                 help="Of the passages, for BM25: a built-in one, such as german, or one of --settings."),
]
# fmt: on


def text_fields(options: dict[str, Any], out: Output) -> TextFields:
    """The fields with the text, as they were named.

    Raises:
        UsageError: They cannot be what is meant, or leave --title-field without effect.
    """
    from oskit.data.text_fields import TextFields

    fields = TextFields.parse(options["text_field"])
    title, context = options["title_field"], click.get_current_context()
    named = context.get_parameter_source("title_field") is click.core.ParameterSource.COMMANDLINE
    if named and len(fields.names) > 1 and fields.names[0] != title:
        raise UsageError(
            f"--title-field {title} has no effect beside several text fields of which it is not the first",
            hint=f"Put it in front: --text-field {','.join([title, *fields.names])}",
        )
    if fields.boosts:
        out.note("Boosts of --text-field count where BM25 searches; what is encoded has none")
    return fields


def index_settings(options: dict[str, Any], fields: TextFields, out: Output) -> IndexSettings:
    """How the index shall be made.

    Raises:
        DataError, UsageError: A file cannot be read, or options do not fit together.
    """
    from oskit.cluster.index.given import read_mapping, read_settings
    from oskit.cluster.index.mapping import IndexSettings, SparseVectorParameters
    from oskit.data.chunks import Chunking

    if options["index_kind"] == "semantic":
        kept = options["prune"] or "max_ratio:0.1, OpenSearch's default; --prune none keeps all"
        out.note(
            f"A semantic field: rank_features that the cluster encodes, whoever writes; pruned by {kept}"
        )
    mapping = read_mapping(options["mappings_file"]) if options["mappings_file"] else {}
    return IndexSettings(
        kind="rank_features" if options["index_kind"] == "semantic" else options["index_kind"],
        semantic=options["index_kind"] == "semantic",
        shards=options["shards"],
        replicas=options["replicas"],
        sparse_vector=SparseVectorParameters(approximate_threshold=options["approximate_threshold"]),
        embedding_field=options["embedding_field"],
        passage_field=options["passage_field"],
        mappings=mapping.pop("properties", {}),
        mapping=mapping,
        settings=read_settings(options["settings_file"]) if options["settings_file"] else {},
        analyzer=options["analyzer"],
        text_fields=fields.for_bm25,
        chunking=Chunking.parse(options["chunk"]) if options["chunk"] else None,
    )
