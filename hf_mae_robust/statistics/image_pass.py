"""A pass over the images of a source to count something: on every process, with a progress bar; images that cannot be
decoded are left out, counted and limited."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ..data.bad_images import SkippedImages, describe
from ..data.loaders import sequential_loader
from ..data.source import ImageSource
from ..errors import DataError
from ..training.signals import SIGNALS

logger = logging.getLogger(__name__)


class ImagePass:
    """Iterate over it once for the batches of this process, `{"pixel_values", "row"}` (`sequential_loader`); rows of -1
    are fillers. They end early where too many images are bad, or a signal came: the other processes learn of it when
    all of them meet at the end, `stop_if_asked` and `check`.

    Args:
        transform: `Transform`, or a function of the decoded image. title: of the progress bar.
        max_bad_images: which share of the images may be bad.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Any,
        num_channels: int,
        *,
        title: str,
        batch_size: int,
        num_workers: int,
        max_bad_images: float,
    ):
        self.source, self.title, self.skipped = source, title, SkippedImages(None, max_bad_images)
        state = PartialState()
        self.loader = sequential_loader(
            replace(source, labels=None),  # maps and objects would be decoded, and handed to `transform`
            transform,
            num_channels,
            batch_size=batch_size,
            rank=state.process_index,
            world_size=state.num_processes,
            num_workers=num_workers,
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        source, is_shown = self.source, PartialState().is_main_process
        total = None if source.num_rows is None else len(self.loader)
        for batch in tqdm(self.loader, total=total, desc=self.title, unit="batch", disable=not is_shown):
            if SIGNALS.received:
                return
            is_new = self.skipped.add(batch.pop("skipped", ()))
            if is_new and source.num_rows is not None and self.skipped.exceeds(source.description, source.num_rows):
                return
            yield batch

    def check(self, num_images: int) -> None:
        """Count the bad images of all processes, and log them. num_images: good ones of all processes.

        Raises DataError, in all processes, where too many are bad, or all.
        """
        skipped, source = self.skipped, self.source
        skipped.add(gather_object(list(skipped)))
        # The pass has seen all of the split: of a stream too the number is known by now.
        num_rows = source.num_rows if source.num_rows is not None else num_images + len(skipped)
        skipped.check(source.description, num_rows)
        if num_images == 0:
            raise DataError(f"No image of {source.description} can be decoded ({describe(skipped.counts())}).")
        if len(skipped) and PartialState().is_main_process:
            logger.warning(
                "%s: %d of %d images cannot be decoded and were left out (%s).",
                source.description,
                len(skipped),
                num_rows,
                describe(skipped.counts()),
            )
