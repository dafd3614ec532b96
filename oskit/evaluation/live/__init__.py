"""The cluster beside exact scores: the proof."""
