"""Everything that talks to OpenSearch: connection, models, indexes, ingest, search."""
