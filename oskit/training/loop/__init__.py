"""The run itself: prepared data, stages, the trainer, its guards."""
