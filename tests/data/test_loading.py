"""What `datasets` loads: folders of images, of `save_to_disk`, and the digits."""

from datasets import DatasetDict
from PIL import Image

from hf_mae_robust.data.dataset import ImageDataset
from hf_mae_robust.data.loading import load_embedded_digits
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from tests.helpers import image_table, photos


def identity(image):
    return image


def test_image_folder_and_save_to_disk(tmp_path):
    for name, pixels in zip("abcd", photos(4)):
        (tmp_path / "images" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / "train" / f"{name}.png")
    folder, none = open_splits(DataLocation(str(tmp_path / "images")))
    assert none is None and folder.num_rows == 4
    assert ImageDataset(folder, identity, 3)[0, 2]["pixel_values"].shape == (3, 16, 16)

    DatasetDict(train=image_table(6), test=image_table(4)).save_to_disk(tmp_path / "saved")
    train, test = open_splits(DataLocation(str(tmp_path / "saved")))
    assert (train.num_rows, test.num_rows) == (6, 4)


def test_embedded_digits_are_the_real_ones():
    digits = load_embedded_digits()
    assert {split: len(table) for split, table in digits.items()} == {"train": 1500, "test": 297}
    assert digits["train"][0]["image"].size == (8, 8) and digits["train"][0]["label"] == 0
    train, test = open_splits(DataLocation())
    assert (train.num_rows, test.num_rows) == (1500, 297)
