"""Images of any number of bands -> `pixel_values`: the image processor of models whose images are not 8-bit."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, CLIPImageProcessor, SegformerImageProcessor

from .band_files_vit_mae_robust import read_band_image
from .bands_vit_mae_robust import BandError, BandForm, BandImage
from .resizing_vit_mae_robust import cut_to_middle, fill_missing_pixels, resize_with_missing


class ViTMAERobustImageProcessor(CLIPImageProcessor):
    r"""
    Chooses the bands of an image, marks missing pixels, clips, normalises, resizes and crops, as in training. Resizing
    and cropping are [`CLIPImageProcessor`]'s, in float32 and with missing pixels (`resize_with_missing`).

    Args:
        bands (`list[int]`, *optional*): 0-based numbers of the bands of an image to take, in this order; default: all.
        nodata (`float`, *optional*): number that means a missing pixel, beside NaN and what a file itself names.
        value_range (a pair `[lowest, highest]` for each chosen band, *optional*): numbers beyond are clipped.
        image_mean, image_std (one `float` a chosen band, *optional*):
            What images are normalised with, in the units of the files. Without: `pixel_values` are in these units.
        channel_axis (`"first"` or `"last"`, *optional*): of arrays; default: found out by their shape.
        frame (`int`, *optional*): 0-based number of the frame to take of files that hold several.
        fill_missing (`bool`, defaults to `True`): give missing pixels as 0, the mean of their band; `False`: as NaN,
            which a pre-training model leaves out of its loss.
        show_bands (`list[int]`, *optional*): one or three bands, with the numbers that they have in the files, that
            pictures show as gray or as red, green and blue; default: the first three, or the first.
        size, crop_size, do_resize, do_center_crop, resample: as in [`CLIPImageProcessor`].
    """

    do_rescale = False
    rescale_factor = 1.0
    do_convert_rgb = False
    image_mean = None  # type: ignore[assignment]  # of stock processors they have defaults
    image_std = None  # type: ignore[assignment]

    def __init__(
        self,
        bands: Sequence[int] | None = None,
        nodata: float | None = None,
        value_range: Sequence[Sequence[float]] | None = None,
        channel_axis: str | None = None,
        frame: int | None = None,
        fill_missing: bool = True,
        show_bands: Sequence[int] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.bands = None if bands is None else list(bands)
        self.nodata = nodata
        self.value_range = None if value_range is None else [list(pair) for pair in value_range]
        self.channel_axis, self.frame, self.fill_missing = channel_axis, frame, fill_missing
        self.show_bands = None if show_bands is None else list(show_bands)

    @property
    def band_form(self) -> BandForm:
        """Its settings but for the geometry."""

        def as_tuple(values: Sequence[Any] | None) -> tuple[Any, ...] | None:
            return None if values is None else tuple(values)

        ranges = None if self.value_range is None else tuple((low, high) for low, high in self.value_range)
        return BandForm(
            bands=as_tuple(self.bands),
            nodata=self.nodata,
            value_range=ranges,
            image_mean=as_tuple(self.image_mean),
            image_std=as_tuple(self.image_std),
            channel_axis=self.channel_axis,
            frame=self.frame,
        )

    @property
    def shown_channels(self) -> tuple[int, ...] | None:
        """`show_bands` as channels of `pixel_values`; None: by default. Raises ValueError for one that is not among
        `bands`."""
        if self.show_bands is None:
            return None
        if self.bands is not None and not set(self.show_bands) <= set(self.bands):
            raise ValueError(f"show_bands={self.show_bands}: must be some of bands={self.bands}.")
        return tuple(band if self.bands is None else self.bands.index(band) for band in self.show_bands)

    def preprocess(
        self,
        images: Any,
        do_normalize: bool | None = None,
        fill_missing: bool | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """
        Args:
            images: an image, a list of images, or an array or tensor `(B, ...)` of images. An image is what
                `read_band_image` takes (an array `(H, W, C)`, `(C, H, W)` or `(H, W)`, the bytes or the path of a file,
                a picture of Pillow), or a tensor.
            do_normalize: `False`: images are `(C, H, W)` pixel values already, NaN where a pixel is missing, and are
                resized and cropped only.
            fill_missing: as in the settings. return_tensors: "pt", "np" or None, a list of tensors.
            kwargs: other settings of the geometry for this call.

        Returns:
            `pixel_values` `(B, C, H, W)` float32.

        Raises:
            BandError: an image that cannot be used, such as one that lacks a band.
        """
        for given in ("do_rescale", "rescale_factor", "image_mean", "image_std", "input_data_format"):
            kwargs.pop(given, None)  # of stock processors; what pixel values are here does not depend on them
        if not isinstance(images, (list, tuple)):
            images = list(images) if getattr(images, "ndim", 3) == 4 else [images]
        are_ready = not (self.do_normalize if do_normalize is None else do_normalize)
        fills = self.fill_missing if fill_missing is None else fill_missing
        form, pixel_values = self.band_form, []
        for i, image in enumerate(images):
            try:
                values = torch.as_tensor(image) if are_ready else torch.from_numpy(form.apply(self._read(image)))
            except BandError as error:
                if len(images) == 1:
                    raise
                raise BandError(f"images[{i}]: {error}", error.kind) from error
            values = resize_with_missing(values, lambda image: self._resize_and_crop(image, **kwargs))
            pixel_values.append(fill_missing_pixels(values) if fills else values)
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)

    # Only its arguments count.
    post_process_semantic_segmentation = SegformerImageProcessor.post_process_semantic_segmentation

    def _read(self, image: Any) -> BandImage:
        if isinstance(image, BandImage):
            return image
        if isinstance(image, torch.Tensor):
            image = image.numpy(force=True)
        return read_band_image(image, channel_axis=self.channel_axis, frame=self.frame)

    def _resize_and_crop(self, image: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """`(C, h, w)` without NaN -> `(C, H, W)`, of the same type."""
        if "shortest_edge" in self.size:
            image = cut_to_middle(image)
        # Of a few pixels or many bands it could not tell where the channels are.
        layout: dict[str, Any] = {"input_data_format": "channels_first", "return_tensors": "pt"}
        return super().preprocess(image, do_rescale=False, do_normalize=False, **layout, **kwargs).pixel_values[0]


ViTMAERobustImageProcessor.register_for_auto_class("AutoImageProcessor")

__all__ = ["ViTMAERobustImageProcessor"]
