"""What is remembered of a task: entries, short to keep, and what their parts are called.  PURE"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

Entry = Sequence[Any]
"""(what, at_s, …): the rest is what `FIELDS` names."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "ready": ("last_input",),
    "given": ("worker", "rule", "p50_s", "p99_s", "samples", "model", "strategy"),
    "given by Dask": ("worker",),
    "done": ("worker", "start_s", "stop_s", "transfer_s", "transfers", "output_bytes"),
    "left": ("worker", "state", "reason"),
    "asked back": ("worker", "behind", "behind_for_s", "behind_p99_s", "free_in_s"),
    "given back": ("worker",),
    "taken back": ("worker",),
    "kept": ("worker",),
    "copied": ("worker", "to", "elapsed_s", "p50_s", "p99_s"),
    "copy ended": ("worker", "to", "how", "copied_s"),
    "waits": ("reason",),
}
"""What → the names of what follows its time.

ready: it waits for a worker since its last input came. given: to a worker, by a rule of ours. left: it is not on its
worker any more, and has no result. asked back: from a worker where it waits `behind` a task. waits: for anything else,
in words.
"""


def named(entry: Entry) -> dict[str, Any]:
    """An entry as a dict of plain types: keys that are tuples as text, None for what is infinite.

    >>> named(("given back", 12.5, "tcp://10.0.0.5:4000"))
    {'what': 'given back', 'at_s': 12.5, 'worker': 'tcp://10.0.0.5:4000'}

    Raises
    ------
    ValueError
        It is no such entry.
    """
    try:
        what, at_s, *rest = entry
        if what == "given" and len(rest) == len(FIELDS[what]) - 1:
            rest.append(None)  # older journals do not have it
        return {"what": what, "at_s": at_s, **dict(zip(FIELDS[what], map(_plain, rest), strict=True))}
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{entry!r} is no entry of a story") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(_as_key(value))


def _as_key(value: Any) -> Any:
    """JSON has made lists of the tuples."""
    return tuple(map(_as_key, value)) if isinstance(value, list | tuple) else value
