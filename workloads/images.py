"""Reads the photographs that workloads take as input."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from swarm.errors import UnreadableInputError, nearest

SAMPLES = ("china", "flower")
"""Photographs that scikit-learn brings along: 640 x 427 pixels."""


def read_rgb(image: str, max_pixels: int) -> npt.NDArray[np.uint8]:
    """Read an image as (height, width, 3) uint8 in sRGB, upright, scaled down to `max_pixels` if it has more.

    `image` is a path, or the name of one of `SAMPLES`. Transparency is dropped.

    Raises
    ------
    UnreadableInputError
        The file is missing, is not an image that Pillow knows, or is damaged.
    """
    path = _path_of(image)
    try:
        with Image.open(path) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
    except FileNotFoundError as error:
        hint = f"; did you mean {near}?" if (near := nearest(Path(image).stem, SAMPLES)) else ""
        raise _unreadable(image, f"there is no such file{hint}") from error
    # What Pillow's decoders raise: SyntaxError for a broken PNG, the bomb error for a picture made to fill memory.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise _unreadable(image, reason) from error
    if (pixels := upright.width * upright.height) > max_pixels:
        ratio = (max_pixels / pixels) ** 0.5
        upright = upright.resize((max(1, int(upright.width * ratio)), max(1, int(upright.height * ratio))))
    return np.asarray(upright, dtype=np.uint8)


def _path_of(image: str) -> Path:
    spec = find_spec("sklearn") if image.removesuffix(".jpg") in SAMPLES and not Path(image).exists() else None
    if spec is None or not spec.submodule_search_locations:
        return Path(image)
    # Found without importing scikit-learn, which takes a second.
    return Path(spec.submodule_search_locations[0], "datasets", "images", f"{image.removesuffix('.jpg')}.jpg")


def _unreadable(image: str, reason: str) -> UnreadableInputError:
    return UnreadableInputError(
        f"image {image!r} can't be read: {reason}; give the path of an image, or {' or '.join(SAMPLES)}"
    )
