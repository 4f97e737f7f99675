"""What all open pages and `/swarm/state.json` show, prepared once for all of them. Knows no Bokeh."""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from swarm.dashboard.view_model import RatePoint, ViewModel

logger = logging.getLogger(__name__)


class Board:
    """The sections of the page as JSON texts, made anew when an event arrived or a second went by.

    `about` is constant: `cluster` (scheduler address) and `version` (of swarm). `clock` returns POSIX seconds.
    Reading never raises: a failure of the view model is logged once and becomes a section of its own, next to the
    last values that were good.
    """

    def __init__(self, view_model: ViewModel, about: Mapping[str, str], clock: Callable[[], float]) -> None:
        self.is_closed = False
        self._view_model = view_model
        self._clock = clock
        self._failures: dict[str, str] = {}
        self._logged: set[str] = set()
        self._sections = {"about": json.dumps(about)}
        self._drawn: tuple[int, int] | None = None

    def sections(self) -> dict[str, str]:
        """Section of the page → JSON text: `about`, those of `ViewModel.state`, `failure` and `is_closed`."""
        now_s = self._clock()
        drawn = (self._view_model.version, int(now_s))
        if drawn != self._drawn:
            with self.guard("state"):
                state = self._view_model.state(now_s)
                self._sections |= {name: json.dumps(part, allow_nan=False) for name, part in state.items()}
            self._drawn = drawn
        failure = "; ".join(self._failures.values())
        return self._sections | {"failure": json.dumps(failure), "is_closed": json.dumps(self.is_closed)}

    def rates(self, after_s: float = 0.0) -> list[RatePoint]:
        """Points of the tasks-per-second series later than `after_s`, oldest first."""
        points: list[RatePoint] = []
        with self.guard("rates"):
            points = self._view_model.rates(after_s)
        return points  # noqa: RET504 — mypy does not see that the guard swallows exceptions

    @contextmanager
    def guard(self, part: str) -> Iterator[None]:
        """Keep an exception of the block from the caller: all pages show it until the next time that goes well.

        It is logged the first time that this part fails.
        """
        try:
            yield
        except Exception as error:
            self._failures[part] = text = f"{type(error).__name__}: {error}"
            if part not in self._logged:
                logger.error("The swarm page shows old values, its %s failed: %s", part, text, exc_info=error)
            self._logged.add(part)
        else:
            self._failures.pop(part, None)

    def close(self) -> None:
        """Let all open pages say that they are switched off."""
        self.is_closed = True

    def state(self) -> str:
        """All sections as one JSON object."""
        return "{" + ",\n".join(f'"{name}": {text}' for name, text in self.sections().items()) + "}\n"
