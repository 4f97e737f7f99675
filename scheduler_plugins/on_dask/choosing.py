"""Choice of strategy: each busy period of the cluster runs by one, and how it went is told to the bandit.

A busy period begins with a graph that comes to an idle cluster, and ends when nothing runs or waits to run. Nothing is
done per task: what tasks took is counted by `Placing` anyway. What reads and writes files, and the import of river, are
beside the event loop; where `swarm tune` has found nothing, the default is used and nothing is learned.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, log2
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from scheduler_plugins.decide.evolution import difference
from scheduler_plugins.decide.strategy import DEFAULT, Strategy
from scheduler_plugins.io.strategies import Choices, Found, Strategies, fingerprint
from scheduler_plugins.on_dask.idle_tuning import IdleTuning

if TYPE_CHECKING:
    from distributed import Scheduler
    from structlog.stdlib import BoundLogger

    from scheduler_plugins.learn.strategies import StrategyBandit
    from scheduler_plugins.on_dask.placing import Placing

Key = Any

USUAL = "default"
"""Name of the arm that is the default strategy."""
REFRESH_S = 30.0
"""Between two looks whether `swarm tune` has found something."""
LEAST_S = 1.0
"""A shorter busy period says nothing: its end is noticed up to 0.1 s late."""
LOOKED_AT = 512
"""Tasks of a graph that are looked at, to see which groups it has."""
OVER = ("memory", "erred", "forgotten")
SAVE_PATIENCE_S = 2.0


@dataclass(slots=True)
class Episode:
    """A busy period."""

    work: str
    """What kind of work, on how large a cluster."""
    arm: str
    began_s: float
    worked_s: float
    """What `Placing` had counted when it began."""
    threads: int
    is_steady: bool = True
    """Whether there were so many threads all the time."""


def arm_of(strategy: Strategy) -> str:
    """A name: the numbers in which it differs from the default.

    >>> arm_of(Strategy(gravity=4.0))
    'gravity=4'
    """
    return ", ".join(f"{name}={value:g}" for name, value in difference(strategy).items()) or USUAL


class Choosing:
    """Sets the strategy of the placement at the beginning of each busy period.

    Whatever is raised here leaves the default in place; the guard of whoever calls counts it.

    Parameters
    ----------
    folder
        Where strategies and what became of them are kept; None: nowhere, and the default is always used.
    on_failure
        Is told what went wrong beside the event loop.
    on_chosen
        Is told the name of the strategy of each busy period in which there is a choice, and None when it is over.
    tune_when_idle
        Whether recorded runs are tuned on by a child process while the cluster is idle.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        placing: Placing,
        log: BoundLogger,
        folder: Path | None,
        on_failure: Callable[[Exception], None],
        on_chosen: Callable[[str | None], None] = lambda _: None,
        *,
        tune_when_idle: bool = False,
    ) -> None:
        self.episodes = 0
        """Busy periods that have taught something."""
        self.episode: Episode | None = None
        self.work = ""
        """What kind of work the last busy period had, as the bandit calls it."""
        self.by_advice = 0
        """Busy periods that began with advice."""
        self._advised: dict[str, str] = {}
        """Work → the arm to try first."""
        self.found = Found()
        self.bandit: StrategyBandit | None = None
        self._scheduler = scheduler
        self._placing = placing
        self._log = log
        self._folder = folder
        self._on_failure = on_failure
        self._on_chosen = on_chosen
        self._strategies = None if folder is None else Strategies(folder)
        self._choices = None if folder is None else Choices(folder)
        self._tuning = IdleTuning(folder, log) if folder is not None and tune_when_idle else None
        self._beside: ThreadPoolExecutor | None = None
        self._stamp: tuple[int, int] | None = None
        self._saving: asyncio.Future[None] | None = None
        self._is_busy = False
        self._idle_since_s = time.monotonic()
        self._refreshed_at_s = -inf

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read what `swarm tune` has found, beside the running event loop."""
        if self._strategies is not None:
            self._beside = ThreadPoolExecutor(max_workers=1, thread_name_prefix="swarm-strategies")
            self._refresh(time.monotonic())

    def stop(self) -> None:
        """End at once, and leave the default in place; may be called again."""
        self._use_default()
        if self._tuning is not None:
            self._tuning.close()
        if self._beside is not None:
            self._beside.shutdown(wait=False, cancel_futures=True)
            self._beside = None

    async def close(self) -> None:
        """The scheduler closes: wait for what is being saved, for a moment.

        A local cluster closes as soon as its work is done, before anybody has looked.
        """
        if self.episode is not None and self._placing.is_installed and self._is_over():
            self._end(time.monotonic())
        if self._saving is not None:
            await asyncio.wait((self._saving,), timeout=SAVE_PATIENCE_S)
        self.stop()

    def _use_default(self) -> None:
        self.episode = None
        self._on_chosen(None)
        if self._placing.is_installed:
            self._placing.placement.strategy = DEFAULT

    # -- busy periods ----------------------------------------------------------------------------------------------

    def update_graph(self, tasks: Collection[Key]) -> None:
        """A graph has come, and nothing of it has been given to anybody yet."""
        if self._folder is None or self._is_busy or not tasks:
            return
        self._is_busy = True
        if self._tuning is not None:
            self._tuning.stop()
        if self.bandit is not None and self.found.of:
            try:
                self._begin(tasks, self.bandit)
            except Exception:
                self._use_default()
                raise

    def _begin(self, tasks: Collection[Key], bandit: StrategyBandit) -> None:
        print_ = fingerprint(self._functions(tasks))
        threads = self._scheduler.total_nthreads
        self.work = work = f"{print_} on 2^{round(log2(max(threads, 1)))} threads"
        arms = {USUAL: DEFAULT} | {arm_of(each): each for each in self.found.for_work(print_)}
        advised = self._advised.get(work)
        if advised is not None and (strategy := self._found(advised)) is not None:
            arms.setdefault(advised, strategy)
            self.by_advice += 1
        if len(arms) == 1:
            return
        arm = bandit.choose(work, list(arms), advised)
        self._placing.placement.strategy = arms[arm]
        self.episode = Episode(work, arm, time.monotonic(), self._placing.done_s, threads)
        self._on_chosen(arm)
        self._log.info("strategy_chosen", strategy=arm, work=self.found.names.get(print_, print_), threads=threads)

    def advise(self, work: str, arm: str | None) -> str:
        """Try this arm first with such work; None: as usual. Returns why not, if it can't be."""
        if arm is None:
            return "" if self._advised.pop(work, None) is not None else "nothing was advised"
        if self._found(arm) is None:
            return f"strategy {arm} is not known (any more)"
        self._advised[work] = arm
        return ""

    def _found(self, arm: str) -> Strategy | None:
        """What `swarm tune` has found for any work, or the default."""
        every = (each for strategies in self.found.of.values() for each in strategies)
        return DEFAULT if arm == USUAL else next((each for each in every if arm_of(each) == arm), None)

    def _functions(self, tasks: Collection[Key]) -> dict[str, int]:
        """How many tasks of which function are to be done; from the groups that Dask counts."""
        known = self._scheduler.tasks
        keys = list(tasks)
        groups = {known[key].group for key in keys[:: len(keys) // LOOKED_AT + 1] if key in known}
        counts: dict[str, int] = {}
        for group in groups:
            open_ = sum(count for state, count in group.states.items() if state not in OVER)
            counts[group.prefix.name] = counts.get(group.prefix.name, 0) + open_
        return counts

    def look(self) -> None:
        """What time alone shows, every 0.1 s."""
        if self._folder is None:
            return
        now_s = time.monotonic()
        if self._is_busy:
            if self.episode is not None and self._scheduler.total_nthreads != self.episode.threads:
                self.episode.is_steady = False
            if self._is_over():
                self._is_busy = False
                self._idle_since_s = now_s
                self._end(now_s)
        elif self._tuning is not None:
            self._tuning.look(now_s, now_s - self._idle_since_s)
        if now_s - self._refreshed_at_s >= REFRESH_S:
            self._refresh(now_s)

    def _is_over(self) -> bool:
        scheduler = self._scheduler
        if self._placing.placement or scheduler.queued or scheduler.unrunnable:
            return False
        return not any(worker.processing for worker in scheduler.workers.values())

    def _end(self, now_s: float) -> None:
        """A busy period is over: tell the bandit, and go back to the default until the next one."""
        episode = self.episode
        self._use_default()
        if episode is None or self.bandit is None:
            return
        took_s, worked_s = now_s - episode.began_s, self._placing.done_s - episode.worked_s
        if not episode.is_steady or took_s < LEAST_S or worked_s <= 0.0:
            return
        reward = worked_s / (took_s * episode.threads)
        is_retired = self.bandit.learn(episode.work, episode.arm, reward, USUAL)
        self.episodes += 1
        if is_retired:
            self._log.info("strategy_retired", work=episode.work, after=episode.arm)
        self._save(self.bandit)

    # -- files, beside the event loop --------------------------------------------------------------------------------

    def _refresh(self, now_s: float) -> None:
        if self._beside is not None:
            self._refreshed_at_s = now_s
            read = asyncio.get_running_loop().run_in_executor(self._beside, self._read)
            read.add_done_callback(self._on_read)

    def _read(self) -> tuple[Found, StrategyBandit | None] | None:
        """What is new; None where nothing is. Runs beside the event loop."""
        assert self._strategies is not None
        assert self._choices is not None
        stamp = self._strategies.stamp()
        if stamp == self._stamp:
            return None
        self._stamp = stamp
        found, bandit = self._strategies.read(), self.bandit
        if found.of and bandit is None:
            from scheduler_plugins.learn.strategies import StrategyBandit

            bandit = StrategyBandit(Random(0))  # noqa: S311 - which strategy is tried is no secret
            if (state := self._choices.read()) is not None:
                try:
                    bandit.restore(state)
                except (ValueError, TypeError, LookupError, AttributeError) as error:
                    self._choices.put_aside(ValueError(f"it is damaged ({error})"))
        return found, bandit

    def _on_read(self, read: asyncio.Future[tuple[Found, StrategyBandit | None] | None]) -> None:
        if read.cancelled():
            return
        if (error := read.exception()) is not None:
            self._failed(error)
            return
        for document in (self._strategies, self._choices):
            if document is not None and document.refused is not None:
                self._log.warning("strategies_put_aside", reason=str(document.refused))
                document.refused = None
        if (result := read.result()) is not None:
            self.found, self.bandit = result

    def _save(self, bandit: StrategyBandit) -> None:
        if self._beside is not None and self._choices is not None:
            loop = asyncio.get_running_loop()
            self._saving = loop.run_in_executor(self._beside, self._choices.write, bandit.to_state())
            self._saving.add_done_callback(self._on_saved)

    def _on_saved(self, saved: asyncio.Future[None]) -> None:
        if not saved.cancelled() and (error := saved.exception()) is not None:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        self._use_default()
        self._on_failure(error if isinstance(error, Exception) else RuntimeError(repr(error)))
