"""Which errors may pass, and how they are shown."""

import errno
from json import JSONDecodeError

import pyarrow as pa
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_mae_robust.data.remote_file import UnexpectedLengthError
from hf_mae_robust.hub import faults
from hf_mae_robust.hub.faults import ClientError, describe, is_transient, public
from tests.hub.errors import chained, masked, refused


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError("read timed out"), True),
        (ConnectionResetError("reset"), True),
        (BrokenPipeError(), True),
        (OSError("of some file system"), True),
        (UnexpectedLengthError("3 came"), True),
        (chained(RuntimeError("a large file"), refused(503)), True),
        (chained(RuntimeError("a large file"), refused(403)), False),
        (HTTPError("server disconnected"), True),
        (ClientError("not enough data"), True),
        *[(refused(status), True) for status in (408, 429, 500, 502, 503, 504)],
        (masked(FileNotFoundError("no data file"), chained(LocalEntryNotFoundError("?"), HTTPError("reset"))), True),
        *[(refused(status), False) for status in (400, 401, 403, 404, 416)],
        (refused(403, GatedRepoError), False),
        (refused(404, RevisionNotFoundError), False),
        (FileNotFoundError("gone"), False),
        (chained(FileNotFoundError("repository not found"), refused(401, RepositoryNotFoundError)), False),
        (chained(LocalEntryNotFoundError("?"), OfflineModeIsEnabled("offline")), False),
        (PermissionError("no"), False),
        (IsADirectoryError("folder"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (DatasetNotFoundError("no such"), False),
        (chained(DatasetGenerationError("bad file"), OSError("Corrupt")), False),
        (pa.ArrowInvalid("magic bytes"), False),
        (ValueError("a bug"), False),
    ],
    ids=lambda value: describe(value)[:40] if isinstance(value, Exception) else None,
)
def test_what_is_worth_another_try(monkeypatch, error, expected):
    monkeypatch.setattr(faults.constants, "HF_HUB_OFFLINE", False)
    assert is_transient(error) is expected


def test_offline_nothing_is_tried_again(monkeypatch):
    monkeypatch.setattr(faults.constants, "HF_HUB_OFFLINE", True)
    assert not is_transient(ConnectionError("Couldn't reach the Hub: OfflineModeIsEnabled"))


def test_a_page_of_html_is_a_busy_hub_and_other_broken_json_a_broken_file():
    error = JSONDecodeError("Expecting value", "<html>", 0)
    assert is_transient(error, expects_json=True) and not is_transient(error)


def test_messages_hold_no_secrets_and_no_line_breaks():
    text = "GET https://cdn.example/a/b.parquet?X-Amz-Signature=abc&Expires=1 failed\n Bearer abc.def hf_secretSecret"
    assert public(text) == "GET https://cdn.example/a/b.parquet failed *** ***"
    assert public("s3://key:secret@host/x") == "s3://host/x"
    assert public(f"hf://datasets/a/b@{'0' * 40}/x.parquet") == f"hf://datasets/a/b@{'0' * 40}/x.parquet"
    assert len(describe(OSError("x" * 999))) == 400
