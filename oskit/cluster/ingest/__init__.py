"""A load: read → check → encode → send → account."""
