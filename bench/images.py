"""Photographs and scanned text as inputs of the image models: crops of scikit-image's pictures (tests/fetch_models.py images)."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import numpy as np

FOLDER = Path(os.environ.get("EDGEC_MODELS", Path.home() / ".cache/edgec-models")) / "images"
CALIBRATION = ("chelsea", "coffee", "motorcycle_left", "ihc", "camera", "clock_motion", "moon")
HELD = ("astronaut", "motorcycle_right", "coins", "grass")
TEXT = ("text", "page")  # of which the left is for calibration, the right is held out
SPLIT = 0.55
# model -> (input, size of a crop, what of which pictures, layout, value of a pixel v: (v - mean) / scale)
INPUTS = {
    "nudenet": ("images", (320, 320), "photographs", "nchw", 0.0, 255.0),
    "ppocr-det": ("x", (320, 320), "pages", "nchw", 127.5, 127.5),
    "ppocr-rec": ("x", (48, 320), "lines", "nchw", 127.5, 127.5),
    "ppocr-cls": ("x", (48, 192), "lines", "nchw", 127.5, 127.5),
    "mtcnn-onet": ("input_3", (48, 48), "photographs", "nhwc", 127.5, 128.0),
}


def png(path: Path) -> np.ndarray:
    """Pixels [height, width, 3] uint8 of a PNG of 8 bits a channel, not interlaced."""
    data, at, packed = path.read_bytes(), 8, b""
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", body)
            if depth != 8 or interlaced or colour not in (0, 2, 6):
                raise ValueError(f"{path} is a PNG of another kind")
        elif kind == b"IDAT":
            packed += body
        at += size + 12
    channels = {0: 1, 2: 3, 6: 4}[colour]
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels)
    out = np.zeros((height + 1, width + 1, channels), np.uint8)
    for y, row in enumerate(rows, 1):
        line, above = row[1:].reshape(width, channels), out[y - 1]
        filter = row[0]
        if filter == 0:
            out[y, 1:] = line
        elif filter == 1:
            out[y, 1:] = np.cumsum(line, axis=0, dtype=np.uint8)
        elif filter == 2:
            out[y, 1:] = line + above[1:]
        else:
            _predicted(out[y], line.tolist(), above.tolist(), filter == 4)
    pixels = out[1:, 1:, :3]
    return np.repeat(pixels, 3, axis=2) if channels == 1 else pixels


def _predicted(to: np.ndarray, line: list, above: list, paeth: bool) -> None:
    left = [0] * len(line[0])
    for x, values in enumerate(line, 1):
        for c, v in enumerate(values):
            a, b, d = left[c], above[x][c], above[x - 1][c]
            if paeth:
                p = a + b - d
                near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - d), 2, d))[2]
            else:
                near = (a + b) // 2
            left[c] = (v + near) & 255
        to[x] = left


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear."""
    for axis, size in ((0, height), (1, width)):
        at = np.clip((np.arange(size) + 0.5) * image.shape[axis] / size - 0.5, 0, image.shape[axis] - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        share = (at - low).reshape([-1 if k == axis else 1 for k in range(3)])
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


def crops(model: str, count: int, held: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Inputs of a model, [count, ...]: random crops of random size, of the pictures held out or of the others."""
    name, (height, width), kind, layout, mean, scale = INPUTS[model]
    names = TEXT if kind != "photographs" else HELD if held else CALIBRATION
    pictures = [png(FOLDER / f"{n}.png") for n in names]
    if kind != "photographs":
        cuts = [int(SPLIT * p.shape[1]) for p in pictures]
        pictures = [p[:, cut:] if held else p[:, :cut] for p, cut in zip(pictures, cuts)]
    rng = np.random.default_rng(seed + held)
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        if kind == "lines":  # and what is near them
            h = int(rng.integers(14, 30))
            w = min(picture.shape[1], h * width // height)
        else:
            h = w = int(rng.integers(max(96, min(picture.shape[:2]) // 2), min(picture.shape[:2]) + 1))
        y, x = rng.integers(0, picture.shape[0] - h + 1), rng.integers(0, picture.shape[1] - w + 1)
        found.append((_resized(picture[y : y + h, x : x + w].astype(np.float64), height, width) - mean) / scale)
    batch = np.stack(found).astype(np.float32)
    return {name: np.ascontiguousarray(batch.transpose(0, 3, 1, 2) if layout == "nchw" else batch)}
