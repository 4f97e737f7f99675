"""Which strategy does best on which kind of work: a bandit that is told how each busy period went.

Thompson sampling (`river.bandit.ThompsonSampling`; Thompson, "On the likelihood that one unknown probability exceeds
another", Biometrika 25, 1933) over the default and its rivals. Importing it takes a second (river): do it beside the
event loop, and only where there are rivals.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from math import isfinite, log, sqrt
from random import Random
from typing import Any

from river import bandit, proba

BURN_IN = 3
"""Busy periods in which each strategy is tried before any is preferred or given up."""
WARM_UP = 2
"""Busy periods of a new kind of work that say nothing: the models of what its tasks cost are still cold."""
WINDOW = 16
"""Busy periods of each strategy that count: a cluster is not next month what it was."""
LEAST_NOISE = 0.005
"""Standard deviation of the log of a reward: no cluster repeats itself better."""
MOST_LOSS = 0.01
"""Share of the default's reward that a strategy may lack."""
WORKS = 256
"""Kinds of work that are remembered; of more, those that were not seen for longest are forgotten."""
MOST_ARMS = 16


class MeanReward(proba.Gaussian):
    """What is believed of the mean of an arm's rewards: river samples it to choose, so doubt means that it is tried.

    river's own Gaussian is that of the rewards, however many there were, and would never settle.
    """

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(seed)  # type: ignore[no-untyped-call]
        self._draws = Random(seed)  # noqa: S311 - which strategy is tried is no secret

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(max(self.sigma, LEAST_NOISE) / sqrt(max(self.n_samples, 1)))

    def sample(self) -> float:
        return self._draws.gauss(self.mu, self.error)


class _Work:
    """The arms of one kind of work. What river keeps, and the last rewards of each arm, which alone are saved."""

    def __init__(self, seed: int) -> None:
        self.policy = bandit.ThompsonSampling(reward_obj=MeanReward(), burn_in=BURN_IN, seed=seed)
        self.rewards: dict[str, deque[float]] = {}
        self.retired: set[str] = set()
        self.seen = 0

    def add(self, arm: str, reward: float) -> None:
        known = self.rewards.setdefault(arm, deque())
        self.policy.update(arm, reward)
        known.append(reward)
        if len(known) > WINDOW:
            self.belief(arm).revert(known.popleft())  # type: ignore[no-untyped-call]

    def belief(self, arm: str) -> MeanReward:
        belief = self.policy._rewards[arm]
        assert isinstance(belief, MeanReward)
        return belief

    def drop(self, arm: str) -> None:
        self.rewards.pop(arm, None)
        self.policy._rewards.pop(arm, None)
        self.policy._counts.pop(arm, None)
        self.retired.discard(arm)


class StrategyBandit:
    """Chooses an arm for each busy period, and learns from how it went.

    Arms are names; the first that `choose` is given is the default. Only it may be chosen for ever; an arm whose mean
    reward is surely more than 1 % below the default's after three tries is retired.

    Parameters
    ----------
    rng
        Of what is drawn.
    works
        Kinds of work that are remembered.
    """

    def __init__(self, rng: Random, *, works: int = WORKS) -> None:
        self._rng = rng
        self._most = works
        self._works: OrderedDict[str, _Work] = OrderedDict()

    def __len__(self) -> int:
        return len(self._works)

    def choose(self, work: str, arms: Sequence[str], advised: str | None = None) -> str:
        """The arm for the next busy period with such work.

        New work runs by the default at first. Then the arms take turns, until each has been tried; so what changes
        in the cluster meanwhile is not put down to one of them.

        Parameters
        ----------
        advised
            What did best with other work that is like it. Until that is retired, no other is tried beside the default.
        """
        known = self._of(work)
        default, *rivals = arms[:MOST_ARMS]
        for gone in known.rewards.keys() - set(arms):
            known.drop(gone)
        if advised is not None and advised not in known.retired:
            rivals = [arm for arm in rivals if arm == advised]
        open_: list[int | str] = [default, *(arm for arm in rivals if arm not in known.retired)]
        if len(open_) == 1 or known.seen < WARM_UP:
            return default
        open_.sort(key=lambda arm: known.policy._counts[arm])  # stable: the default is the first of equals
        return str(known.policy.pull(open_))

    def learn(self, work: str, arm: str, reward: float, default: str) -> bool:
        """A busy period is over. Whether an arm was retired for it.

        Parameters
        ----------
        reward
            Above 0; ratios of rewards are what counts. Anything else teaches nothing.
        """
        known = self._of(work)
        known.seen += 1
        if known.seen <= WARM_UP or not (isfinite(reward) and reward > 0.0):
            return False
        known.add(arm, log(reward))
        before = len(known.retired)
        for rival in known.rewards:
            if rival != default and self._lags(known, rival, default):
                known.retired.add(rival)
        return len(known.retired) > before

    @staticmethod
    def _lags(known: _Work, rival: str, default: str) -> bool:
        if any(len(known.rewards.get(arm, ())) < BURN_IN for arm in (rival, default)):
            return False
        mine, theirs = known.belief(rival), known.belief(default)
        return bool(theirs.mu - mine.mu > MOST_LOSS + sqrt(mine.error**2 + theirs.error**2))

    def is_retired(self, work: str, arm: str) -> bool:
        return work in self._works and arm in self._works[work].retired

    def best(self, work: str) -> str | None:
        """The arm that did best, of those that were tried often enough; None where nothing was compared."""
        known = self._works.get(work)
        tried = [] if known is None else [arm for arm, each in known.rewards.items() if len(each) >= BURN_IN]
        if known is None or len(tried) < 2:
            return None
        return max((arm for arm in tried if arm not in known.retired), key=lambda arm: known.belief(arm).mu)

    def tries(self, work: str) -> dict[str, int]:
        """Arm → busy periods that count."""
        known = self._works.get(work)
        return {} if known is None else {arm: len(rewards) for arm, rewards in known.rewards.items()}

    def _of(self, work: str) -> _Work:
        known = self._works.get(work)
        if known is None:
            known = self._works[work] = _Work(self._rng.getrandbits(32))
            if len(self._works) > self._most:
                self._works.popitem(last=False)
        self._works.move_to_end(work)
        return known

    # -- from run to run -------------------------------------------------------------------------------------------

    def to_state(self) -> list[Any]:
        """Of plain types, the work that was seen last at the end."""
        return [
            [work, known.seen, {arm: list(each) for arm, each in known.rewards.items()}, sorted(known.retired)]
            for work, known in self._works.items()
        ]

    def restore(self, state: Any) -> None:
        """Take over what `to_state` gave.

        Raises
        ------
        ValueError, TypeError, LookupError, AttributeError
            It is not that; nothing is taken over then.
        """
        made: OrderedDict[str, _Work] = OrderedDict()
        for work, seen, rewards, retired in state[-self._most :]:
            known = made[str(work)] = _Work(self._rng.getrandbits(32))
            known.seen = int(seen)
            known.retired = {str(arm) for arm in retired}
            for arm, each in list(rewards.items())[:MOST_ARMS]:
                for reward in each[-WINDOW:]:
                    if not isfinite(reward):
                        raise ValueError(f"a reward is {reward}")
                    known.add(str(arm), float(reward))
        self._works = made
