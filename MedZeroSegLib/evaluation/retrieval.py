"""Retrieval between pictures and captions: how often the right one is among the first, by the size of the pool.

A figure without its pool means nothing: one of 50 is far easier to find than one of 1,000.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TOPS = (1, 2, 5)
POOLS = (50, 1000)  # pairs; what does not fit in is left out, and all pairs are a pool besides
SHUFFLES = 5  # of the pairs before they are parted into pools
DIRECTIONS = ("image to text", "text to image")


@dataclass(frozen=True)
class Retrieval:
    """Shares of queries whose answer is among the first ``TOPS``, for one pool size and direction.

    Attributes
    ----------
    pool, queries
        Pairs that a query chooses among, and queries counted.
    """

    direction: str
    pool: int
    queries: int
    tops: tuple[float, ...]


def retrieval(images: np.ndarray, texts: np.ndarray, twins: np.ndarray, seed: int = 0) -> list[Retrieval]:
    """Both directions for each pool size that the pairs fill, and for all pairs as one pool.

    Parameters
    ----------
    images, texts
        Unit vectors [n, d] of the pairs.
    twins
        bool [n, n]: pairs that show or say the same, each of which counts as the right answer.
    """
    cosine = images @ texts.T
    found = []
    for pool in [size for size in POOLS if size < len(cosine)] + [len(cosine)]:
        ranks: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for rows in _pools(len(cosine), pool, seed):
            part, same = cosine[np.ix_(rows, rows)], twins[np.ix_(rows, rows)]
            ranks[0].append(ranks_of(part, same))
            ranks[1].append(ranks_of(part.T, same.T))
        for direction, pieces in zip(DIRECTIONS, ranks, strict=True):
            rank = np.concatenate(pieces)
            tops = tuple(float((rank < top).mean()) for top in TOPS)
            found.append(Retrieval(direction, pool, len(rank), tops))
    return found


def ranks_of(cosine: np.ndarray, twins: np.ndarray) -> np.ndarray:
    """For each row, how many wrong answers are at least as near as the best right one; 0 is found first."""
    best = np.where(twins, cosine, -np.inf).max(1, keepdims=True)
    return ((cosine >= best) & ~twins).sum(1)


def mcnemar(before: np.ndarray, after: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test for paired hits, bool [n] each; 1 where none differs."""
    from scipy.stats import binomtest

    won, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return float(binomtest(won, won + lost, 0.5).pvalue) if won + lost else 1.0


def retrieval_table(named: Sequence[tuple[str, list[Retrieval]]]) -> str:
    """Markdown table of several models."""
    lines = [
        "| weights | direction | pool | queries | " + " | ".join(f"top-{top}" for top in TOPS) + " |",
        "| --- | --- | --- | --- |" + " --- |" * len(TOPS),
    ]
    for name, rows in named:
        lines += [
            f"| {name} | {row.direction} | {row.pool:,} | {row.queries:,} | "
            + " | ".join(f"{100 * share:.2f} %" for share in row.tops)
            + " |"
            for row in rows
        ]
    return "\n".join(lines)


def _pools(count: int, pool: int, seed: int) -> list[np.ndarray]:
    """Rows of each pool: all pairs, or every pair in one pool of each shuffle but for a remainder."""
    if pool == count:
        return [np.arange(count)]
    orders = [np.random.default_rng((seed, n)).permutation(count) for n in range(SHUFFLES)]
    return [order[start : start + pool] for order in orders for start in range(0, count - pool + 1, pool)]
