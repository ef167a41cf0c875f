r"""What does a small model fill in after a thousand steps on one core? It makes the picture on top of the README.

Cuts squares out of the two photos that come with scikit-learn, pre-trains on them with all three ingredients, and draws
both photos: original, masked, reconstruction. The model is trained on these same photos: the picture shows what the
program does, and says nothing about photos that a model has not seen. Targets are not normalised per patch
(`--norm_pix_loss false`), so that brightness and contrast are the model's own, too.

Takes more flags of run_pretrain.py.

    OMP_NUM_THREADS=1 python benchmarks/reconstruction_picture.py --output_dir outputs/two-photos
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images

from hf_mae_robust import ViTMAERobustForPreTraining
from hf_mae_robust.pretrain import main as pretrain
from hf_mae_robust.pretrain import make_parser
from hf_mae_robust.training.pictures import MASK_GRAY

SIZE, PATCH, SHOWN, GAP, TITLE = 96, 8, 288, 8, 28
SQUARES = 320  # of each photo
FLAGS = [
    *("--config", "small_64px", "--config_overrides"),
    f"image_size={SIZE},patch_size={PATCH},hidden_size=128,num_hidden_layers=4,"
    "decoder_hidden_size=96,decoder_intermediate_size=384",
    *("--norm_pix_loss", "false", "--mid_mask_ratio", "0.25", "--mid_mask_layer_idx", "3"),
    *("--crop_scale", "0.4", "1.0", "--per_device_train_batch_size", "24", "--learning_rate", "2e-3"),
    *("--max_steps", "1000", "--eval_strategy", "no", "--save_steps", "0.1", "--dataloader_num_workers", "1"),
]


def photos() -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in load_sample_images().images]


def cut_squares(folder: Path) -> None:
    """Squares of 150 pixels up to the height of the photo, at random places."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for name, photo in zip(("china", "flower"), photos()):
        for number in range(SQUARES):
            side = int(draw.integers(150, photo.height, endpoint=True))
            left, top = int(draw.integers(photo.width - side + 1)), int(draw.integers(photo.height - side + 1))
            square = photo.crop((left, top, left + side, top + side)).resize((160, 160), Image.Resampling.BICUBIC)
            square.save(folder / f"{name}-{number:03}.png")


@torch.no_grad()
def draw_picture(model: ViTMAERobustForPreTraining, path: Path) -> None:
    """A row for each photo: the square in its middle, with 75% of the patches masked, and filled in."""
    model.eval()
    middle = [
        photo.crop((left := (photo.width - photo.height) // 2, 0, left + photo.height, photo.height))
        for photo in photos()
    ]
    shown = torch.stack(
        [torch.from_numpy(np.array(photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC))) for photo in middle]
    )
    pixels = shown.permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.config.image_mean, model.config.image_std))
    noise = torch.rand(len(pixels), model.config.num_patches, generator=torch.Generator().manual_seed(0))
    mask = model((pixels - mean) / std, noise=noise).mask.unsqueeze(-1).expand(-1, -1, model.config.patch_dim)
    masked = torch.where(model.unpatchify(mask).bool(), MASK_GRAY, pixels)
    filled_in = model.reconstruct((pixels - mean) / std, noise=noise)
    sheet = Image.new("RGB", (3 * SHOWN + 4 * GAP, len(pixels) * (SHOWN + GAP) + GAP + TITLE), "white")
    for column, (title, images) in enumerate(
        [("original", pixels), ("75% masked", masked), ("reconstruction", filled_in)]
    ):
        left = GAP + column * (SHOWN + GAP)
        ImageDraw.Draw(sheet).text((left + SHOWN / 2, TITLE / 2 + 2), title, "black", ImageFont.load_default(18), "mm")
        for row, image in enumerate(images):
            array = (image.clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
            how = Image.Resampling.NEAREST if title == "75% masked" else Image.Resampling.BICUBIC
            sheet.paste(Image.fromarray(array).resize((SHOWN, SHOWN), how), (left, TITLE + GAP + row * (SHOWN + GAP)))
    sheet.quantize(192, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    flags = [*FLAGS, *sys.argv[1:]]
    output = Path(make_parser().parse([*flags, "--dataset_name", "squares"]).training.output_dir)
    cut_squares(output / "squares")
    pretrain([*flags, "--dataset_name", str(output / "squares")])
    draw_picture(ViTMAERobustForPreTraining.from_pretrained(output), output / "picture.png")


if __name__ == "__main__":
    main()
