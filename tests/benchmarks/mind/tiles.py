"""What the tasks of the Cholesky benchmark do; its workers import this."""

from __future__ import annotations

import time


def potrf(sleep_s: float, *tiles: object) -> None:
    """Factorise a tile of the diagonal."""
    time.sleep(sleep_s)


def trsm(sleep_s: float, *tiles: object) -> None:
    """Solve for a tile below it."""
    time.sleep(sleep_s)


def syrk(sleep_s: float, *tiles: object) -> None:
    """Update a tile of the diagonal."""
    time.sleep(sleep_s)


def gemm(sleep_s: float, *tiles: object) -> None:
    """Update any other tile."""
    time.sleep(sleep_s)
