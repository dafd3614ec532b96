"""Quality without a cluster: exact scores, BM25, dense models, pruning levels, significance."""
