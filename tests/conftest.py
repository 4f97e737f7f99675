"""What all tests share: markers by folder, fixtures from `tests/support`, and the check that nothing is left behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.support.leaks import leaving_nothing_behind

HERE = Path(__file__).parent
FOLDERS = (
    *("architecture", "unit", "contracts", "simulation", "replays", "integration", "processes"),
    *("chaos", "browser", "gpu", "benchmarks"),
)
STARTS_THINGS = {"contracts", "integration", "processes", "chaos"}
"""In `browser` the tests of a module share a browser, which starts processes as it likes; it is checked at its end."""

# Always the same examples, and no deadline for one, nor for making them: a busy machine is no defect.
SLOW = (hypothesis.HealthCheck.too_slow,)
hypothesis.settings.register_profile(
    "swarm", derandomize=True, deadline=None, max_examples=50, suppress_health_check=SLOW
)
hypothesis.settings.load_profile("swarm")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started with `&` or by nohup; every process that a test starts would inherit it, and not hear Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the name of its folder, so that `pytest -m unit` and `-m "not browser"` work."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
        if folder in FOLDERS:
            item.add_marker(folder)


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_kept_at_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Local clusters keep their journal in a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test that leaves threads, processes, open files or shared memory behind fails."""
    if STARTS_THINGS.isdisjoint(mark.name for mark in request.node.iter_markers()):
        yield
        return
    with leaving_nothing_behind():
        yield
