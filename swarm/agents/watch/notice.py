"""Notices: somebody says that this worker will soon be gone, and the scheduler drains it while there is time.

Two ways lead here. SIGTERM to `dask worker`: Dask would close the worker at once, with all results that only it has;
the nanny waits now until they are moved, for at most `notice_period`. And `notice_source`, which is looked at every few
seconds: a file that appears, the URL of a cloud's metadata, or a function of yours. `--lifetime` needs nothing: Dask
itself asks the scheduler to retire the worker, and ours lets what runs end first.
"""

from __future__ import annotations

import asyncio
import json
import pkgutil
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.core import rpc
from distributed.utils import offload
from tornado.ioloop import PeriodicCallback

from swarm.errors import SettingsError
from swarm.telemetry.logs import get_logger

if TYPE_CHECKING:
    from distributed import Nanny, Worker

Source = Callable[[], float | None]
"""Asked every `LOOK_S` in a thread: seconds that are left, or None while there is no notice."""

LOOK_S = 2.0
"""The clouds give 30 s (Google, Azure) or 120 s (Amazon, which recommends to look every 5 s)."""
TIMEOUT_S = 1.5
MOST_BYTES = 65_536
HEADERS = {"Metadata-Flavor": "Google", "Metadata": "true"}
"""Google and Azure answer only to who sends theirs; nobody minds the other's."""
TOKEN = ("X-aws-ec2-metadata-token-ttl-seconds", "X-aws-ec2-metadata-token", "/latest/api/token")
"""Amazon wants a token first (IMDSv2)."""
CONNECT_S = 2.0
"""Who is told to stop does not wait half a minute, as Dask does, for a scheduler that may be gone."""
BUSY_S = 1.0
"""Longer than the notice, for the answer of a busy scheduler."""


def seconds_left(text: str, now_s: float, otherwise_s: float) -> float | None:
    """What a notice says, in any of the ways that are in use; `otherwise_s` where it gives no time.

    Raises
    ------
    ValueError
        It is none of them.

    >>> seconds_left('{"action": "terminate", "time": "1970-01-01T00:02:00Z"}', now_s=0.0, otherwise_s=20.0)
    120.0
    >>> seconds_left("TRUE", 0.0, 20.0), seconds_left("FALSE", 0.0, 20.0), seconds_left("45", 0.0, 20.0)
    (20.0, None, 45.0)
    """
    text = text.strip()
    if text.upper() in ("", "TRUE"):
        return otherwise_s
    if text.upper() in ("FALSE", "NONE"):
        return None
    said = json.loads(text)
    match said:
        case bool() | None:
            raise ValueError(text)
        case int() | float():
            return max(float(said), 0.0)
        case {"Events": list(events)}:  # Azure's scheduled events
            due = [event["NotBefore"] for event in events if event.get("EventType") in ("Preempt", "Terminate")]
            times = [parsedate_to_datetime(at).timestamp() if at else now_s + otherwise_s for at in due]
            return max(min(times) - now_s, 0.0) if times else None
        case {"time": str(at)}:
            return max(datetime.fromisoformat(at).timestamp() - now_s, 0.0)
        case Mapping():
            return otherwise_s
    raise ValueError(text)


def of_file(path: str, otherwise_s: float) -> Source:
    """A notice is there when the file is: empty, seconds, or JSON."""

    def look() -> float | None:
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return seconds_left(text, time.time(), otherwise_s)

    return look


def of_url(url: str, otherwise_s: float) -> Source:
    """A notice is there when the URL answers with one; 404 says that there is none."""

    def ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
        request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310 - http, as was checked
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:  # noqa: S310 - the same
            return str(answer.read(MOST_BYTES).decode())

    def look() -> float | None:
        try:
            try:
                text = ask(url, HEADERS)
            except urllib.error.HTTPError as error:
                if error.code != 401:
                    raise
                lives, name, path = TOKEN
                token = ask(re.sub(r"(?<=[^/:])/.*", path, url), {lives: "60"}, "PUT")
                text = ask(url, {name: token})
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise
        return seconds_left(text, time.time(), otherwise_s) if text.strip() else None

    return look


def source_of(text: str, otherwise_s: float) -> Source:
    """What `notice_source` names: a URL, `module:function`, or the path of a file.

    Raises
    ------
    SettingsError
        There is no such function.
    """
    if re.match(r"https?://", text):
        return of_url(text, otherwise_s)
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", text):
        return of_file(text, otherwise_s)
    try:
        found = pkgutil.resolve_name(text)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"notice_source = {text}: {error}; name a function as module:function") from None
    if not callable(found):
        raise SettingsError(f"notice_source = {text}: is no function; name one as module:function")
    return found  # type: ignore[no-any-return] # what it answers is its own word


class NoticeAgent:
    """Looks for a notice, and tells the scheduler once."""

    name = "notice"

    def __init__(self, worker: Worker, source: Source, reason: str, look_s: float = LOOK_S) -> None:
        self._worker = worker
        self._source = source
        self._reason = reason
        self._callback = PeriodicCallback(self._look, look_s * 1000)
        self._is_silent = False
        self.is_told = False

    def start(self) -> None:
        self._callback.start()

    def stop(self) -> None:
        self._callback.stop()

    async def _look(self) -> None:
        if self.is_told:
            return
        try:
            left_s = await offload(self._source)
        except Exception as error:  # noqa: BLE001 - a stranger's function, or the network: it is asked again
            if not self._is_silent:
                self._is_silent = True
                reason = f"{type(error).__name__}: {error}"
                get_logger(agent=self.name).warning("notice_source_failed", source=self._reason, reason=reason)
            return
        self._is_silent = False
        if left_s is not None and not self.is_told:
            self.is_told = True
            await self._tell(float(left_s))

    async def _tell(self, left_s: float) -> None:
        worker = self._worker
        try:
            await worker.scheduler.swarm_notice(worker=worker.address, notice_s=left_s, reason=self._reason)
        except Exception as error:  # noqa: BLE001 - no scheduler, or a plain one: it is told again
            self.is_told = False
            reason = f"{type(error).__name__}: {error}"
            get_logger(agent=self.name).warning("not_drained", worker=worker.address, reason=reason)


def _quickly(nanny: Nanny) -> Any:
    """A connection to its scheduler, or an error soon."""
    return rpc(nanny.scheduler.address, timeout=CONNECT_S, connection_args=nanny.connection_args)


def drain_first(nanny: Nanny, worker: Callable[[], str], notice_s: float) -> None:
    """From now on, SIGTERM has the worker of this nanny drained before Dask closes it. A second signal ends it."""
    dasks_close: Callable[..., Awaitable[Any]] = nanny.close

    async def close(*arguments: Any, **options: Any) -> Any:
        if options.get("reason") == f"signal-{signal.SIGTERM.value}" and worker():
            try:
                async with asyncio.timeout(notice_s + BUSY_S), _quickly(nanny) as scheduler:
                    await scheduler.swarm_notice(worker=worker(), notice_s=notice_s, reason="SIGTERM")
            except Exception as error:  # noqa: BLE001 - no scheduler, or a plain one: it has to close all the same
                reason = f"{type(error).__name__}: {error}"
                get_logger(agent=NoticeAgent.name).warning("not_drained", worker=worker(), reason=reason)
        return await dasks_close(*arguments, **options)

    nanny.close = close  # type: ignore[method-assign] # an attribute of this instance, in front of the method
