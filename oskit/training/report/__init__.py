"""What a run found: figures, curves, the card, ``report.json``."""
