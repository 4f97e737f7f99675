"""One browser for all tests of a module; each test looks at its own page and must leave no error in the console."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser, open_browser
from tests.support.leaks import leaving_nothing_behind


@pytest.fixture(scope="module")
def _one_browser() -> Iterator[Browser]:
    # Tornado leaves open the connections of a browser to a server in this process whose event loop ends.
    with leaving_nothing_behind(may_stay=frozenset({"socket"})), open_browser() as browser:
        yield browser


@pytest.fixture
def browser(_one_browser: Browser) -> Iterator[Browser]:
    """A window of 1280 x 800 in light colours. Afterwards the console must hold no error that the test did not read."""
    _one_browser.size(1280, 800)
    _one_browser.color_scheme("light")
    yield _one_browser
    errors = _one_browser.errors()
    _one_browser.open("about:blank")
    assert errors == []
