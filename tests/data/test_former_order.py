"""The order of version 0.1.0: the numbers here come from its code."""

import hashlib

import pytest

from hf_mae_robust.data.former_order import former_batches
from hf_mae_robust.data.order import epoch_batches

GROUPS = [7, 10, 10, 3, 25, 1, 10] * 12
PLANS = [
    (
        {"epoch": 2, "rank": 1, "world_size": 2, "batch_size": 8, "seed": 3, "buffer_size": 64},
        "598c74401b0bb269bdcf347cc36950d5d97c80d3b66dabb48e985096495ff498",
    ),
    (
        {"epoch": 0, "rank": 0, "world_size": 1, "batch_size": 5, "seed": 9, "buffer_size": 1024},
        "4ce38acd1976d1c0591f83e870889e23887b582dc55fe68e1db296f4741b3b0d",
    ),
]


def checksum(batches):
    return hashlib.sha256(batches.astype("<i8").tobytes()).hexdigest()


@pytest.mark.parametrize(("plan", "expected"), PLANS)
def test_streamed_images_come_as_they_did(plan, expected):
    assert checksum(former_batches(GROUPS, **plan)) == expected


def test_images_with_random_access_still_come_as_they_did():
    plan = {**PLANS[0][0], "buffer_size": None}
    assert checksum(epoch_batches(GROUPS, **plan)) == "c93bef64e9b926bd7d3a7fa5e927566824ab69384ce2c70e4d99b5c53f1b5ce1"


def test_row_groups_without_rows_do_not_count():
    settings = PLANS[0][0]
    assert checksum(former_batches([0, *GROUPS, 0, 0], **settings)) == PLANS[0][1]
