"""From the rows of an `ImageSource` to decoded, transformed items."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from datasets.distributed import split_dataset_by_node
from torch.utils.data import default_collate, get_worker_info

from ..errors import DataError, ImageDecodingError
from ..model.bands_vit_mae_robust import BandForm
from .bad_images import SkippedImage, skipped_image
from .band_decoding import decode_band_regions
from .decoding import decode_regions
from .labels import Labels
from .preprocessing import Transform, in_two_steps
from .source import ImageSource
from .stages import Stage

# More bad images than this one after another are not an accident: a wrong column, or files that are gone.
MAX_BAD_IN_A_ROW = 32


class ViewDraws:
    """torch's global random numbers for several views of an image: each has a seed of its own, and resumes where it was
    when another one has drawn in between."""

    def __init__(self, seeds: Sequence[int]):
        self.seeds = seeds
        self.restart()

    def restart(self) -> None:
        """Begin all views again."""
        self._states: dict[int, torch.Tensor] = {}
        self._current: int | None = None

    def take_up(self, view: int) -> None:
        if view == self._current:
            return
        if self._current is not None:
            self._states[self._current] = torch.get_rng_state()
        self._current = view
        if view in self._states:
            torch.set_rng_state(self._states[view])
        else:
            # torch.manual_seed would seed every device too, which takes longer than decoding a small image.
            torch.default_generator.manual_seed(self.seeds[view])


class ImageDataset(torch.utils.data.Dataset[Any]):
    """Keys `(epoch, row)` -> decoded, transformed images. What comes out, random transforms and the noise of the masks
    included, depends on (seed, epoch, row) alone: not on the process, on what it did before, or on who else is there.
    Keys `(epoch, row, stage)` -> the same with the transform and the noise length of that stage.

    An item is `{"pixel_values": (C, H, W), "row": int}`, of a source with labels also `"labels"` (a class), with
    `noise_length` also `"noise"`, and, where an image could not be decoded, `"skipped"`: a list of `SkippedImage`.
    Where the labels are joint (labels.py), the transform gets image and label, and gives the item's content.

    A row of -1 is a filler: zeros, to be left out of sums.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform | Callable[..., Any],
        num_channels: int,
        seed: int = 0,
        noise_length: int | None = None,
        replace_bad_images: bool = True,
        num_views: int = 1,
        stages: Sequence[Stage] = (),
    ):
        """
        Args:
            noise_length: add `noise` of this many uniform numbers to each image.
            replace_bad_images: take the next row that can be decoded instead, under the number, the augmentation and
                the noise of the one asked for (for training, where every place is filled); otherwise a bad image
                becomes a filler (for means, which are then exact over the good ones).
            num_views: items that a data loader gets for each key: crops, flips and noises of one decoding. The
                first is the one that `num_views=1` gives.
            stages: those that keys may name. Their transforms are random.

        Items raise DataError where MAX_BAD_IN_A_ROW rows after one another cannot be decoded.
        """
        self.source, self.transform, self.num_channels = source, in_two_steps(transform), num_channels
        self.seed, self.noise_length, self.replace_bad_images = seed, noise_length, replace_bad_images
        self.num_views = num_views
        self.is_random = noise_length is not None or getattr(self.transform, "is_random", True)
        self.stages = [(in_two_steps(stage.transform), stage.noise_length) for stage in stages]

    def __len__(self) -> int:
        num_rows: Any = self.source.num_rows  # a number: the source has random access
        return num_rows

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Any]:
        """The first view."""
        return self._views(key, 1)[0]

    def __getitems__(self, keys: Sequence[tuple[int, ...]]) -> list[dict[str, Any]]:
        """All views, those of a key together: what torch's DataLoader calls for a batch."""
        # In the order in which they are stored, so that a batch reads no block of rows twice.
        views = {key: self._views(key, self.num_views) for key in sorted(set(keys))}
        return [item for key in keys for item in views[key]]

    def _form_of(self, stage: Sequence[int]) -> tuple[Transform, int | None]:
        """Transform and noise length."""
        return self.stages[stage[0]] if stage else (self.transform, self.noise_length)

    def _views(self, key: tuple[int, ...], num_views: int) -> list[dict[str, Any]]:
        epoch, row, *stage = key
        form = self._form_of(stage)
        if not self.is_random and num_views == 1:  # nothing is drawn, which saves a tenth of the time of small images
            return [self._plain(row, form)]
        draws = ViewDraws([self._seed_of(epoch, max(row, 0), view) for view in range(num_views)])
        state = torch.get_rng_state()
        try:
            images, label, skipped = self._decode(row, num_views, draws, form[0])
            items = []
            for view, image in enumerate(images):
                draws.take_up(view)
                items.append(self._item_of(image, label, row, [] if view else skipped, form))  # told once
            return items
        finally:
            torch.set_rng_state(state)

    def _plain(self, row: int, form: tuple[Transform, int | None]) -> dict[str, Any]:
        """The item of a transform that draws nothing."""
        images, label, skipped = self._decode(row, 1, None, form[0])
        return self._item_of(images[0], label, row, skipped, form)

    def _item_of(
        self,
        image: torch.Tensor | None,
        label: Any,
        row: int,
        skipped: list[SkippedImage],
        form: tuple[Transform, int | None],
    ) -> dict[str, Any]:
        transform, noise_length = form
        if image is None:
            return _filler(transform, self.source, self.num_channels, noise_length, skipped)
        return _item(_finished(transform, self.source.labels, image, label), row, noise_length, skipped)

    def _seed_of(self, epoch: int, row: int, view: int) -> int:
        # numpy's SeedSequence takes ten times as long.
        key = b"%d %d %d %d" % (self.seed, epoch, row, view) if view else b"%d %d %d" % (self.seed, epoch, row)
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1

    def _decode(
        self, row: int, num_views: int, draws: ViewDraws | None, transform: Transform
    ) -> tuple[Sequence[torch.Tensor | None], Any, list[SkippedImage]]:
        """The image that stands at a row, for each view, None for a filler; its label, where there are any; and what
        was met on the way to it. The views begin again for each image that is tried."""
        skipped: list[SkippedImage] = []
        labels = self.source.labels
        nothing: list[torch.Tensor | None] = [None] * num_views
        if row < 0:
            return nothing, None, skipped
        for _ in range(min(MAX_BAD_IN_A_ROW, len(self)) if self.replace_bad_images else 1):
            try:
                if draws is not None:
                    draws.restart()
                images = _decoded(
                    transform,
                    self.source.rows[row],
                    self.num_channels,
                    row,
                    len(nothing),
                    self.source.min_side,
                    self.source.band_form,
                    self.source.decodes_scaled,
                    draws,
                )
                label = None if labels is None else labels.decode(self.source.rows.label(row), images[0], row)
                return images, label, skipped
            except ImageDecodingError as error:
                skipped.append(skipped_image(self.source.description, self.source.root, row, error))
            row = (row + 1) % len(self)
        if self.replace_bad_images:
            _raise_too_many(skipped)
        if draws is not None:
            draws.restart()
        return nothing, None, skipped


def _decoded(
    transform: Transform,
    value: Any,
    num_channels: int,
    row: int,
    num_views: int,
    min_side: int,
    form: BandForm | None,
    scaled: bool,
    draws: ViewDraws | None = None,
) -> list[torch.Tensor]:
    """The parts of the image that the views of a transform ask for. form: of images that are not 8-bit pictures.
    scaled: whether large ones may be decoded at a fraction of their size. draws: None: the views draw one after the
    other."""

    def regions(height: int, width: int) -> list[tuple[int, int, int, int]]:
        places = []
        for view in range(num_views):
            if draws is not None:
                draws.take_up(view)
            places.append(transform.region(height, width))
        return places

    if form is not None:
        return decode_band_regions(value, form, regions, row, min_side, num_channels)
    target = getattr(transform, "target", None) if scaled else None
    return decode_regions(value, num_channels, regions, row, min_side, target)


def _finished(transform: Transform, labels: Labels | None, pixels: torch.Tensor, label: Any) -> dict[str, Any]:
    """What `_decoded` gave -> the item's content."""
    if labels is not None and labels.is_joint:
        return transform.finish(pixels, label)
    return {"pixel_values": transform.finish(pixels), **({} if labels is None else {"labels": label})}


def _item(content: dict[str, Any], row: int, noise_length: int | None, skipped: list[SkippedImage]) -> dict[str, Any]:
    item = {**content, "row": row}
    if noise_length is not None:
        item["noise"] = torch.rand(noise_length)
    if skipped:
        item["skipped"] = skipped
    return item


def _filler(
    transform: Transform,
    source: ImageSource,
    num_channels: int,
    noise_length: int | None,
    skipped: list[SkippedImage],
) -> dict[str, Any]:
    """Zeros of the shape that the transform gives, and a label that stands for none."""
    labels = source.labels
    _, _, height, width = transform.region(16, 16)
    dtype = torch.uint8 if source.band_form is None else torch.float32
    blank = torch.zeros(num_channels, height, width, dtype=dtype)
    content = _finished(transform, labels, blank, None if labels is None else labels.filler())
    content["pixel_values"] = torch.zeros_like(content["pixel_values"])
    return _item(content, -1, noise_length, skipped)


def _raise_too_many(skipped: list[SkippedImage]) -> None:
    last = skipped[-1]
    raise DataError(
        f"{len(skipped)} images in a row of {last.split} cannot be decoded, up to row {last.row} ({last.kind}: "
        f"{last.detail}). Look at the files, or at --image_column_name."
    )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items -> a batch. What cannot be stacked, tensors of different shapes and dicts, stays a list. `"skipped"` is the
    list of all bad images met for it; without any, there is no such key."""
    skipped = [record for item in items for record in item.get("skipped", ())]
    batch = {}
    for key in (key for key in items[0] if key != "skipped"):
        values = [item[key] for item in items]
        shapes = {value.shape for value in values if isinstance(value, torch.Tensor)}
        batch[key] = values if isinstance(values[0], dict) or len(shapes) > 1 else default_collate(values)
    return {**batch, "skipped": skipped} if skipped else batch


class ImageStream(torch.utils.data.IterableDataset[Any]):
    """A `datasets` stream that cannot seek. Each rank and worker reads a share of its files, or leaves out the others'
    rows where there are fewer files than readers.

    The `row` of an image is its place in what its reader has read so far, times the number of readers, plus the number
    of the reader: no two images of a run have the same.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Transform | Callable[..., Any],
        num_channels: int,
        *,
        rank: int,
        world_size: int,
        noise_length: int | None = None,
        shuffle_seed: int | None = None,
        buffer_size: int = 1,
        endless: bool = False,
        num_views: int = 1,
    ):
        """endless: for training; begins again at the end, and a bad image is left out. Otherwise it becomes a filler
        (see `ImageDataset`). num_views: of each image, from one decoding, one after the other."""
        rows = source.rows
        if shuffle_seed is not None and buffer_size > 1:
            rows = rows.shuffle(seed=shuffle_seed, buffer_size=buffer_size)
        self.rows = split_dataset_by_node(rows, rank=rank, world_size=world_size)
        self.rank, self.world_size = rank, world_size
        self.transform, self.num_channels, self.endless = in_two_steps(transform), num_channels, endless
        self.source, self.labels = source, source.labels
        self.noise_length, self.num_views = noise_length, num_views

    def _numbers(self) -> Iterator[int]:
        worker = get_worker_info()
        workers, worker_id = (worker.num_workers, worker.id) if worker else (1, 0)
        return itertools.count(worker_id * self.world_size + self.rank, workers * self.world_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        numbers, skipped = self._numbers(), []
        for epoch in itertools.count():
            self.rows.set_epoch(epoch)
            is_empty = True
            for row in self.rows:
                is_empty, number = False, next(numbers)
                try:
                    images = _decoded(
                        self.transform,
                        row["image"],
                        self.num_channels,
                        number,
                        self.num_views,
                        self.source.min_side,
                        self.source.band_form,
                        self.source.decodes_scaled,
                    )
                    label = None if self.labels is None else self.labels.decode(row["label"], images[0], number)
                except ImageDecodingError as error:
                    skipped.append(skipped_image(self.source.description, self.source.root, number, error))
                    if self.endless:
                        if len(skipped) == MAX_BAD_IN_A_ROW:
                            _raise_too_many(skipped)
                        continue
                    yield _filler(self.transform, self.source, self.num_channels, self.noise_length, skipped)
                    skipped = []
                    continue
                for image in images:
                    content = _finished(self.transform, self.labels, image, label)
                    yield _item(content, number, self.noise_length, skipped)
                    skipped = []
            # Workers beyond the number of files get nothing.
            if not self.endless or is_empty:
                return
