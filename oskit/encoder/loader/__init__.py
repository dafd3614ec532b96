"""From a name to an encoder: local folder, Hugging Face Hub, base encoder; layouts, files, report."""
