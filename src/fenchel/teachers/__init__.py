"""Teachers that are no live model: the largest probabilities of one, and whole caches of them on disk."""
