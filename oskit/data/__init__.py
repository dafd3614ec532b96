"""Files on disk: documents and collections, of every format, each record kept or refused."""
