"""Numbers as people read them."""

import numpy as np


def plain(mean: float) -> str:
    """A mean count: without a decimal where it is whole."""
    return f"{mean:.1f}".removesuffix(".0")


def percent(value: float | None) -> str:
    return "" if value is None or np.isnan(value) else f"{100 * value:.1f}"


def percent_range(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def points_range(mean: float, low: float, high: float) -> str:
    return "" if np.isnan(mean) else f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})".replace("-", "−")


def p_said(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def p_value(value: float | None) -> str:
    if value is None or np.isnan(value):
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
