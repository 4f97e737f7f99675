"""Which running task to run a second time, where, and when.  PURE

After Zaharia et al.: "Improving MapReduce performance in heterogeneous environments" (LATE), OSDI 2008, who copy the
task that is thought to end last, and keep a cap on copies; Ananthanarayanan et al.: "Reining in the outliers in
map-reduce clusters using Mantri", OSDI 2010, who copy only where that is likely to be quicker, and where other work
waits only if it also saves resources; and Ananthanarayanan et al.: "Effective straggler mitigation: attack of the
clones" (Dolly), NSDI 2013, for the budget: a small job may copy freely, since that is little of all the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from math import ceil, erfc, exp, inf, log, sqrt
from statistics import NormalDist
from typing import Any, NamedTuple

Key = Any
Worker = Any
"""Hashable, and short as a string: reasons name it. An address is both."""

Z99 = 2.3263
"""99 % of a normal distribution lie below this many standard deviations."""
STUCK_SHARE = 0.01
"""Of all executions, how many are taken to be stuck or slowed down many times, before anything is seen of them. So at
the p99, which one in a hundred healthy ones outlives, either is as likely; and soon after it, stuck is."""
MANTRI = 2.0
"""Where other work waits for a slot: how much longer the original must still take than the copy. Then the copy saves
work on average (Mantri's rule for one copy)."""

SLOWED = 2.0
"""Where nothing else is to be done, a task that is not overdue is copied too, if a worker that is so many times faster
would do it in less than half of the time that it still takes: it runs on a slow one (LATE copies what ends last)."""

MOST_LOOKED_AT = 64
"""Overdue tasks in one call, the most urgent ones: where a thousand are, the cluster is slow, and copies no cure."""


class Rules(NamedTuple):
    """What an operator may set."""

    floor_s: float = 0.5
    """A task that has run for less is never copied. Until a heartbeat (each 0.5 s on small clusters) nobody knows that
    it has begun at all, and the loser's thread stays held for about as long: what is shorter cannot gain."""
    budget_ratio: float = 0.05
    """Seconds that copies may run, over the seconds of all work. The last copy may overdraw it, so that a run of eight
    tasks may copy its one straggler."""
    most_ratio: float = 0.1
    """Of all threads, that may run copies at a time; at least one (LATE's SpeculativeCap)."""
    most_per_task: int = 2
    """Copies of one task, one after the other: what two workers could not do, a third will not either."""


DEFAULT = Rules()


class Estimate(NamedTuple):
    """How long a task will run on a certain worker."""

    p50_s: float
    p90_s: float
    p99_s: float
    samples: int = 0
    """Tasks of its function that have finished; 0: the figures are a guess."""


class Execution(NamedTuple):
    """A task on a thread."""

    worker: Worker
    since_s: float
    estimate: Estimate
    is_suspect: bool = False
    """Whether its worker is suspected, so that it may never be heard of again."""


class Running(NamedTuple):
    """A task that runs, once or twice."""

    key: Key
    original: Execution
    copy: Execution | None = None
    """Its copy, while that runs."""
    copies: int = 0
    """That have been started so far."""
    tail_s: float = 0.0
    """Predicted seconds of the longest chain that waits for its result (upward rank, without itself)."""
    slowness: float = 1.0
    """What it takes there, over what it would take on the fastest worker with a thread to spare."""
    stuck_share: float = STUCK_SHARE
    """For its function, where more is known of it."""


class Offer(NamedTuple):
    """A worker with an idle thread that could run a copy."""

    worker: Worker
    estimate: Estimate
    """Of this task there."""
    transfer_s: float = 0.0
    """To get its inputs there."""

    @property
    def duration_s(self) -> float:
        """What the copy will hardly exceed. Slow may have been the task, not its worker: so not the median."""
        return self.transfer_s + self.estimate.p90_s


class Budget(NamedTuple):
    """What has been spent. The seconds may be those of a window of time."""

    threads: int
    live: int
    """Copies that run."""
    copied_s: float
    """Seconds that copies have run, those that still do included."""
    worked_s: float
    """Seconds that all tasks have run, those that still do included."""


class Copy(NamedTuple):
    """Run a task a second time."""

    key: Key
    source: Worker
    target: Worker
    replaces: Worker | None
    """Where a copy runs that has overrun as well, and is given up for this one."""
    duration_s: float
    """Predicted."""
    reason: str


def choose(
    now_s: float,
    running: Iterable[Running],
    offers: Callable[[Running], Sequence[Offer]],
    budget: Budget,
    backlog_s: float = 0.0,
    rules: Rules = DEFAULT,
) -> list[Copy]:
    """The copies to start now, the most urgent first.

    Parameters
    ----------
    running
        Every task that runs, or those that may be worth it; most are passed over with a few comparisons.
    offers
        Where a copy of this task could run: workers with a thread for which there is nothing else to do, or nothing as
        urgent. Called for overdue tasks only. Each worker is given one copy.
    backlog_s
        Predicted seconds until all that is ready and not critical is done. A task counts as critical when the run
        cannot end before it and what waits for it, although all else is done by then; others are copied to threads that
        have nothing else to do, which is when this is 0.
    """
    late = list(_candidates(now_s, running, rules, is_idle=backlog_s <= 0))
    if not late:
        return []
    late.sort(key=lambda entry: (entry[0] + entry[1].tail_s, entry[1].tail_s), reverse=True)
    copies: list[Copy] = []
    taken: set[Worker] = set()
    live, copied_s = budget.live, budget.copied_s
    most = max(1, ceil(rules.most_ratio * budget.threads))
    for remaining_s, task, is_late in late[:MOST_LOOKED_AT]:
        if copied_s > rules.budget_ratio * budget.worked_s:
            break
        if task.copy is None and live >= most:
            continue
        needed = 1.0
        if backlog_s > 0:
            if remaining_s + task.tail_s <= backlog_s:
                continue
            needed = MANTRI
        best = _best(task, offers(task), taken)
        if best is None:
            continue
        if not is_late:  # the same task here and there: median against median
            needed *= MANTRI * (best.transfer_s + best.estimate.p50_s) / best.duration_s
        if not best.duration_s * needed < remaining_s:  # nor where either is not a number
            continue
        live += task.copy is None
        taken.add(best.worker)
        copied_s += best.duration_s
        replaces = None if task.copy is None else task.copy.worker
        copies.append(
            Copy(
                task.key,
                task.original.worker,
                best.worker,
                replaces,
                best.duration_s,
                _reason(now_s, task, best, remaining_s, is_late),
            )
        )
    return copies


def _candidates(
    now_s: float, running: Iterable[Running], rules: Rules, *, is_idle: bool
) -> Iterator[tuple[float, Running, bool]]:
    """Tasks that a copy might be quicker than: how long each still takes, and whether it is overdue or just slow."""
    for task in running:
        if task.copies >= rules.most_per_task:
            continue
        if is_overdue(now_s, task, rules):
            both = [each for each in (task.original, task.copy) if each is not None]
            yield min(remaining(now_s, each, task.stuck_share) for each in both), task, True
        elif is_idle and task.copy is None and task.slowness > SLOWED:
            elapsed_s = now_s - task.original.since_s
            estimate = task.original.estimate
            if elapsed_s > rules.floor_s:
                # Of a function of which none has ended: as likely as not, it lasts as long again.
                yield (estimate.p50_s - elapsed_s if estimate.samples else elapsed_s), task, False


def is_overdue(now_s: float, task: Running, rules: Rules) -> bool:
    """Whether all executions of a task have outlived what was predicted, or are suspect."""
    share = task.stuck_share
    return _overdue(now_s, task.original, rules, share) and (
        task.copy is None or _overdue(now_s, task.copy, rules, share)
    )


def _overdue(now_s: float, execution: Execution, rules: Rules, stuck_share: float) -> bool:
    elapsed_s = now_s - execution.since_s
    if not elapsed_s > rules.floor_s:
        return False
    if execution.is_suspect:
        return True
    estimate = execution.estimate
    # A guess is no reason; and what few tasks say of a p99 is not much: one allows twice of it, seven a seventh more.
    return estimate.samples > 0 and elapsed_s > limit_s(estimate, stuck_share) * (1.0 + 1.0 / estimate.samples)


def limit_s(estimate: Estimate, stuck_share: float) -> float:
    """Beyond which a task is as likely stuck as it is one of the healthy ones that take so long.

    >>> round(limit_s(Estimate(1.0, 2.0, 4.0), 0.05), 2)
    2.67
    """
    sigma = _sigma(estimate)
    if stuck_share == STUCK_SHARE or sigma is None:
        return estimate.p99_s
    return estimate.p50_s * exp(NormalDist().inv_cdf(1.0 - stuck_share) * sigma)


def remaining(now_s: float, execution: Execution, stuck_share: float = STUCK_SHARE) -> float:
    """Seconds that an execution is expected to go on, given that it has run so long.

    Either it is stuck: a heavy tail, where what has lasted t lasts as long again (the median of a Pareto tail of index
    1). Or it is one of the few healthy ones that take so long: those are about to end. How likely it is stuck follows
    from how few healthy ones would be left (Bayes, from `stuck_share`). A suspected worker may never report it.
    """
    if execution.is_suspect:
        return inf
    elapsed_s = max(0.0, now_s - execution.since_s)
    estimate = execution.estimate
    if elapsed_s <= estimate.p50_s:
        healthy_left, to_go_s = 1.0, estimate.p50_s - elapsed_s
    else:
        healthy_left, to_go_s = _survival(elapsed_s, estimate), 0.0
    stuck = stuck_share / (stuck_share + (1.0 - stuck_share) * healthy_left)
    return stuck * max(elapsed_s, estimate.p50_s) + (1.0 - stuck) * to_go_s


def _survival(elapsed_s: float, estimate: Estimate) -> float:
    """Share of healthy executions that run longer; durations are log-normal, as their quantiles say."""
    sigma = _sigma(estimate)
    if sigma is None:
        return 0.0
    return 0.5 * erfc(log(elapsed_s / estimate.p50_s) / (sigma * sqrt(2.0)))


def _sigma(estimate: Estimate) -> float | None:
    """Of the log of durations; None where they do not differ, or nothing is known."""
    if not (0.0 < estimate.p50_s < estimate.p99_s < inf):
        return None
    sigma = log(estimate.p99_s / estimate.p50_s) / Z99
    return sigma if sigma > 0.0 else None


def _best(task: Running, offers: Sequence[Offer], taken: Collection[Worker]) -> Offer | None:
    tried = {task.original.worker} | ({task.copy.worker} if task.copy is not None else set())
    free = [offer for offer in offers if offer.worker not in taken and offer.worker not in tried]
    return min(free, key=lambda offer: offer.duration_s, default=None)


def _reason(now_s: float, task: Running, best: Offer, remaining_s: float, is_late: bool) -> str:
    """One sentence with the numbers that decided."""
    first = task.original
    why = f"99 % end within {first.estimate.p99_s:.3g} s ({first.estimate.samples} seen)"
    more = f"about {remaining_s:.3g} s more"
    if not is_late:
        why = f"which is {task.slowness:.2g} times slower"
    elif first.is_suspect:
        why, more = "which is suspected", "it may never report it"
    twice = f"; so has its copy, on {task.copy.worker}, for {now_s - task.copy.since_s:.3g} s" if task.copy else ""
    return (
        f"it has run for {now_s - first.since_s:.3g} s on {first.worker}, {why}{twice}: {more}, "
        f"and on {best.worker} {best.duration_s:.3g} s, {best.transfer_s:.3g} s of it for its inputs"
    )
