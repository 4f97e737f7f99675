"""Takes the picture of the page for the documentation: a real browser, a real scheduler, a made-up cluster.

`python -m tests.support.take_pictures docs/pictures/dashboard.png`
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from tests.support.browser import open_browser

WORKERS = 8
SIZE = (1280, 800)


def take(path: Path) -> None:
    command = [sys.executable, "-m", "tests.support.page_server", str(WORKERS), "0"]
    with open_browser() as browser, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        browser.size(*SIZE)
        browser.color_scheme("light")
        browser.open(server.stdout.readline().strip())
        browser.wait("document.querySelectorAll('.tile').length", "the workers")
        points = "Bokeh.documents[0].get_model_by_name('chart').renderers[0].data_source.get_length()"
        browser.wait(f"{points} > 242", "some live seconds")
        browser.picture(path)
        server.kill()
    Image.open(path).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]))
