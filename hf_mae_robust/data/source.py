"""`ImageSource`: one split of a data set, and the rows of images that stand behind it."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import datasets
import numpy as np

from ..errors import DataError
from ..hub.network import RETRY_SECONDS
from ..model.bands_vit_mae_robust import BandForm
from .array_columns import ArrayColumn, holds_arrays
from .arrays import MIN_SIDE
from .labels import Labels
from .row_groups import RowGroups
from .stream_cache import parse_size

Value = TypeVar("Value")

# Of a sample, where a command has no --seed.
SEED = 42


class Share(Protocol):
    """How one of several processes finds something out for all: all of them call it with the same function, one runs
    that, and all get its value, or its error."""

    def __call__(self, function: Callable[[], Value], /) -> Value: ...


def alone(function: Callable[[], Value]) -> Value:
    """The `Share` of a process that finds out everything by itself."""
    return function()


@dataclass(frozen=True)
class DataLocation:
    """Where images come from; the fields are named after the command line's.

    label_column_name: column of labels to read as well, or "auto" for the only one there is; None: no labels.
    allow_unused_files: whether image files of a local folder may be left out.
    stream_cache, stream_cache_size: folder and size of a `StreamCache` for streamed Parquet files.
    dataset_retry_seconds: how long to retry what cannot be read on the network.
    bands, channel_axis, frame: as of `BandForm`. full_size_decoding: as of `ImageSource`.
    """

    dataset_name: str | None = None
    dataset_config_name: str | None = None
    dataset_revision: str | None = None
    image_column_name: str | None = None
    dataset_streaming: bool = False
    token: str | None = field(default=None, repr=False)
    dataset_retry_seconds: float = RETRY_SECONDS
    label_column_name: str | None = None
    allow_unused_files: bool = False
    stream_cache: str | None = None
    stream_cache_size: str | None = None
    bands: Sequence[int] | None = None
    channel_axis: str | None = None
    frame: int | None = None
    full_size_decoding: bool = False

    @classmethod
    def of(cls, arguments: Any, token: str | None) -> "DataLocation":
        """From parsed flags of the same names; a command that lacks one gets its default."""
        flags = [setting for setting in fields(cls) if setting.name != "token"]
        values: dict[str, Any] = {flag.name: getattr(arguments, flag.name, flag.default) for flag in flags}
        return cls(**values, token=token)

    @property
    def stream_cache_bytes(self) -> int | None:
        return None if self.stream_cache_size is None else parse_size(self.stream_cache_size)


@dataclass(frozen=True)
class StoredBands:
    """What the images of a source hold, by those that were looked at.

    Attributes:
        num_channels: of each image. dtype: name of the type of their numbers, such as "uint16".
        kind: for people, such as "TIFF".
        is_8_bit: whether 8-bit pictures of 1, 3 or 4 channels hold all of it.
        has_picture: whether Pillow shows something of it, be it in fewer bits or channels.
        fault: why all of it cannot be read here, such as a package that is missing; "" where it can.
        mixture: for people, where some of them are 8-bit pictures, and others hold more: what lies where; else "".
    """

    num_channels: int
    dtype: str
    kind: str
    is_8_bit: bool = False
    has_picture: bool = False
    fault: str = ""
    mixture: str = ""

    @property
    def is_mixed(self) -> bool:
        return bool(self.mixture)

    @property
    def can_be_shown(self) -> bool:
        """Whether a picture holds all of its channels, be it in fewer bits. Of more channels Pillow shows some, or the
        first alone."""
        return self.has_picture and self.num_channels in (1, 3, 4)

    def __str__(self) -> str:
        if self.mixture:
            return self.mixture
        bands = f"{self.num_channels} band{'s' * (self.num_channels > 1)}"
        return f"{bands} of {self.dtype} ({self.kind})"


@dataclass(frozen=True)
class ImageSource:
    """One split of a data set.

    Attributes:
        rows: encoded images: something with `rows[i]`, or an iterable data set of `{"image": ...}` where `row_groups`
            is None. With labels also `rows.label(i)`, or a key "label".
        row_groups: numbers of rows that are read at once, in order (any sequence of integers becomes `RowGroups`);
            None for a stream that cannot seek.
        seekable_at_no_cost: whether any row is as quick to reach as the next one (a memory-mapped table).
        description: for people. fingerprint: changes when the data does, but not with where it lies.
        revision: commit (40 hexadecimal digits) of a data set on the Hub, at which everything is read; None for local
            ones, and where a copy in the cache does not tell.
        labels: what `rows.label(i)` is, with the names of its classes; None where no labels were asked for.
        split: name of the split, such as "train"; of images that were held out of it, too.
        min_side: smallest height and width of images that are stored as arrays (arrays.py).
        root: folder of a local data set; "" for others.
        holds_numbers: whether its column is one of arrays or bytes, and not of type Image.
        stored: what its images hold (band_detection.py); None: none were looked at.
        band_form: how the numbers of the files become pixel values; None: the images are read as 8-bit pictures.
        full_size_decoding: whether large JPEG files, too, are decoded at full size where less would do
            (shrunk_jpeg.py).
    """

    rows: Any
    row_groups: RowGroups | None
    seekable_at_no_cost: bool
    description: str
    fingerprint: str
    revision: str | None = None
    labels: Labels | None = None
    split: str = ""
    min_side: int = MIN_SIDE
    root: str = ""
    holds_numbers: bool = False
    stored: StoredBands | None = None
    band_form: BandForm | None = None
    full_size_decoding: bool = False

    def __post_init__(self) -> None:
        if self.row_groups is not None:
            object.__setattr__(self, "row_groups", RowGroups.of(self.row_groups))

    @property
    def needs_bands(self) -> bool:
        """Whether its images are known to hold more than 8-bit pictures do."""
        return self.stored is not None and not self.stored.is_8_bit

    @property
    def decodes_scaled(self) -> bool:
        """Whether a large image may be decoded at a fraction of its size. Labels that belong to places in the image
        need all of it, and bands are not JPEG's."""
        is_joint = self.labels is not None and self.labels.is_joint
        return not self.full_size_decoding and self.band_form is None and not is_joint

    @property
    def may_be_repaired(self) -> bool:
        """Whether a bad image may have become a good one since, and can be looked at in little time. Parquet files are
        other data then, and the Hub has one commit."""
        return bool(self.root) and self.seekable_at_no_cost

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None if self.labels is None else self.labels.class_names

    @property
    def num_rows(self) -> int | None:
        """In constant time: it is asked for with every image, of what may be millions of row groups."""
        return None if self.row_groups is None else self.row_groups.num_rows

    def __len__(self) -> int:
        """The Trainer asks for it."""
        if self.num_rows is None:
            raise TypeError(f"{self.description} is a stream of unknown length.")
        return self.num_rows

    def __bool__(self) -> bool:
        """`source or other` asks whether there is a source, not how long it is: a stream does not know."""
        return True

    def sample(self, num_rows: int | None, seed: int = SEED, buffer_size: int = 8192) -> "ImageSource":
        """`num_rows` rows, drawn at random by `seed`, in their order; all of them where None. The first rows of a
        folder sorted by class would be of one class. Of a stream: from its shuffle buffer of `buffer_size` rows, the
        same rows in every epoch."""
        if num_rows is None or (self.num_rows is not None and self.num_rows <= num_rows):
            return self
        if num_rows < 1:
            raise DataError(f"At least one image has to be left, got a limit of {num_rows}.")
        described: dict[str, Any] = {
            "description": f"random {num_rows:,} of {self.description}",
            "fingerprint": f"{self.fingerprint}[{num_rows} by {seed}]",
        }
        if self.row_groups is None:
            shuffled = self.rows.shuffle(seed=seed, buffer_size=buffer_size).take(num_rows)
            # A generator, because a later `set_epoch` would choose other rows.
            rows = datasets.IterableDataset.from_generator(_rows_of, gen_kwargs={"stream": shuffled})
            described["description"] = (
                f"{num_rows:,} drawn by a shuffle buffer of {buffer_size:,} from the beginning of {self.description}"
            )
            return replace(self, rows=rows, **described)
        index = np.sort(np.random.default_rng(seed).choice(self.num_rows or 0, num_rows, replace=False))
        counts = np.diff(np.searchsorted(index, self.row_groups.ends), prepend=0)
        row_groups = RowGroups(counts[counts > 0])
        return replace(self, rows=ChosenRows(self.rows, index), row_groups=row_groups, **described)

    def read_as(self, form: BandForm | None, num_channels: int) -> "ImageSource":
        """The same images, read as a model wants them: with this form, or, where it is None, as 8-bit pictures of so
        many channels. Raises DataError where its files hold too little, or what no 8-bit picture shows."""
        stored = self.stored
        if form is None:
            if self.needs_bands and stored is not None and not stored.can_be_shown:
                raise DataError(
                    f"{self.description} holds {stored}, and the model takes 8-bit images of {num_channels} "
                    f"channel{'s' * (num_channels > 1)}. Start from a model for such images, from scratch, or give "
                    "--inflate_channels mean, which makes the patch projection fit."
                )
            return replace(self, band_form=None)
        if stored is not None and stored.fault:
            raise DataError(f"{self.description}: {stored.fault}.")
        if stored is not None and form.bands is None and form.num_channels not in (None, stored.num_channels):
            enough = stored.num_channels > (form.num_channels or 0)
            raise DataError(
                f"{self.description} holds {stored}, and the model takes {form.num_channels} bands. "
                + (
                    "Choose them with --bands (0-based, in the order of the model's)."
                    if enough
                    else "Give it files that hold all of them."
                )
            )
        if stored is not None and form.bands is not None and max(form.bands) >= stored.num_channels:
            raise DataError(
                f"--bands {' '.join(map(str, form.bands))}: {self.description} holds {stored}; the last band is "
                f"{stored.num_channels - 1} (0-based). Without the flag, the bands are those of the model."
            )
        return replace(self, band_form=form)

    def head(self, num_rows: int | None) -> "ImageSource":
        """The first `num_rows` rows; all of them where None."""
        if num_rows is None or (self.num_rows is not None and self.num_rows <= num_rows):
            return self
        if num_rows < 1:
            raise DataError(f"At least one image has to be left, got a limit of {num_rows}.")
        if self.row_groups is None:
            return replace(self, rows=self.rows.take(num_rows), fingerprint=f"{self.fingerprint}[:{num_rows}]")
        ends = self.row_groups.ends
        ends = np.minimum(ends[: np.searchsorted(ends, num_rows) + 1], num_rows)
        row_groups = RowGroups(np.diff(ends, prepend=0))
        return replace(
            self,
            row_groups=row_groups,
            description=f"first {num_rows:,} of {self.description}",
            fingerprint=f"{self.fingerprint}[:{num_rows}]",
        )


class ChosenRows:
    """Some rows of others. index: `(N,)`, ascending."""

    def __init__(self, rows: Any, index: np.ndarray):
        self.rows, self.index = rows, index

    def __getitem__(self, row: int) -> Any:
        return self.rows[int(self.index[row])]

    def label(self, row: int) -> Any:
        return self.rows.label(int(self.index[row]))


def _rows_of(stream: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    yield from stream


class TableRows:
    """Random access to the image column of a memory-mapped `datasets.Dataset`, and to labels."""

    def __init__(self, table: datasets.Dataset, column: str, labels: Labels | None = None):
        self.labels = labels
        # All classes are looked at before the training; semantic maps and objects are too large for it.
        self.classes = labels.check(table[labels.column]) if labels is not None and not labels.is_joint else None
        self.column, self.table = column, encoded(table.select_columns([column]))
        self.arrays = _arrays_of(table, column)
        if labels is not None and labels.is_joint:
            self.annotations = encoded(table.select_columns([labels.column]))
            self.annotation_arrays = _arrays_of(table, labels.column)

    def __getitem__(self, row: int) -> Any:
        return self.table[row][self.column] if self.arrays is None else self.arrays[row]

    def label(self, row: int) -> Any:
        if self.classes is not None:
            return self.classes[row]
        labels: Any = self.labels  # there are some where this is called
        arrays = self.annotation_arrays
        return labels.check([self.annotations[row][labels.column] if arrays is None else arrays[row]], row)[0]


def _arrays_of(table: datasets.Dataset, column: str) -> ArrayColumn | None:
    """The column, if it holds arrays. `datasets` would give them as nested lists, a thousand times as slowly."""
    if not holds_arrays(table.features[column]):
        return None
    chosen: Any = table._indices  # a table of row numbers, where the rows were shuffled or selected
    index = None if chosen is None else chosen.column(0).to_numpy()
    return ArrayColumn(table.data.column(column), index)


def encoded(data: Any) -> Any:
    """A table or stream that gives its images as encoded bytes."""
    for column, feature in (data.features or {}).items():
        if isinstance(feature, datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
    return data


class HeldRows(list[Any]):
    """Encoded images in memory, and their labels."""

    def __init__(self, images: list[Any], labels: Sequence[Any] = ()):
        super().__init__(images)
        self.labels = labels

    def label(self, row: int) -> Any:
        return self.labels[row]


def fingerprint_parts(labels: Labels | None) -> tuple[Any, ...]:
    """What of the labels belongs into a fingerprint."""
    return () if labels is None else (labels.column, labels.class_names)


def digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def load_head_of_stream(source: ImageSource, num_rows: int) -> ImageSource:
    """The first images of a stream, held (encoded) in memory, as a source with random access."""
    rows = list(source.rows.take(num_rows))
    if not rows:
        raise DataError(f"{source.description} is empty.")
    return replace(
        source,
        rows=HeldRows([row["image"] for row in rows], [row.get("label") for row in rows]),
        row_groups=RowGroups([len(rows)]),
        seekable_at_no_cost=True,
        description=f"first {len(rows):,} of {source.description}",
    )
