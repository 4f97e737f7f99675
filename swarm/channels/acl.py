"""Who may send what to whom.  PURE

Rules allow; what none allows is refused. A rule names kinds of agents (`BaseAgent.kind`), not single ones, and kinds of
messages; `*` stands for any, `get_*` for any that begins so.

Beside the kinds of agents there is `client`: what a user's program sends.
"""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm.channels.messages import ANSWER, ERROR, MAX_NAME, check_name
from swarm.errors import AgentDefinitionError, SettingsError

ANY = "*"
BUILT_IN = ("compute", "resource", "optimization", "thermal", "fault_tolerance", "learning")
"""Kinds of agents that are part of swarm."""
CLIENT = "client"

DEFAULT_RULES: Sequence[Mapping[str, object]] = (
    {"from": CLIENT, "send": ANY, "to": ANY},  # a user's program may do what the user may
    {"from": BUILT_IN, "send": ANY, "to": ANY},  # swarm's own agents work together, and with those of users
    {"from": ANY, "send": (ANSWER, ERROR), "to": ANY},  # who may ask may be answered
    # Agents of users talk to each other and to the user, ask swarm's own for what they know, and have work done. What
    # changes the system (budgets, limits, settings) is for swarm's own: a user's agent gets there by a rule of its own.
    {"from": ANY, "send": ANY, "to": ("custom", CLIENT)},
    {"from": ANY, "send": ("get_*", "ask_*", "status", "execute_workload", "workload_status", "release"), "to": ANY},
    {"from": ANY, "send": ("estimate", "strategies", "runs", "which_run_is_this_like"), "to": "learning"},
    {"from": ANY, "send": "anomaly_scores", "to": "fault_tolerance"},
    {"from": ANY, "send": "pressure", "to": "resource"},
)

MAX_RULES = 1000
MAX_KNOWN = 10_000
"""Verdicts that are kept. Who sends ever new kinds of messages does not fill the memory."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Agents of these kinds may send messages of these kinds to agents of these kinds."""

    senders: tuple[str, ...]
    messages: tuple[str, ...]
    recipients: tuple[str, ...]

    @classmethod
    def read(cls, rule: object, where: str = "access rule") -> Rule:
        """From data: `{"from": …, "send": …, "to": …}`, each a name or a list of names; what is left out is `*`.

        Raises
        ------
        SettingsError
            It is something else; says what.
        """
        if not isinstance(rule, Mapping) or not set(rule) <= {"from", "send", "to"}:
            raise SettingsError(f"{where} is {reprlib.repr(rule)}, must be a mapping with from, send and to")
        names = (_names(f"{where}: {key}", rule.get(key, ANY)) for key in ("from", "send", "to"))
        return cls(*names)

    def allows(self, sender: str, message: str, recipient: str) -> bool:
        return _fits(self.senders, sender) and _fits(self.messages, message) and _fits(self.recipients, recipient)


class AccessRules:
    """All rules of a swarm; asked for each message, so verdicts are kept.

    >>> access = AccessRules.default()
    >>> access.allows("thermal", "set_budget", "resource"), access.allows("custom", "set_budget", "resource")
    (True, False)
    >>> AccessRules([{"from": "custom", "send": "get_*", "to": "thermal"}]).allows("custom", "get_power", "thermal")
    True
    """

    def __init__(self, rules: Iterable[object]) -> None:
        self.rules = [Rule.read(rule, f"access rule {number}") for number, rule in enumerate(rules, start=1)]
        if len(self.rules) > MAX_RULES:
            raise SettingsError(f"there are {len(self.rules)} access rules, at most {MAX_RULES} are allowed; use *")
        self._known: dict[tuple[str, str, str], bool] = {}

    @classmethod
    def default(cls) -> AccessRules:
        """Those of `DEFAULT_RULES`."""
        return cls(DEFAULT_RULES)

    def allows(self, sender: str, message: str, recipient: str) -> bool:
        """Whether an agent of kind `sender` may send a message of kind `message` to one of kind `recipient`."""
        asked = (sender, message, recipient)
        verdict = self._known.get(asked)
        if verdict is None:
            verdict = any(rule.allows(*asked) for rule in self.rules)
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[asked] = verdict
        return verdict


def may_claim(sender: str, station: str, station_of: Mapping[str, str], relays: frozenset[str] = frozenset()) -> bool:
    """Whether a frame that came from a station may say that it is from agent `sender`.

    Parameters
    ----------
    station_of
        Id of an agent → id of the station where it lives, from the directory.
    relays
        Stations that pass on the messages of others (the scheduler's, for what comes from other hosts).

    >>> may_claim("a", "s1", {"a": "s1", "b": "s2"}), may_claim("b", "s1", {"a": "s1", "b": "s2"})
    (True, False)
    """
    home = station_of.get(sender)
    return home is not None and (home == station or station in relays)


def _names(where: str, value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names or len(names) > MAX_RULES:
        raise SettingsError(f"{where} is {reprlib.repr(value)}, must be a name or a list of names")
    for name in names:
        if name == ANY:
            continue
        bare = name.removesuffix(ANY) if isinstance(name, str) else name
        try:
            check_name(bare)
        except AgentDefinitionError:
            allowed = f"1 to {MAX_NAME} letters, digits and _ . : -, perhaps with a * at the end"
            raise SettingsError(f"{where} is {reprlib.repr(name)}, must be {allowed}") from None
    return tuple(names)


def _fits(patterns: tuple[str, ...], name: str) -> bool:
    return any(
        pattern == name or (pattern.endswith(ANY) and name.startswith(pattern[: -len(ANY)])) for pattern in patterns
    )
