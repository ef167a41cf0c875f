"""Which of the six targets suits a data set: how alike they are, and what of them is a constant.

The targets are the model's own (`compute_target`), of models that are as small as they can be. Statistics are sums over
all numbers of all patches, in float64; numbers that are missing (NaN) are left out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from ..model import ViTMAERobustConfig, ViTMAERobustForPreTraining
from ..model.configuration_vit_mae_robust import TARGET_NORMALIZATIONS

# Without and with the per-patch step (`norm_pix_loss`), named as a run names its target.
RAW = TARGET_NORMALIZATIONS
PER_PATCH = tuple(f"{name} + per patch" for name in RAW)
TARGETS = (*RAW, *PER_PATCH)

# Numbers of patches that are compared at once, each of six targets in float64: 50 MB.
NUMBERS_AT_ONCE = 2**20
# The per-patch step gives a patch the variance v / (v + 1e-6), which is 1 but for patches with nearly none.
HAS_VARIANCE = 0.5
# Of a patch's variance, between the means of its channels: nothing but its color, or the offsets between channels.
CHANNELS_ONLY = 0.9

# Thresholds of the advice. From this correlation on, two targets are nearly the same.
NEARLY_THE_SAME = 0.99
# Shares that are worth a sentence: of the variance that is a constant, and of the patches with nearly no variance.
MUCH_CONSTANT, MANY_FLAT = 0.03, 0.05

# What a model needs beside what its target depends on.
SMALL = {
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "decoder_hidden_size": 4,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 1,
    "decoder_intermediate_size": 1,
    "mid_mask_ratio": 0.0,
    "decoder_keep_ratio": 1.0,
}


def small_model(config: ViTMAERobustConfig, **changes: object) -> ViTMAERobustForPreTraining:
    """A model with the targets of another one's config, and hardly any weights. changes: to the config."""
    return ViTMAERobustForPreTraining(ViTMAERobustConfig.from_dict({**config.to_dict(), **SMALL, **changes}))


@dataclass(frozen=True)
class PatchNumbers:
    """Mean and deviation of each of the D numbers of a patch over a sample of images.

    Attributes:
        count, mean, std: float64 `(D,)`; mean and std in the units that `set_target_statistics` takes.
        num_channels: C; the numbers of a patch run over its rows, columns, then channels.
    """

    count: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    num_channels: int

    def by_channel(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel, over all places in the patch."""
        count, mean, std = (values.view(-1, self.num_channels) for values in (self.count, self.mean, self.std))
        total = count.sum(dim=0).clamp_min(1)
        center = (count * mean).sum(dim=0) / total
        return center.tolist(), ((count * (std**2 + (mean - center) ** 2)).sum(dim=0) / total).sqrt().tolist()


def in_units_of_files(
    mean: torch.Tensor, std: torch.Tensor, config: ViTMAERobustConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Statistics `(D,)` of patches of normalised images as those of the images before: what `set_target_statistics`
    takes (pixels in [0, 1]; of a band model the units of its files). float64."""
    scale, shift = (
        torch.tensor(values, dtype=torch.float64).repeat(config.patch_dim // config.num_channels)
        for values in (config.image_std, config.image_mean)
    )
    return mean.double() * scale + shift, std.double() * scale


@torch.no_grad()
def patch_numbers(batches: Iterable[torch.Tensor], config: ViTMAERobustConfig) -> PatchNumbers:
    """Statistics of patches (paper, eq. 3).

    batches: images `(B, C, H, W)`, normalised with `config.image_mean` and `config.image_std`; NaN where a pixel is
        missing.
    """
    model = small_model(config)
    count, total, squares = torch.zeros(3, config.patch_dim, dtype=torch.float64)
    for images in batches:
        for image in images.split(1):  # in float64, a batch of images is large
            patches = model.patchify(image)[0].double()
            count += patches.isfinite().sum(dim=0)
            patches = patches.nan_to_num(0.0)
            total += patches.sum(dim=0)
            squares += patches.square().sum(dim=0)
    mean = total / count.clamp_min(1)
    std = (squares / count.clamp_min(1) - mean**2).clamp_min(0).sqrt()
    return PatchNumbers(count, *in_units_of_files(mean, std, config), config.num_channels)


def renormalized(
    batches: Iterable[torch.Tensor], before: ViTMAERobustConfig, after: ViTMAERobustConfig
) -> Iterator[torch.Tensor]:
    """Images `(B, C, H, W)` that one config's mean and deviation have normalised, with those of another one."""
    mean, std, new_mean, new_std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (before.image_mean, before.image_std, after.image_mean, after.image_std)
    )
    for images in batches:
        yield torch.addcmul((mean - new_mean) / new_std, images, std / new_std).float()


@dataclass(frozen=True)
class Comparison:
    """What was found of the six targets; rows and columns are in the order of `TARGETS`, shares lie in [0, 1].

    Attributes:
        num_patches: patches that were compared: those with at least two numbers that are not missing.
        correlation: Pearson's r over all numbers of all patches, `(6, 6)`.
        squared_difference: mean((a - b)^2) / mean(a^2), a: row, b: column, `(6, 6)`. It says little of targets of
            different scale, which raw ones are.
        anticorrelated: share of the patches over whose numbers r < 0, `(6, 6)`. Patches with nearly no variance
            (`flat`) in one of the two count as not anticorrelated.
        constant: share of a target's variance that is the same vector for all patches (the mean over patches of each
            of the D numbers), `(6,)`. A model that outputs this vector, whatever it sees, explains this share.
        channel_offset: the part of `constant` that is one number a channel, `(6,)`.
        by_channel: share of a target's variance (about its mean over everything) in each channel, `(6, C)`.
        between_channels: share of the variance within patches that lies between the means of their channels, `(6,)`.
        channels_only: share of the patches of which this is at least 0.9, `(6,)`.
        flat: share of the patches whose variance is at most what the per-patch step adds to it (1e-6), `(6,)`; the
            same without and with that step.
    """

    num_patches: int
    correlation: torch.Tensor
    squared_difference: torch.Tensor
    anticorrelated: torch.Tensor
    constant: torch.Tensor
    channel_offset: torch.Tensor
    by_channel: torch.Tensor
    between_channels: torch.Tensor
    channels_only: torch.Tensor
    flat: torch.Tensor

    def of(self, measure: str, *targets: str) -> float:
        """One number: of a target, or of a pair."""
        return float(getattr(self, measure)[tuple(TARGETS.index(target) for target in targets)])


class _Sums:
    """What a `Comparison` needs of all patches, added up in float64."""

    def __init__(self, dim: int, num_channels: int):
        self.num_channels, self.num_patches = num_channels, 0
        self.count = torch.zeros(dim, dtype=torch.float64)
        self.totals, self.squares = torch.zeros(2, len(TARGETS), dim, dtype=torch.float64)
        self.products, self.anticorrelated = torch.zeros(2, len(TARGETS), len(TARGETS), dtype=torch.float64)
        self.within, self.between, self.channels_only, self.flat = torch.zeros(4, len(TARGETS), dtype=torch.float64)

    def add(self, targets: torch.Tensor, valid: torch.Tensor) -> None:
        """targets: `(6, P, D)`. valid: `(P, D)` bool, where a number is not missing."""
        kept = valid.sum(dim=-1) > 1
        valid = valid[kept]
        values = torch.where(valid, targets[:, kept], 0).double()
        counts = valid.sum(dim=-1).double()
        self.num_patches += len(counts)
        self.count += valid.sum(dim=0)
        self.totals += values.sum(dim=1)
        self.squares += values.square().sum(dim=1)
        each = values.transpose(0, 1)
        products = each @ each.mT  # (P, 6, 6)
        self.products += products.sum(dim=0)

        means = each.sum(dim=-1) / counts[:, None]  # (P, 6)
        covariance = products / counts[:, None, None] - means[:, :, None] * means[:, None, :]
        variance = covariance.diagonal(dim1=1, dim2=2)
        varies = (variance[:, len(RAW) :] >= HAS_VARIANCE).repeat(1, 2)
        self.flat += (~varies).sum(dim=0)
        self.anticorrelated += ((covariance < 0) & varies[:, :, None] & varies[:, None, :]).sum(dim=0)

        channels = (len(counts), -1, self.num_channels)
        sums = each.unflatten(-1, channels[1:]).sum(dim=2)  # (P, 6, C)
        in_channel = valid.view(channels).sum(dim=1).double()[:, None]
        between = (sums**2 / in_channel.clamp_min(1)).sum(dim=-1) - counts[:, None] * means**2
        within = counts[:, None] * variance
        self.within += within.sum(dim=0)
        self.between += between.sum(dim=0)
        self.channels_only += ((between >= CHANNELS_ONLY * within) & varies).sum(dim=0)

    def result(self) -> Comparison:
        total = self.count.sum()
        means = self.totals.sum(dim=1) / total
        moments = self.products / total
        covariance = moments - means[:, None] * means
        variance, moment = covariance.diagonal(), moments.diagonal()
        # About the mean over everything: what is left of each number's sum of squares, and of its mean.
        squares = self.squares - 2 * means[:, None] * self.totals + means[:, None] ** 2 * self.count
        centers = self.totals / self.count.clamp_min(1) - means[:, None]
        places = (-1, self.num_channels)
        in_channel = self.count.view(places).sum(dim=0)
        offsets = self.totals.unflatten(1, places).sum(dim=1) / in_channel.clamp_min(1) - means[:, None]
        deviation = variance.clamp_min(0).sqrt()
        return Comparison(
            self.num_patches,
            covariance / (deviation[:, None] * deviation),
            (moment[:, None] + moment - 2 * moments).clamp_min(0) / moment[:, None],
            self.anticorrelated / self.num_patches,
            (self.count * centers**2).sum(dim=1) / (total * variance),
            (in_channel * offsets**2).sum(dim=1) / (total * variance),
            squares.unflatten(1, places).sum(dim=1) / (total * variance)[:, None],
            self.between / self.within,
            self.channels_only / self.num_patches,
            self.flat / self.num_patches,
        )


@torch.no_grad()
def compare_targets(
    batches: Iterable[torch.Tensor],
    config: ViTMAERobustConfig,
    mean: torch.Tensor,
    std: torch.Tensor,
) -> Comparison:
    """The six targets of images, against one another.

    Args:
        batches: images `(B, C, H, W)`, normalised with `config.image_mean` and `config.image_std`; NaN where a pixel is
            missing.
        config: of the model that would be trained; of its target's settings those count that the six have in common.
        mean, std: `(D,)`, statistics of patches for the targets with global_patch, as `set_target_statistics` takes
            them.
    """
    models = [
        small_model(config, target_normalization=name, norm_pix_loss=per_patch)
        for per_patch in (False, True)
        for name in RAW
    ]
    for model in models:
        if model.config.target_normalization == "global_patch":
            model.set_target_statistics(mean, std)
    sums = _Sums(config.patch_dim, config.num_channels)
    for images in batches:
        for image in images.split(1):
            targets = torch.stack([model.compute_target(image)[0] for model in models])
            valid = models[0].patchify(image)[0].isfinite() & targets.isfinite().all(dim=0)
            for part in torch.arange(len(valid)).split(max(1, NUMBERS_AT_ONCE // config.patch_dim)):
                sums.add(targets[:, part], valid[part])
    return sums.result()


def advice(found: Comparison) -> list[str]:
    """Sentences for the user, by the thresholds above."""
    none, rgb, patch = PER_PATCH
    if not float(found.flat.min()) < 1:
        return ["No patch of these images has any variance: there is nothing to predict. Look at the images."]
    sentences = []
    r, constant = found.of("correlation", rgb, patch), found.of("constant", rgb)
    # What global_patch takes out.
    has_much = r < NEARLY_THE_SAME and constant - found.of("constant", patch) >= MUCH_CONSTANT
    is_misfit = has_much and found.of("channel_offset", rgb) >= constant / 2
    if is_misfit:
        sentences.append(
            f"The mean and deviation of global_rgb do not fit your images: with it, {_constant(found, rgb)}. Take "
            f"global_patch (r = {r:.3f} between the two), or give the model your images' own mean and deviation "
            "(image_mean, image_std), as --image_statistics auto does here."
        )
    elif r >= NEARLY_THE_SAME:
        sentences.append(
            f"global_rgb and global_patch are nearly the same target for your images (r = {r:.3f}): take global_rgb, "
            "which needs no statistics of patches, or global_patch to follow the paper."
        )
    else:
        sentences.append(
            f"global_rgb and global_patch differ for your images (r = {r:.3f}): train a short run with each, and "
            "compare features (`analyze knn`), not losses."
        )
        if has_much:
            sentences.append(f"With global_rgb, {_constant(found, rgb)}; global_patch takes it out.")
    r = found.of("correlation", none, rgb)
    if r >= NEARLY_THE_SAME:
        sentences.append(f"none is nearly the same target as global_rgb, too (r = {r:.3f}).")
    else:
        sentences.append(
            f"none is another target than global_rgb (r = {r:.3f}; {found.of('anticorrelated', none, rgb):.1%} of the "
            f"patches are anticorrelated): with none, {_constant(found, none)}."
        )
        if not is_misfit:
            sentences[-1] += " In the paper's Table 1, none gives the lowest accuracy."
    name, flat = max(((name, found.of("flat", name)) for name in RAW), key=lambda pair: pair[1])
    if flat >= MANY_FLAT:
        sentences.append(
            f"{flat:.0%} of the patches have nearly no variance with {name}: the per-patch step leaves hardly anything "
            "to predict there. Larger patches help, or norm_pix_loss off."
        )
    return sentences


def _constant(found: Comparison, target: str) -> str:
    constant, offset = found.of("constant", target), found.of("channel_offset", target)
    sentence = f"{constant:.1%} of what the model must predict is the same in every patch"
    if offset >= 0.95 * constant:
        return f"{sentence}, the offset between channels"
    return f"{sentence} ({offset:.1%} is the offset between channels)"
