"""What the client has been told of the tasks that are wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from distributed import Client

from swarm.twin.models import Key


class ClientWatch:
    """Listens to what the scheduler reports to a client, after the client itself.

    Attributes
    ----------
    over
        A future: `"finished"` when the client knows of every wanted task that its result is there, `"failed"` when
        it knows of all what became of them and some have failed.
    failed
        Wanted key → why it has no result.
    """

    def __init__(self, client: Client, wanted: Iterable[Key], over: asyncio.Future[str]) -> None:
        self.over = over
        self.failed: dict[Key, str] = {}
        self._client = client
        self._wanted = frozenset(wanted)
        self._waiting = set(self._wanted)
        _listen(client, "key-in-memory", self._on_memory)
        _listen(client, "task-erred", self._on_erred)
        _listen(client, "cancelled-keys", self._on_cancelled)
        _listen(client, "lost-data", self._on_lost)

    def end(self, status: str) -> None:
        """It is over for another reason."""
        if not self.over.done():
            self.over.set_result(status)

    def _settled(self, key: Key, failure: str = "") -> None:
        if key not in self._wanted:
            return
        self.failed.pop(key, None)
        if failure:
            self.failed[key] = failure
        self._waiting.discard(key)
        if not self._waiting:
            self.end("failed" if self.failed else "finished")

    def _on_memory(self, key: Key, **_: Any) -> None:
        self._settled(key)

    def _on_erred(self, key: Key, **_: Any) -> None:
        if key in self._wanted:
            error = self._client.futures[key].exception
            self._settled(key, f"{type(error).__name__}: {error}")

    def _on_cancelled(self, keys: Iterable[Key], reason: str = "", **_: Any) -> None:
        for key in keys:
            self._settled(key, f"cancelled: {reason}")

    def _on_lost(self, key: Key, **_: Any) -> None:
        if key in self._wanted:
            self._waiting.add(key)


def _listen(client: Client, op: str, then: Callable[..., None]) -> None:
    own: Any = client._stream_handlers[op]

    def handle(**details: Any) -> Any:
        answer = own(**details)
        then(**details)
        return answer

    client._stream_handlers[op] = handle
