"""Features of a data set, by a function that needs no model. Those of encoders: tests/analysis/test_knn.py."""

from dataclasses import replace

import pytest
import torch

from hf_mae_robust.data.features import extract_features
from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.preprocessing import EvaluationTransform, evaluation_processor
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import DataError
from tests.helpers import photos


def means(images: torch.Tensor) -> torch.Tensor:
    """Means of the channels, `(B, 3)`."""
    return images.mean(dim=(2, 3))


def features_of(source, **options):
    processor = evaluation_processor(16, crop_pct=1.0, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    return extract_features(means, source, EvaluationTransform(processor), 3, num_workers=0, **options)


@pytest.mark.parametrize("batch_size", [7, 64])
def test_they_come_in_the_order_of_the_rows_with_their_classes(photos_dir, batch_size):
    source, _ = open_splits(DataLocation(str(photos_dir), label_column_name="auto"))
    features, labels = features_of(source, batch_size=batch_size)
    expected = torch.stack([torch.from_numpy(image / 255).float().mean(dim=(0, 1)) for image in photos(40)])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert labels.tolist() == [row % 2 for row in range(40)]


def test_too_many_bad_images_end_it(photos_dir):
    source, _ = open_splits(DataLocation(str(photos_dir), label_column_name="auto"))

    class Broken:
        def __getitem__(self, row):
            return b"no image" if row % 4 == 0 else source.rows[row]

        def label(self, row):
            return source.rows.label(row)

    broken = replace(source.head(12), rows=Broken())
    assert len(features_of(broken, max_bad_images=0.25)[0]) == 9
    with pytest.raises(DataError, match="3 of 12 images of first 12 of .* cannot be decoded"):
        features_of(broken, max_bad_images=0.2)
