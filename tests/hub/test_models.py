"""Which names are of the Hub, and what is said where a model cannot be had. With a Hub: test_uploads.py."""

import socket

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError

from hf_mae_robust.data.opening import open_splits
from hf_mae_robust.data.source import DataLocation
from hf_mae_robust.errors import UserError
from hf_mae_robust.hub import models, network
from hf_mae_robust.hub.models import local_model
from tests.hub.errors import chained, refused


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Answers with what is in `answers`, and lists the patterns asked for."""

    class Hub:
        answers, asked = [], []

        def snapshot_download(self, name, *, revision, token, allow_patterns, ignore_patterns):
            self.asked.append((name, revision, token, allow_patterns))
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            folder = tmp_path / ("c" * 40)
            folder.mkdir(exist_ok=True)
            (folder / answer).touch()
            return str(folder)

    hub = Hub()
    hub.answers, hub.asked = [], []
    monkeypatch.setattr(models, "snapshot_download", hub.snapshot_download)
    return hub


def test_paths_are_left_alone(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ours").mkdir()
    for name in ("ours", str(tmp_path)):
        assert local_model(name, None, None) == (name, None)
    for name in ("./none", "~/none", "a/b/c", str(tmp_path / "our")):
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file or folder"):
            local_model(name, None, None)
    with pytest.raises(UserError, match="ours is not a model on the Hub, so it has no revision v1"):
        local_model("ours", "v1", None)
    assert not hub.asked


def test_a_model_comes_at_a_commit_and_old_weights_only_where_there_are_no_others(hub, tmp_path):
    hub.answers = ["model.safetensors"]
    assert local_model("ada/encoder", "v1", "token") == (str(tmp_path / ("c" * 40)), "c" * 40)
    ((name, revision, token, patterns),) = hub.asked
    assert (name, revision, token) == ("ada/encoder", "v1", "token") and "*.safetensors" in patterns
    (tmp_path / ("c" * 40) / "model.safetensors").unlink()
    hub.answers = ["config.json", "pytorch_model.bin"]
    local_model("ada/encoder", None, None)
    assert "pytorch_model*.bin" in hub.asked[-1][3] and "*.safetensors" not in hub.asked[-1][3]


def test_a_misspelt_folder_is_asked_for_once(hub, tmp_path, monkeypatch):
    """`outputs/encodre` could be a model of the Hub; without a network that must not take minutes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "encoder").mkdir(parents=True)
    hub.answers = [ConnectionError("no network")] * 6
    with pytest.raises(UserError, match=r"outputs/encodre: no such file or folder.*Did you mean outputs/encoder\?"):
        local_model("outputs/encodre", None, None)
    assert len(hub.asked) == 1
    hub.answers = [OfflineModeIsEnabled("offline")]
    with pytest.raises(UserError, match="outputs/encodre: no such file or folder"):
        local_model("outputs/encodre", None, None)


def test_a_refusal_is_a_sentence(hub):
    hub.answers = [refused(404, RepositoryNotFoundError)]
    with pytest.raises(ValueError, match=r"a/b at revision v1 cannot be loaded: a/b is not on the Hub, or is private"):
        local_model("a/b", "v1", None)
    hub.answers = [chained(LocalEntryNotFoundError("not in the cache"), refused(403))]
    with pytest.raises(ValueError, match="a/b cannot be loaded: this token has no right"):
        local_model("a/b", None, None)


def test_what_the_cache_lacks_offline_is_left_to_whoever_loads_it(hub):
    for error in (LocalEntryNotFoundError("not in the cache"), OfflineModeIsEnabled("offline")):
        hub.answers = [error]
        assert local_model("a/b", None, None) == ("a/b", None)


def test_without_a_network_what_is_not_there_is_said_at_once(hub, tmp_path, monkeypatch):
    """The Hub's address is not found; what was downloaded before is used."""

    def fail(*args):
        raise socket.gaierror(-2, "Name or service not known")

    for name in ("mae.pth", "checkpoints/mae.safetensors"):  # a file, whatever the Hub says
        with pytest.raises(FileNotFoundError, match=f"{name}: no such file or folder"):
            local_model(name, None, None)
    monkeypatch.setattr(network.socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(network, "getproxies", dict)
    cached = tmp_path / ("d" * 40)
    found = {"ada/encoder": str(cached)}

    def snapshot_download(name, *, revision, local_files_only):
        if name not in found:
            raise LocalEntryNotFoundError("not in the cache")
        return found[name]

    monkeypatch.setattr(models, "snapshot_download", snapshot_download)
    assert local_model("ada/encoder", None, None) == (str(cached), "d" * 40)
    with pytest.raises(FileNotFoundError, match="ada/encodre: no such file or folder.*no network"):
        local_model("ada/encodre", None, None)
    with pytest.raises(FileNotFoundError, match="photos/cats: no such file or folder.*no network"):
        open_splits(DataLocation("photos/cats"))
    monkeypatch.setattr(network, "getproxies", lambda: {"https": "http://proxy:3128"})
    assert not network.hub_has_no_address()
