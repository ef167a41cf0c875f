"""How many images a second does `embed` take, against a bare loop of decoding and the forward pass?

    OMP_NUM_THREADS=1 python benchmarks/embed.py --dataset_name path/to/cifar10 --images 50000

The same images of one data set of Parquet files, the encoder of the recipe small_32px (random weights) or that of
--checkpoint, one thread, no worker processes, the preprocessing a resize and crop that changes nothing at 32 pixels.

- embed: what `python -m hf_mae_robust embed` does once model and data are open: decoding, forward pass, parts on the
  disk with their record, and the finished Parquet file, flushed.
- bare loop: rows of pyarrow, decoded by simplejpeg (or Pillow, where they are no JPEG), stacked, normalised, forward
  pass; vectors in a list. Nothing is written, no name or label is read, no image is checked.

Both must give the same vectors to 1e-5. Beside the rates by the clock it prints the ratio of CPU seconds, which other
jobs on the machine disturb less; waits for the disk are not in it.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import simplejpeg
import torch
from paired import add_common_arguments, current_device, measure, report, spread
from PIL import Image

from hf_mae_robust import ViTMAERobustConfig, ViTMAERobustForPreTraining
from hf_mae_robust.__main__ import make_parser
from hf_mae_robust.conversion.frozen import load_encoder
from hf_mae_robust.data.preprocessing import evaluation_processor
from hf_mae_robust.embedding.job import embed, prepare
from hf_mae_robust.recipes import recipe_path
from hf_mae_robust.training.recipe_yaml import load_yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--dataset_name", type=Path, required=True, help="Folder of Parquet files with a column image.")
    parser.add_argument("--split", default="train", help="(%(default)s)")
    parser.add_argument("--images", type=int, default=5000, help="The first N (%(default)s).")
    parser.add_argument("--batch_size", type=int, default=64, help="(%(default)s)")
    parser.add_argument("--checkpoint", help="Default: a model of the recipe small_32px with random weights.")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    checkpoint, device, results = args.checkpoint or new_model(folder / "model"), current_device(), {}
    files = sorted(args.dataset_name.rglob(f"{args.split}*.parquet"))
    (folder / "set").mkdir()
    written = first_images(files, args.images, folder / "set" / "train.parquet")
    output = folder / "embeddings.parquet"
    words = ["embed", checkpoint, "--dataset_name", str(folder / "set"), "--output", str(output), "--crop_pct", "1"]
    words += ["--num_workers", "0", "--batch_size", str(args.batch_size), "--dataset_streaming"]
    flags = make_parser(words).parse_args(words)
    job = prepare(flags, device)
    encoder, pixels = load_encoder(checkpoint)
    encoder.to(device)
    settings = evaluation_processor(encoder.image_size, 1.0, 3, pixels.image_mean, pixels.image_std)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) * 255 for v in (settings.image_mean, settings.image_std))

    def ours() -> int:
        output.unlink(missing_ok=True)
        embed(flags, job, device)
        return written

    def bare() -> int:
        vectors = []
        with torch.inference_mode():
            for batch in pq.ParquetFile(folder / "set" / "train.parquet").iter_batches(
                args.batch_size, columns=["image"]
            ):
                images = np.stack([decode(row["bytes"]) for row in batch.column(0).to_pylist()])
                batch = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
                vectors.append(encoder((batch - mean) / std).cpu())
        results["bare"] = torch.cat(vectors)
        return len(results["bare"])

    seconds: dict[str, list[float]] = {"bare loop": [], "embed": []}

    def counted(name: str, work: Callable[[], int]) -> Callable[[], int]:
        def run_counted() -> int:
            begun = time.process_time()
            units = work()
            seconds[name].append(time.process_time() - begun)
            return units

        return run_counted

    rates = measure({"bare loop": counted("bare loop", bare), "embed": counted("embed", ours)}, args.repeats)
    by_cpu = spread([a / b for a, b in zip(seconds["bare loop"][1:], seconds["embed"][1:])])
    table = pq.read_table(output, columns=["vector"]).column(0).combine_chunks()
    found = torch.from_numpy(table.flatten().to_numpy().reshape(written, -1).copy())
    difference = (found - results["bare"]).abs().max().item()
    if difference > 1e-5:
        raise SystemExit(f"The vectors differ by {difference:.2g}.")
    report(f"{written:,} images", rates, "bare loop", path=args.json, largest_difference=difference, by_cpu=by_cpu)
    print(
        f"ratio by CPU seconds: {by_cpu['median']:.3f} ({by_cpu['smallest']:.3f} to {by_cpu['largest']:.3f}), "
        f"{1000 * min(seconds['embed'][1:]) / written:.2f} ms an image"
    )
    print(f"largest difference: {difference:.2g}")


def new_model(folder: Path) -> str:
    torch.manual_seed(0)
    overrides = load_yaml(recipe_path("small_32px").read_text(), "small_32px")["config_overrides"]
    ViTMAERobustForPreTraining(ViTMAERobustConfig(**overrides)).save_pretrained(folder)
    return str(folder)


def first_images(files: list[Path], count: int, path: Path) -> int:
    """In one file of row groups of 1,000. Returns how many there are."""
    left = count
    with pq.ParquetWriter(path, pq.read_schema(files[0])) as writer:
        for file in files:
            table = pq.read_table(file).slice(0, left)
            writer.write_table(table, row_group_size=1000)
            left -= len(table)
            if not left:
                break
    return count - left


def decode(content: bytes) -> np.ndarray:
    if simplejpeg.is_jpeg(content):
        return simplejpeg.decode_jpeg(content)
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


if __name__ == "__main__":
    main()
