"""A trained model in use: its card, its files for other programs, embeddings, and decisions with its thresholds."""
