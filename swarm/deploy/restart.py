"""When a process that ended is started again, and when that is given up.  PURE

The delay doubles with each failure, as in systemd's `RestartSteps=` and in the back-off of Kubernetes for
containers; a process that has run for a while starts with a clean record.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How patient we are with a process that keeps ending. All times in seconds."""

    first_delay_s: float = 0.5
    longest_delay_s: float = 30.0
    healthy_after_s: float = 60.0
    """A process that ran this long is forgiven its earlier failures."""
    failures: int = 5
    """This many failures ..."""
    window_s: float = 60.0
    """... within this time are the end of our patience."""


@dataclass(frozen=True, slots=True)
class Record:
    """The failures of one process since it was last healthy."""

    streak: int = 0
    ended_at_s: tuple[float, ...] = ()
    """When the latest failures happened, oldest first; as many as the policy looks at."""

    def after_end(self, policy: RestartPolicy, *, started_at_s: float, now_s: float) -> Record:
        """The record once a process that started at `started_at_s` has ended at `now_s`."""
        before = Record() if now_s - started_at_s >= policy.healthy_after_s else self
        return Record(before.streak + 1, (*before.ended_at_s, now_s)[-policy.failures :])

    def delay_s(self, policy: RestartPolicy) -> float | None:
        """Seconds to wait before the next start, or None to give up.

        >>> policy, record, delays = RestartPolicy(), Record(), []
        >>> for now_s in range(5):
        ...     record = record.after_end(policy, started_at_s=now_s, now_s=now_s)
        ...     delays.append(record.delay_s(policy))
        >>> delays
        [0.5, 1.0, 2.0, 4.0, None]
        """
        if len(self.ended_at_s) >= policy.failures and self.ended_at_s[-1] - self.ended_at_s[0] <= policy.window_s:
            return None
        # The cap on the exponent keeps a float from overflowing after a thousand failures.
        return min(policy.longest_delay_s, policy.first_delay_s * 2.0 ** min(self.streak - 1, 64))
