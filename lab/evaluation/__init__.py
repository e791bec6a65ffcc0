"""Measuring what a model can do: generation, the sandbox for generated programs, scorers and statistics."""
