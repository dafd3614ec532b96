"""Everything that talks to OpenSearch: connection, models, indexes, ingest, search, a local node."""
