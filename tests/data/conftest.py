import fsspec
import pytest
import tenacity

from tests.flaky_files import FlakyFileSystem


@pytest.fixture
def flaky(monkeypatch):
    """`flaky://data`, 200 bytes, and no waiting between attempts."""
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    monkeypatch.setattr(tenacity.nap.time, "sleep", lambda seconds: None)
    for name in ("faults", "reads", "opened", "sizes"):
        monkeypatch.setattr(FlakyFileSystem, name, [])
    monkeypatch.setattr(FlakyFileSystem, "store", {})
    fsspec.filesystem("flaky").pipe_file("/data", bytes(range(200)))
    return FlakyFileSystem
