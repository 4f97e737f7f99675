"""What all tests share: markers by folder, fixtures from `tests/support`, and the check that nothing is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
FOLDERS = ("architecture", "unit", "integration", "processes", "browser", "gpu", "benchmarks")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the name of its folder, so that `pytest -m unit` and `-m "not browser"` work."""
    for item in items:
        folder = item.path.relative_to(HERE).parts[0] if item.path.is_relative_to(HERE) else ""
        if folder in FOLDERS:
            item.add_marker(folder)
