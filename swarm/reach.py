"""Reach a Dask scheduler, or say in one line why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from distributed.core import rpc
from distributed.security import Security

from swarm.errors import ConnectError

SLACK_S = 0.5
"""Dask's own time limit comes first: it says why."""


@asynccontextmanager
async def scheduler_at(
    address: str, *, timeout_s: float, security: Security | None = None
) -> AsyncIterator[tuple[Any, dict[str, Any]]]:
    """An rpc to the scheduler at `address`, and its `identity` without the workers.

    Dask itself waits for ever for a server that takes the connection and does not speak Dask, or does not speak at
    all (`distributed.comm.core.connect` sets no limit to the handshake): a web server, a scheduler that hangs.

    Raises
    ------
    ConnectError
        What is at the address is no scheduler, or nothing, or does not answer within `timeout_s` seconds.
    """
    arguments = (security or Security()).get_connection_args("client")
    async with rpc(address, timeout=timeout_s, connection_args=arguments) as scheduler:
        try:
            async with asyncio.timeout(timeout_s + SLACK_S):
                identity = await scheduler.identity(n_workers=0)
        except TimeoutError:
            why = f"something listens there, but it does not answer as Dask does within {timeout_s:g} s"
            raise no_connection(address, why) from None
        except (OSError, ValueError, TypeError) as error:
            is_other_server = "n_workers" in str(error)  # only a scheduler takes this argument
            raise no_connection(address, "that is a worker or a nanny" if is_other_server else error) from None
        except Exception as error:  # what is no answer of Dask can be misread in any way
            raise no_connection(address, "what answers there does not speak Dask") from error
        yield scheduler, identity


def check(address: str, *, timeout_s: float, security: Security | None = None) -> None:
    """Raise `ConnectError` unless a scheduler answers at `address`; for callers that are no coroutines."""

    async def meet() -> None:
        async with scheduler_at(address, timeout_s=timeout_s, security=security):
            pass

    # In a thread, for this one may have a running loop (Jupyter).
    with ThreadPoolExecutor(1, thread_name_prefix="swarm-reach") as thread:
        thread.submit(lambda: asyncio.run(meet())).result()


def no_connection(address: str, error: Exception | str) -> ConnectError:
    """The error that says why there is no connection, and what to do."""
    why = " ".join(str(error).split())
    if isinstance(error, ValueError | TypeError):
        return ConnectError(f"{address!r} is no address of a Dask scheduler ({why}); it looks like tcp://host:8786")
    start = "start one with `dask scheduler`, or mend the host and port (the scheduler prints its address)"
    return ConnectError(f"no Dask scheduler answers at {address} ({why}); {start}")
