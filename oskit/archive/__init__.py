"""The hand-over point: what an ML Commons archive is, and the archive as an encoder. No torch."""
