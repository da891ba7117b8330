"""Markdown for people to read: tables, paragraphs, and the cells of figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first `left` columns stand to the left, all others to the right."""
    rule = ["---"] * left + ["--:"] * (len(head) - left)
    return "\n".join(
        "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|" for cells in (head, rule, *rows)
    )


def flow(text: str) -> str:
    """One line of a text that is broken only for its source."""
    return " ".join(text.split())


def bullets(lines: Iterable[str]) -> str:
    """A list, a point for each line."""
    return "\n".join(f"- {line}" for line in lines)


def join(*parts: str) -> str:
    """Paragraphs, those that are not empty."""
    return "\n\n".join(part for part in parts if part)


def plain(value: float | None) -> str:
    """A figure with one decimal, "-" where it is undefined."""
    return "-" if value is None else f"{value:.1f}".replace("-0.0", "0.0")


def percent(value: float | None) -> str:
    """A share 0..1 in %."""
    return plain(None if value is None else 100 * value)


def pair(spread: Mapping[str, float | None], factor: float = 1) -> str:
    """Mean ± standard deviation, each times `factor`."""
    mean, sd = spread["mean"], spread["sd"]
    if mean is None:
        return "-"
    return plain(factor * mean) + ("" if sd is None else f" ± {factor * sd:.1f}")
