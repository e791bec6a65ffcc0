"""Which rows of a set are trained on, and in which order."""

import random

CALIBRATION_SHARE = 0.1  # of the training rows, kept apart for the coefficients


def split_rows(rows: list, split: str) -> list:
    """The training rows without the calibration rows, or these: the last tenth of the file."""
    cut = len(rows) - max(1, int(len(rows) * CALIBRATION_SHARE))
    return rows[:cut] if split == "train" else rows[cut:]


def shuffled(rows: list, seed: int) -> list:
    return random.Random(seed).sample(rows, len(rows))
