"""What the tasks of the real cluster do; its workers import this."""

from __future__ import annotations

import time


def nap(duration_s: float, output_bytes: int, *inputs: object) -> bytes:
    time.sleep(duration_s)
    return bytes(output_bytes)
