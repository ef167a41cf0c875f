"""Which images a run has classified rightly, in a line of JSON: a bit an image."""

import base64
import zlib
from typing import Any

import numpy as np

from ..training.predictions import Predictions


def packed(predictions: Predictions) -> dict[str, Any]:
    """`images`: how many; `of`: a checksum of their rows and classes, by which runs on other images are told apart;
    `bits`: base64 of a bit an image, by ascending row, the first one the highest of the first byte."""
    images = np.stack([predictions.rows, predictions.labels]).astype("<i8")
    bits = base64.b64encode(np.packbits(predictions.hits).tobytes()).decode()
    return {"images": len(predictions.rows), "of": f"{zlib.crc32(images.tobytes()):08x}", "bits": bits}


def unpacked(hits: dict[str, Any]) -> np.ndarray:
    """`(N,)` bool of what `packed` gives."""
    bits = np.frombuffer(base64.b64decode(hits["bits"], validate=True), dtype=np.uint8)
    return np.unpackbits(bits, count=hits["images"]).astype(bool)
