"""The storing agent: writes results of durable runs to the result store, beside the event loop, and reads them back."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from distributed import Reschedule, get_worker
from distributed.utils import sync

from scheduler_plugins.io.results import ResultStore, Written
from swarm.errors import DamagedResultError, ResultStoreError
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Worker

STORE = "swarm-store"
"""Message of the scheduler: store a result. It comes on the stream that also says when a result may be forgotten, and
so it always comes first."""
STORED = "swarm-stored"
"""The answer."""
THREADS = 2
"""Writes at a time: one waits for the disk while the other serialises."""
REPORT_PATIENCE_S = 30.0
"""For the scheduler to answer that a stored result is damaged."""


class Storing:
    """Takes the scheduler's orders to store results; does nothing without them."""

    name = "storing"

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._threads: ThreadPoolExecutor | None = None
        self._stores: dict[str, ResultStore] = {}

    def start(self) -> None:
        """Listen; before the hello, since the scheduler sends orders to whoever has said hello."""
        self._worker.stream_handlers[STORE] = self.store

    def stop(self) -> None:
        """Take no more orders. What is being written is written to its end: the process waits for it."""
        self._worker.stream_handlers[STORE] = lambda **_: None  # a message without a handler would close the worker
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    def store(self, run: str, key: Any, url: str) -> None:
        """Store what this worker has of `key`; the answer says what came of it."""
        try:
            value = self._worker.data[key]
        except KeyError:
            self._answer(run, key, None, "gone", "")
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="swarm-storing")
        loop = self._worker.loop.asyncio_loop  # type: ignore[attr-defined]  # tornado's own, since 5.0

        def write() -> None:
            written, failure, reason = self._write(run, key, url, value)
            loop.call_soon_threadsafe(self._answer, run, key, written, failure, reason)

        self._threads.submit(write)

    def _write(self, run: str, key: Any, url: str, value: Any) -> tuple[Written | None, str, str]:
        try:
            store = self._stores.get(url) or self._stores.setdefault(url, ResultStore(url))
            return store.write(run, key, value), "", ""
        except (ResultStoreError, FileNotFoundError) as error:
            return None, "store", str(error)
        except Exception as error:  # noqa: BLE001 - a class of the user that can't be pickled raises what it likes
            return None, "value", f"{type(error).__name__}: {error}"

    def _answer(self, run: str, key: Any, written: Written | None, failure: str, reason: str) -> None:
        size, took_s = (written.size_bytes, written.took_s) if written else (0, 0.0)
        answer = {"run": run, "key": key, "size_bytes": size, "took_s": took_s, "failure": failure, "reason": reason}
        self._worker.batched_send({"op": STORED, **answer})


def load(url: str, run: str, key: Any) -> Any:
    """The task that takes the place of one whose result is stored.

    When the file can't be used the scheduler is told, which gives the key its first task back, and this one makes room.
    """
    try:
        store = ResultStore(url)
        return store.read(run, key)
    except (DamagedResultError, ResultStoreError, FileNotFoundError) as error:
        worker = get_worker()
        get_logger(worker=worker.address, agent="storing").error("stored_result_unusable", run=run, reason=str(error))
        if isinstance(error, DamagedResultError):
            store.put_aside(run, key)
        ask = worker.scheduler.swarm_durable_damaged
        sync(worker.loop, ask, run=run, key=key, reason=str(error), callback_timeout=REPORT_PATIENCE_S)
        raise Reschedule from error
