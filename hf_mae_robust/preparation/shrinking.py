"""An image shrunk once: upright, its short side not longer than asked for, encoded for training."""

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from ..data.arrays import MIN_SIDE
from ..data.decoding import TRANSPOSITIONS, opened, orientation_of, to_8_bit
from ..data.shrunk_jpeg import MARGIN

# Files of these formats that need no shrinking stay as they are. MPO: JPEG as phones write it, with more behind it.
KEPT = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png"}
GRAY = ("1", "L", "LA", "La", "I", "F")
WITH_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")


@dataclass(frozen=True)
class Shrunk:
    """An encoded image.

    Attributes:
        ending: of a file of it. former, size: (height, width), upright, before and after.
    """

    content: bytes
    ending: str
    former: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True)
class Shrinking:
    """What is done to each image.

    An image of at most the wanted size keeps its pixels: JPEG and PNG files stay as they are, others become PNG.
    Larger ones are resized (bicubic, antialiased) and become JPEG, or PNG where `lossless`. Both are turned as EXIF
    says, where it says anything. Pixels are read as training reads them (`decode_image`): gray stays gray, all else
    becomes RGB, and alpha is kept where `lossless` alone.

    Attributes:
        short_side: in pixels; no image is enlarged. quality: of JPEG, from 1 to 100.
    """

    short_side: int
    quality: int = 90
    lossless: bool = False

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of a shrunk image."""
        short = min(height, width)
        if short <= self.short_side:
            return height, width
        return round(height * self.short_side / short), round(width * self.short_side / short)

    def __call__(self, value: Any, row: int | None = None, min_side: int = MIN_SIDE) -> Shrunk:
        """value, row, min_side: as of `decode_image`. Raises ImageDecodingError; not every damage of a file that
        stays as it is shows here."""
        with opened(value, row, min_side) as (contents, image):
            orientation = orientation_of(image)
            turns = orientation in TRANSPOSITIONS
            former = (image.width, image.height) if orientation >= 5 and turns else (image.height, image.width)
            size = self.size_of(*former)
            ending = KEPT.get(str(image.format))
            if size == former and not turns and ending and isinstance(contents, bytes) and _is_8_bit(image):
                return Shrunk(contents, ending, former, size)
            stored = size[::-1] if orientation >= 5 and turns else size  # as the file has it: not turned
            if size != former:  # the smallest fraction of a JPEG that leaves enough for the antialiased resize
                image.draft(None, (MARGIN * stored[1], MARGIN * stored[0]))
            image.load()
            pixels = _resized(self._converted(image), (stored[1], stored[0]))
            if turns:
                pixels = pixels.transpose(TRANSPOSITIONS[orientation])
            is_lossy = not self.lossless and (size != former or ending == ".jpg")
            return Shrunk(*self._encoded(pixels, is_lossy), former, size)

    def _converted(self, image: Image.Image) -> Image.Image:
        if self.lossless and (image.mode in WITH_ALPHA or "transparency" in image.info):
            return image.convert("RGBA")
        is_gray = image.mode in GRAY or image.mode.startswith("I;16")
        return to_8_bit(image).convert("L" if is_gray else "RGB")

    def _encoded(self, pixels: Image.Image, is_lossy: bool) -> tuple[bytes, str]:
        file = io.BytesIO()
        if is_lossy:
            pixels.save(file, "JPEG", quality=self.quality)
            return file.getvalue(), ".jpg"
        pixels.save(file, "PNG")
        return file.getvalue(), ".png"


def _is_8_bit(image: Image.Image) -> bool:
    return image.mode not in ("I", "F") and not image.mode.startswith("I;16")


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """size: (width, height). Colours under transparent pixels stay, which Pillow's resize of RGBA makes black: a model
    of three channels sees them."""
    if image.size == size:
        return image
    planes = [plane.resize(size, Image.Resampling.BICUBIC) for plane in image.split()]
    return Image.merge(image.mode, planes)
