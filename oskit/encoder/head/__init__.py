"""The projection to the vocabulary, and its maxima without the logits of all positions."""
