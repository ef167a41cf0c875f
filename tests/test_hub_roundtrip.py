"""Models go to a Hub on 127.0.0.1 and come back, through the real client and the real command line, with faults."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests.fresh import code_of_card, run_without_the_package
from tests.helpers import TINY_OVERRIDES, as_flags
from tests.loopback_hub import Fault
from tests.loopback_models import ModelHub, Repository

ROOT = Path(__file__).parents[1]
TOKEN, READER, OTHER = "hf_writesSecretToken", "hf_readsSecretToken", "hf_otherSecretToken"
USERS = {TOKEN: ("ada", True), READER: ("ada", False), OTHER: ("bob", True)}
LEFT_BEHIND = {
    ".gitattributes",
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "model.safetensors",
    "target_statistics.safetensors",
    "configuration_vit_mae_robust.py",
    "modeling_vit_mae_robust.py",
    "run.json",
    "training_args.json",
    "trainer_state.json",
    "all_results.json",
    "eval_results.json",
    "train_results.json",
    "loss.png",
    "reconstructions.png",
    "example_1.png",
    "example_2.png",
}
# The client's waits of 1, 2, 4, 8 and 8 s, made shorter; then the script.
FASTER = """
import runpy, sys, time
from types import SimpleNamespace
import huggingface_hub.utils._http as http
import tenacity.nap
faster = SimpleNamespace(**{name: value for name, value in vars(time).items() if name[0] != "_"})
faster.sleep = lambda seconds: time.sleep(seconds / 50)
http.time = tenacity.nap.time = faster
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def hub():
    with ModelHub(users=dict(USERS)) as hub:
        yield hub


def environment(hub, home, token=TOKEN):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1"}
    settings |= {"HF_TOKEN": token} if token else {}
    return {**inherited, **settings, "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}


@pytest.fixture
def run(hub, tmp_path):
    """Runs one of the scripts, as a user of the Hub: (exit code, all that was printed)."""

    def call(script, *words, token=TOKEN):
        result = subprocess.run(
            [sys.executable, "-c", FASTER, str(ROOT / script), *map(str, words)],
            env=environment(hub, tmp_path / "home", token),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        output = result.stdout + result.stderr
        for secret in USERS:
            assert secret not in output
        return result.returncode, output

    return call


@pytest.fixture
def words(photos_dir, tmp_path):
    """Flags of a pre-training of 2 epochs of 5 steps; later ones win."""
    settings = {
        "dataset_name": photos_dir,
        "config_overrides": TINY_OVERRIDES,
        "target_normalization": "global_patch",
        "target_statistics": "auto",
        "output_dir": tmp_path / "waves",
        "per_device_train_batch_size": 8,
        "num_train_epochs": 2,
        "dataloader_num_workers": 0,
        "report_to": "none",
        "logging_steps": 1,
        "push_to_hub": "true",
    }
    return lambda *more: as_flags(settings, *more)


def holds_no_secret(hub, folder):
    contents = [data for repository in hub.repositories.values() for data in repository.files().values()]
    contents += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    return not any(secret.encode() in data for data in contents for secret in USERS)


def test_what_a_run_leaves_behind_is_on_the_hub_and_comes_back(run, words, hub, photos_dir, tmp_path):
    (tmp_path / "waves").mkdir()
    (tmp_path / "waves" / "notes.txt").write_text("mine")
    code, output = run("run_pretrain.py", *words("--save_strategy", "epoch", "--hub_private_repo", "true"))
    assert code == 0, output
    repository = hub.repositories["ada/waves"]
    assert repository.private and "Pushed to" in output
    files = repository.files()
    assert files.keys() == LEFT_BEHIND
    for name in LEFT_BEHIND - {".gitattributes"}:
        assert files[name] == (tmp_path / "waves" / name).read_bytes(), name
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", files["README.md"].decode())) == {"reconstructions.png", "loss.png"}
    assert repository.messages[0] == "initial commit" and repository.messages[-1] == "End of training"
    assert holds_no_secret(hub, tmp_path / "waves")
    card = ModelCard(files["README.md"].decode())
    assert card.data.model_name == "waves" and 'from_pretrained("ada/waves", trust_remote_code=True)' in card.text

    # The lines of the card, on another machine, with transformers only.
    (tmp_path / "elsewhere").mkdir()
    code = code_of_card(tmp_path / "waves" / "README.md")
    settings = environment(hub, tmp_path / "elsewhere" / "home")
    settings = {name: settings[name] for name in ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET")}
    printed = run_without_the_package(code + "\nprint(tuple(features.shape))", tmp_path / "elsewhere", **settings)
    assert printed == "(1, 17, 32)\n"

    # And for fine-tuning, at this commit though the branch moves.
    first = repository.branches["main"]
    repository.commit("main", {"config.json": b"{}"}, "somebody breaks it")
    flags = as_flags(
        {
            "model_name_or_path": "ada/waves",
            "model_revision": first,
            "dataset_name": photos_dir,
            "output_dir": tmp_path / "classifier",
            "max_steps": 1,
            "per_device_train_batch_size": 8,
            "dataloader_num_workers": 0,
            "report_to": "none",
            "save_strategy": "no",
        }
    )
    code, output = run("run_finetune.py", *flags)
    assert code == 0 and "Fine-tuning ada/waves (beit" in output, output
    assert json.loads((tmp_path / "classifier" / "run.json").read_text())["about"]["start_commit"] == first
    card = ModelCard.load(tmp_path / "classifier" / "README.md")
    assert card.data.base_model == "ada/waves" and f"at commit {first[:10]}" in card.text
    # Without --model_revision it is the broken one, and without a token it is none.
    flags = [*flags, "--output_dir", tmp_path / "another"]
    code, output = run("run_finetune.py", *flags, "--model_revision", "main")
    assert code == 2 and "config.json" in output and "Traceback" not in output
    shutil.rmtree(tmp_path / "home")
    code, output = run("run_finetune.py", *flags, token=None)
    assert code == 2 and "ada/waves at revision" in output and "hf auth login" in output
    code, output = run("run_finetune.py", *flags, "--model_revision", "0" * 40)
    assert code == 2 and "has no such revision" in output


@pytest.mark.parametrize("strategy, folder", [("every_save", None), ("checkpoint", "last-checkpoint/"), ("end", None)])
def test_checkpoints_are_pushed_while_it_trains(strategy, folder, run, words, hub):
    more = ["--save_strategy", "epoch", "--hub_strategy", strategy, "--hub_always_push", "true"]
    code, output = run("run_pretrain.py", *words("--hub_model_id", "ada/named", *more))
    assert code == 0, output
    repository = hub.repositories["ada/named"]
    steps = [message for message in repository.messages if message.startswith("Training in progress")]
    assert len(steps) == {"every_save": 2, "checkpoint": 4, "end": 0}[strategy]
    extra = {path for path in repository.files() if path not in LEFT_BEHIND}
    assert bool(extra) is (folder is not None) and all(path.startswith(str(folder)) for path in extra)
    if folder:
        assert {f"{folder}optimizer.pt", f"{folder}manifest.json", f"{folder}rng_state.pth"} <= extra
    if strategy == "every_save":
        first = list(repository.commits.values())[1]  # a model that loads, with its card, after the first epoch
        assert {"model.safetensors", "config.json", "README.md", "modeling_vit_mae_robust.py"} <= first.keys()
        assert not {"optimizer.pt", "training_args.bin"} & first.keys() and b"ada/named" in first["README.md"]


@pytest.mark.parametrize(
    "token, more, message",
    [
        ("hf_unknown", (), "the Hub knows no such token"),
        (None, (), "the Hub knows no such token"),
        (READER, (), "has no right to write to waves"),
        (TOKEN, ("--hub_model_id", "bob/waves"), "has no right to write to bob/waves"),
        (TOKEN, ("--hub_model_id", "a/b/c"), "a/b/c"),
    ],
)
def test_without_the_right_to_write_nothing_is_trained(token, more, message, run, words, hub, tmp_path):
    code, output = run("run_pretrain.py", *words(*more), token=token)
    assert code == 2 and message in output and "Traceback" not in output, output
    assert "0%|" not in output and not (tmp_path / "waves" / "model.safetensors").exists()


def test_a_hub_that_fails_three_times_gets_everything_in_the_end(run, words, hub):
    """But for the commit itself, which the client does not repeat: it may have been made."""
    places = {"preupload": "POST", "info/lfs": "POST", "/blob/": "PUT"}
    hub.faults = [Fault(500, path, method, times=3) for path, method in places.items()]
    hub.faults += [Fault("reset", path, method, times=1) for path, method in places.items()]
    code, output = run("run_pretrain.py", *words("--hub_strategy", "end"))
    assert code == 0, output
    assert hub.repositories["ada/waves"].files().keys() == LEFT_BEHIND
    assert all(fault.hits >= fault.times for fault in hub.faults)


@pytest.mark.parametrize("kind, path", [(500, "commit"), ("reset", "/blob/")])
def test_a_model_that_cannot_be_pushed_is_not_lost(kind, path, run, words, hub, tmp_path):
    hub.faults = [Fault(kind, path, "PUT" if path == "/blob/" else "POST")]
    code, output = run("run_pretrain.py", *words("--hub_strategy", "end"))
    assert code == 5 and "was not pushed" in output and "hf upload ada/waves" in output, output
    assert "Traceback" not in output
    files = {path.name for path in (tmp_path / "waves").iterdir()}
    assert LEFT_BEHIND - {".gitattributes"} <= files
    # Nothing of it is there, not half of it.
    assert hub.repositories["ada/waves"].files().keys() == {".gitattributes"}


def test_a_push_that_fails_in_between_is_a_warning(run, words, hub):
    hub.faults = [Fault(500, "commit", "POST", times=1)]
    code, output = run("run_pretrain.py", *words("--save_strategy", "epoch", "--hub_always_push", "true"))
    assert code == 0 and "checkpoint-5 was not pushed: the Hub answered 500" in output, output
    repository = hub.repositories["ada/waves"]
    assert repository.files().keys() == LEFT_BEHIND and len(repository.messages) == 3


DOWNLOAD = """
import sys
import time
from types import SimpleNamespace
import huggingface_hub.utils._http as http
import tenacity.nap
from huggingface_hub import file_download
faster = SimpleNamespace(**{name: value for name, value in vars(time).items() if name[0] != "_"})
faster.sleep = lambda seconds: None
http.time = file_download.time = tenacity.nap.time = faster
from hf_mae_robust.hub import local_model
for _ in sys.stdin:
    try:
        print(local_model("ada/encoder", None, None), flush=True)
    except ValueError as error:
        print(f"ValueError: {error}", flush=True)
"""


def test_faults_of_a_download_leave_nothing_half_written(hub, encoder_dir, tmp_path):
    repository = hub.repositories["ada/encoder"] = Repository()
    sha = repository.commit("main", {path.name: path.read_bytes() for path in encoder_dir.iterdir()}, "all")
    home, weights = tmp_path / "home", f"/resolve/{sha}/model.safetensors"
    settings = {"env": environment(hub, home), "text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", DOWNLOAD], **settings) as client:

        def load_again() -> str:
            client.stdin.write("\n")
            client.stdin.flush()
            return client.stdout.readline()

        for kind in (500, "reset", "truncated"):
            hub.faults = [Fault(kind, weights)]
            answer = load_again()
            assert answer.startswith("ValueError: ada/encoder cannot be loaded: the Hub "), answer
            assert not list(home.rglob("model.safetensors"))
        for kind in (500, "reset", "truncated"):
            shutil.rmtree(home, ignore_errors=True)
            hub.faults = [Fault(kind, weights, times=3)]
            assert f"{sha}', '{sha}'" in load_again()
            (snapshot,) = home.rglob("model.safetensors")
            assert snapshot.read_bytes() == (encoder_dir / "model.safetensors").read_bytes()
        client.stdin.close()


def test_a_hub_that_is_away_is_said_so(run, words, hub):
    hub.server.server_close()
    code, output = run("run_pretrain.py", *words())
    assert code == 2 and "cannot be reached" in output and "Traceback" not in output, output
