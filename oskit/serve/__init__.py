"""An archive as an HTTP service: queue → batches by a budget of tokens → back end → answer."""
