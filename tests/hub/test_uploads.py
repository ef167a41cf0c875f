"""Models go to a Hub on 127.0.0.1 and come back, through the real client and the real command line, with faults."""

import json
import re
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification

from hf_mae_robust.training.checkpoints import fault_of
from tests.faults import send
from tests.fresh import code_of_card, run_without_the_package_online
from tests.helpers import TINY_OVERRIDES, as_flags, finetuning_settings
from tests.loopback_hub import Fault
from tests.loopback_models import ModelHub, Repository
from tests.processes import ROOT, Parent, environment

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


@pytest.fixture(scope="module")
def loopback():
    with ModelHub(users=dict(USERS)) as hub:
        yield hub


@pytest.fixture
def hub(loopback):
    loopback.repositories, loopback.blobs, loopback.faults, loopback.requests = {}, {}, [], []
    return loopback


@pytest.fixture(scope="module")
def parent(loopback, tmp_path_factory):
    """Of all runs. Waits of the client for a Hub that fails are 1000 times shorter."""
    inherited = {name: value for name, value in environment().items() if not name.startswith("HF_")}
    settings = {"HF_ENDPOINT": loopback.url, "HF_HOME": str(tmp_path_factory.mktemp("home"))}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "SHORTEN_WAITS": "1000"}
    with Parent({**inherited, **settings}) as parent:
        yield parent


@pytest.fixture
def home(parent):
    """HF_HOME of the runs, empty."""
    home = Path(parent.environment["HF_HOME"])
    shutil.rmtree(home, ignore_errors=True)
    return home


@pytest.fixture
def run(hub, home, parent, tmp_path):
    """Runs a script, as a user of the Hub: (exit code, or a list of them, all that was printed)."""

    def call(script, *words, token=TOKEN, processes=1, **settings):
        if token:
            settings["HF_TOKEN"] = token
        ended = parent.run([ROOT / script, *words], tmp_path / "printed", processes, folder=tmp_path, **settings)
        for secret in USERS:
            assert secret not in ended.output
        return ended.codes if processes > 1 else ended.codes[0], ended.output

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


@pytest.mark.slow  # its parts are tested below
def test_what_a_run_leaves_behind_is_on_the_hub_and_comes_back(run, words, hub, home, photos_dir, tmp_path):
    for stranger in ("notes.txt", "older/all_results.json", "model-older/model.safetensors", "events/runs/1"):
        (tmp_path / "waves" / stranger).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "waves" / stranger).write_text("mine")
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
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    printed = run_without_the_package_online(
        code + "\nprint(tuple(features.shape))", tmp_path / "elsewhere", **settings
    )
    assert printed == "(1, 17, 32)\n"

    # And for fine-tuning, at this commit though the branch moves; the token comes as a flag.
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
    more = ("--token", TOKEN, "--push_to_hub", "--hub_model_id", "ada/cat-or-dog")
    code, output = run("run_finetune.py", *flags, *more, token=None)
    assert code == 0 and "Fine-tuning ada/waves (beit" in output, output
    assert json.loads((tmp_path / "classifier" / "run.json").read_text())["about"]["start_commit"] == first
    files = hub.repositories["ada/cat-or-dog"].files()
    assert {"model.safetensors", "confusion_matrix.png", "confusion_matrix.json"} <= files.keys()
    assert holds_no_secret(hub, tmp_path / "classifier")
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "ada/waves" and f"at commit {first[:10]}" in card.text
    # Without --model_revision it is the broken one, and without a token it is none.
    flags = [*flags, "--output_dir", tmp_path / "another"]
    code, output = run("run_finetune.py", *flags, "--model_revision", "main")
    assert code == 2 and "config.json" in output and "Traceback" not in output, output
    shutil.rmtree(home)
    code, output = run("run_finetune.py", *flags, token=None)
    assert code == 2 and "ada/waves at revision" in output and "hf auth login" in output, output
    code, output = run("run_finetune.py", *flags, "--model_revision", "0" * 40)
    assert code == 2 and "has no such revision" in output


def test_pictures_of_the_training_images_stay_on_the_disk(run, words, hub, tmp_path):
    """Without images held out, a run that pushes draws none; not even those of an earlier run are pushed."""
    pictures = {"reconstructions.png", "example_1.png", "example_2.png"}
    local = words("--eval_split_name", "none", "--push_to_hub", "false", "--save_strategy", "epoch")
    code, output = run("run_pretrain.py", *local)
    assert code == 0 and pictures <= {path.name for path in (tmp_path / "waves").iterdir()}, output
    assert "Images of the training: original" in (tmp_path / "waves" / "README.md").read_text()
    code, output = run("run_pretrain.py", *words("--eval_split_name", "none"))
    assert code == 0 and "Resuming from" in output, output
    files = hub.repositories["ada/waves"].files()
    assert files.keys() == LEFT_BEHIND - pictures - {"eval_results.json"}
    card = ModelCard(files["README.md"].decode())
    assert card.data.get("widget") is None and not pictures & set(re.findall(r"\w+\.png", str(card)))


@pytest.mark.parametrize(
    "strategy, folder",
    [
        pytest.param("every_save", None, marks=pytest.mark.slow),
        ("checkpoint", "last-checkpoint/"),
        ("end", None),
    ],
)
def test_checkpoints_are_pushed_while_it_trains(strategy, folder, run, words, hub, tmp_path):
    more = ["--save_strategy", "epoch", "--hub_strategy", strategy, "--hub_always_push", "true"]
    code, output = run("run_pretrain.py", *words("--hub_model_id", "ada/named", *more))
    assert code == 0, output
    repository = hub.repositories["ada/named"]
    steps = [message for message in repository.messages if message.startswith("Training in progress")]
    assert len(steps) == {"every_save": 2, "checkpoint": 4, "end": 0}[strategy]
    extra = {path for path in repository.files() if path not in LEFT_BEHIND}
    assert bool(extra) is (folder is not None) and all(path.startswith(str(folder)) for path in extra)
    if folder:
        downloaded = tmp_path / folder
        for path in extra:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(repository.files()[path])
        assert fault_of(downloaded) is None and (downloaded / "optimizer.pt").exists()
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


def test_an_evaluation_has_nothing_to_push(run, hub, encoder_dir, photos_dir):
    flags = ("--model_name_or_path", encoder_dir, "--dataset_name", photos_dir, "--push_to_hub", "--eval_only")
    code, output = run("run_finetune.py", *flags)
    assert code == 2 and "nothing for --push_to_hub" in output and not hub.repositories, output


def test_a_branch_is_made_and_main_stays_as_it_is(run, words, hub):
    repository = hub.repositories["ada/waves"] = Repository()
    before = repository.commit("main", {"README.md": b"---\n---\n"}, "by hand")
    code, output = run("run_pretrain.py", *words("--hub_revision", "next", "--save_strategy", "epoch"))
    assert code == 0, output
    assert repository.branches["main"] == before and LEFT_BEHIND - {".gitattributes"} == repository.files("next").keys()
    code, output = run("run_pretrain.py", *words("--hub_revision", before, "--overwrite_output_dir"))
    assert code == 2 and f"--hub_revision {before} is a commit" in output


def test_what_is_to_be_private_is_not_pushed_to_where_everybody_sees_it(run, words, hub):
    hub.repositories["ada/waves"] = Repository()
    hub.repositories["ada/waves"].commit("main", {}, "initial commit")
    code, output = run("run_pretrain.py", *words("--hub_private_repo", "true"))
    assert code == 2 and "ada/waves is on the Hub already, and public" in output, output


def test_a_hub_that_fails_three_times_gets_everything_in_the_end(run, words, hub):
    hub.faults = [Fault(500, "/api/repos/create", "POST", times=3), Fault(500, "/commit/", "POST", times=3)]
    places = {"preupload": "POST", "info/lfs": "POST", "/blob/": "PUT"}
    hub.faults += [Fault(500, path, method, times=3) for path, method in places.items()]
    hub.faults += [Fault("reset", path, method, times=1) for path, method in places.items()]
    code, output = run("run_pretrain.py", *words("--hub_strategy", "end"))
    assert code == 0, output
    assert hub.repositories["ada/waves"].files().keys() == LEFT_BEHIND
    assert all(fault.hits >= fault.times for fault in hub.faults)


def test_a_commit_whose_answer_is_lost_is_not_made_twice(run, words, hub):
    hub.faults = [Fault("lost", "/commit/", "POST", times=1)]
    code, output = run("run_pretrain.py", *words("--hub_strategy", "end"))
    repository = hub.repositories["ada/waves"]
    assert code == 0 and f"commit/{repository.branches['main']}" in output, output
    assert repository.messages == ["initial commit", "End of training"] and hub.faults[0].hits == 1


def test_of_two_processes_one_pushes_and_says_which_commit_is_loaded(run, words, hub, encoder_dir):
    repository, files = encoder_on(hub, encoder_dir)
    repository.commit("main", files, "all")
    flags = words("--per_device_train_batch_size", "4", "--save_strategy", "epoch")
    codes, output = run("run_pretrain.py", *flags, "--model_name_or_path", "ada/encoder", processes=2)
    assert codes == [0, 0], output
    assert hub.repositories["ada/waves"].files().keys() == LEFT_BEHIND
    asked = [request.path for request in hub.requests]
    assert asked.count("/api/repos/create") == asked.count("/api/models/ada/encoder/revision/main") == 1
    # And where it is refused, both end.
    codes, output = run("run_pretrain.py", *flags, "--overwrite_output_dir", token=READER, processes=2)
    assert codes == [2, 2] and "has no right to write" in output and "Traceback" not in output, output


@pytest.mark.parametrize(
    "kind, path, reason",
    [
        (413, "/commit/", "the Hub answered 413 for ada/waves (status 413)"),
        pytest.param(500, "/commit/", "the Hub answered 500", marks=pytest.mark.slow),
        pytest.param("reset", "/blob/", "the Hub cannot be reached", marks=pytest.mark.slow),
        pytest.param(503, "/blob/", "the Hub answered 503", marks=pytest.mark.slow),
        (400, "validate-yaml", "Invalid metadata in README.md"),
    ],
)
def test_a_model_that_cannot_be_pushed_is_not_lost(kind, path, reason, run, words, hub, tmp_path):
    hub.faults = [Fault(kind, path, "PUT" if path == "/blob/" else "POST")]
    code, output = run("run_pretrain.py", *words("--hub_strategy", "end"))
    assert code == 5 and f"was not pushed: {reason}" in output and "hf upload ada/waves" in output, output
    assert "Traceback" not in output
    files = {path.name for path in (tmp_path / "waves").iterdir()}
    assert LEFT_BEHIND - {".gitattributes"} <= files
    # Nothing of it is there, not half of it; and the command that is named pushes what a run pushes.
    assert hub.repositories["ada/waves"].files().keys() == {".gitattributes"}
    hub.faults = []
    for private in ("predictions.csv", "notes.txt", "older/model.safetensors", "checkpoint-5/model.safetensors"):
        (tmp_path / "waves" / private).parent.mkdir(exist_ok=True)
        (tmp_path / "waves" / private).write_text("mine")
    (tmp_path / "hf.py").write_text("from huggingface_hub.cli.hf import main\nmain()\n")
    _, *command = shlex.split(re.search("`(hf upload .*?)`", output)[1])
    code, output = run(tmp_path / "hf.py", *command)
    assert code == 0 and hub.repositories["ada/waves"].files().keys() == LEFT_BEHIND, output


def test_a_licence_that_the_hub_does_not_know_is_refused_before_the_training(run, words, hub, tmp_path):
    code, output = run("run_pretrain.py", *words("--model_license", "Apache 2.0"))
    assert code == 2 and "--model_license Apache 2.0: the Hub knows no such licence" in output, output
    assert "apache-2.0" in output and "Traceback" not in output
    assert not hub.repositories and not (tmp_path / "waves" / "config.json").exists()
    hub.faults = [Fault(500, "validate-yaml", "POST")]
    code, output = run("run_pretrain.py", *words("--model_license", "mit"))
    assert code == 2 and "--model_license mit: the Hub answered 500" in output, output


def test_a_push_that_fails_in_between_is_a_warning(run, words, hub):
    hub.faults = [Fault(500, "commit", "POST", times=1)]
    code, output = run("run_pretrain.py", *words("--save_strategy", "epoch", "--hub_always_push", "true"))
    assert code == 0 and "checkpoint-5 was not pushed: the Hub answered 500" in output, output
    repository = hub.repositories["ada/waves"]
    assert repository.files().keys() == LEFT_BEHIND and len(repository.messages) == 3


def test_a_stopped_run_pushes_its_checkpoint_and_says_what_failed(run, words, hub):
    stopped = send(signal.SIGTERM, step=2)
    code, output = run("run_pretrain.py", *words(), FAULT=stopped)
    assert code == 75 and "not pushed" not in output, output
    assert hub.repositories["ada/waves"].messages[1:] == ["Training in progress, step 3"]
    hub.faults = [Fault(500, "/commit/", "POST")]
    code, output = run("run_pretrain.py", *words("--overwrite_output_dir"), FAULT=stopped)
    assert code == 75 and "checkpoint-3 was not pushed: the Hub answered 500" in output, output


PUSH = """
from pathlib import Path
from hf_mae_robust.hub.uploads import Pushes
pushes = Pushes("ada/waves", None, None)
pushes.push_checkpoint(Path("out/checkpoint-5"), 5, "checkpoint", always=True)
pushes.push_output(Path("out"), "End of training")
"""


@pytest.mark.parametrize(
    "checkpoint, model",
    [
        (["config.json", "adapter_config.json", "adapter_model.safetensors", "optimizer.pt"], []),
        (["config.json", "model.safetensors", "ema.safetensors", "linear_probe.safetensors"], ["model.safetensors"]),
    ],
    ids=["of an adapter", "of a classifier"],
)
def test_only_what_belongs_to_the_model_is_at_the_root(checkpoint, model, run, hub, tmp_path):
    repository = hub.repositories["ada/waves"] = Repository()
    # As a run with --lora_r once left it.
    former = ["adapter_config.json", "adapter_model.safetensors", "adapter/adapter_config.json", "mine.txt"]
    repository.commit("main", dict.fromkeys(former, b"former"), "former")
    output = ["config.json", "model.safetensors", "adapter/adapter_config.json", "base/model.safetensors"]
    for name in [*output, *(f"checkpoint-5/{name}" for name in checkpoint)]:
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    (tmp_path / "push.py").write_text(PUSH)
    code, printed = run(tmp_path / "push.py")
    assert code == 0, printed
    of_checkpoint = {f"last-checkpoint/{name}" for name in checkpoint}
    assert repository.files().keys() == {"mine.txt", *output, *of_checkpoint}
    assert (repository.messages.count("Training in progress, step 5") == 1) is bool(model)


PUSH_OUTPUT = """
from pathlib import Path
from hf_mae_robust.errors import HubError
from hf_mae_robust.hub.uploads import Pushes
try:
    Pushes("ada/waves", None, None).push_output(Path("out"), "End of training")
except HubError as error:
    print(error)
"""
HOST = "ward-7.clinic.example"


@pytest.mark.parametrize("by_hand", [False, True], ids=["by the run", "by the command"])
def test_a_push_leaves_nothing_of_a_former_model_and_names_no_host(by_hand, run, hub, tmp_path):
    repository = hub.repositories["ada/waves"] = Repository()
    former = [
        "adapter/adapter_config.json",
        "base/model.safetensors",
        "linear_head.safetensors",
        "confusion_matrix.png",
    ]
    former += ["confusion_matrix.json", "target_statistics.safetensors", "example_2.png"]
    if not by_hand:  # patterns of the command would find files of others, too
        former += ["model-00001-of-00002.safetensors", f"runs/Oct01_00-00-00_{HOST}/events.out.tfevents.9.{HOST}.1.0"]
    foreign = ["mine.txt", "older/all_results.json", "older/model.safetensors", "last-checkpoint/example_2.png"]
    repository.commit("main", dict.fromkeys([*former, *foreign], b"former"), "former")
    output = ["config.json", "model.safetensors", "example_1.png"]
    logs = f"runs/Oct04_03-36-40_{HOST}/events.out.tfevents.1759548000.{HOST}.45.0"
    for name in (*output, logs, "runs/notes.txt"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    (tmp_path / "push.py").write_text(PUSH_OUTPUT)
    hub.faults = [Fault(413, "/commit/", "POST")] if by_hand else []
    code, printed = run(tmp_path / "push.py")
    assert code == 0, printed
    if by_hand:
        assert "This pushes it later, without TensorBoard's logs" in printed
        hub.faults = []
        (tmp_path / "hf.py").write_text("from huggingface_hub.cli.hf import main\nmain()\n")
        _, *command = shlex.split(re.search("`(hf upload .*?)`", printed)[1])
        code, printed = run(tmp_path / "hf.py", *command)
        assert code == 0, printed
    pushed = set() if by_hand else {"runs/Oct04_03-36-40/events.out.tfevents.1759548000.45.0"}
    assert repository.files().keys() == {*foreign, *output, *pushed}


def test_a_pushed_classifier_that_lora_trained_is_the_one_of_the_output_folder(
    run, hub, encoder_dir, photos_dir, tmp_path
):
    pytest.importorskip("peft")
    settings = finetuning_settings(photos_dir, encoder_dir, tmp_path / "waves") | {"base_learning_rate": 0.5}
    more = ("--lora_r", 2, "--save_strategy", "epoch", "--hub_always_push", "true", "--push_to_hub")
    code, output = run("run_finetune.py", *as_flags(settings, *more))
    assert code == 0, output
    files = hub.repositories["ada/waves"].files()
    for name, content in files.items():
        (tmp_path / "downloaded" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "downloaded" / name).write_bytes(content)
    assert not [name for name in files if name.startswith("adapter_")] and "adapter/adapter_config.json" in files
    pixel_values = torch.randn(2, 3, 16, 16)
    loaded = [AutoModelForImageClassification.from_pretrained(tmp_path / name) for name in ("waves", "downloaded")]
    with torch.no_grad():
        expected, found = (model(pixel_values).logits for model in loaded)
    assert torch.equal(found, expected)


LOAD = """
import sys
from hf_mae_robust.hub.models import local_model
try:
    print(local_model("ada/encoder", None, None))
except ValueError as error:
    sys.exit(f"ValueError: {error}")
"""


def encoder_on(hub, encoder_dir):
    repository = hub.repositories["ada/encoder"] = Repository()
    return repository, {path.name: path.read_bytes() for path in encoder_dir.iterdir()}


def test_faults_of_a_download_leave_nothing_half_written(run, hub, home, encoder_dir, tmp_path):
    repository, files = encoder_on(hub, encoder_dir)
    sha = repository.commit("main", files, "all")
    (tmp_path / "load.py").write_text(LOAD)
    for kind in (500, "reset", "truncated"):
        hub.faults = [Fault(kind, "/stored/")]
        code, output = run(tmp_path / "load.py", token=None)
        assert code == 1 and "ValueError: ada/encoder cannot be loaded: the Hub " in output, output
        assert not list(home.rglob("model.safetensors"))
    hub.faults = [Fault(403, "/resolve/", "HEAD")]
    code, output = run(tmp_path / "load.py", token=None)
    assert code == 1 and "ada/encoder is gated: accept its terms" in output, output
    for kind in (500, "reset", "truncated"):
        shutil.rmtree(home, ignore_errors=True)
        hub.faults = [Fault(kind, "/stored/", times=3)]
        code, output = run(tmp_path / "load.py", token=None)
        assert code == 0 and f"{sha}', '{sha}'" in output, output
        (snapshot,) = home.rglob("model.safetensors")
        assert snapshot.read_bytes() == files["model.safetensors"]


def test_weights_of_checkpoints_and_adapters_are_not_downloaded(run, hub, home, encoder_dir, tmp_path):
    repository, files = encoder_on(hub, encoder_dir)
    unread = ("last-checkpoint/", "checkpoint-5/", "base/", "adapter/", "fp16/")
    nested = {f"{folder}{name}": data for folder in unread for name, data in files.items()}
    repository.commit("main", files | nested | {"image_processor/preprocessor_config.json": b"{}"}, "all")
    (tmp_path / "load.py").write_text(LOAD)
    code, output = run(tmp_path / "load.py", token=None)
    assert code == 0, output
    (snapshot,) = home.rglob("snapshots/*")
    found = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
    assert "image_processor/preprocessor_config.json" in found and set(files) <= found
    assert not [name for name in found if name.endswith(".safetensors") and "/" in name]
    assert not [name for name in found if name.startswith(unread[:4])]


def test_weights_that_are_cut_off_on_the_hub_are_refused(run, words, hub, encoder_dir):
    repository, files = encoder_on(hub, encoder_dir)
    repository.commit("main", {**files, "model.safetensors": files["model.safetensors"][:-1000]}, "cut off")
    for script in ("run_pretrain.py", "run_finetune.py"):
        flags = words("--model_name_or_path", "ada/encoder", "--push_to_hub", "false")
        if script == "run_finetune.py":
            drop = ("--config_overrides", "--target_normalization", "--target_statistics")
            flags = [word for k in range(0, len(flags), 2) if flags[k] not in drop for word in flags[k : k + 2]]
        code, output = run(script, *flags)
        assert code == 2 and "its weights are missing or damaged" in output, output
        assert "ada--encoder" in output and "Traceback" not in output


@pytest.mark.parametrize("command", [("export", "--to", "beit"), ("convert",), ("analyze", "knn")], ids=" ".join)
def test_the_other_commands_take_a_private_model_at_a_commit(command, run, hub, encoder_dir, photos_dir, tmp_path):
    repository, files = encoder_on(hub, encoder_dir)
    repository.private, sha = True, repository.commit("main", files, "all")
    repository.commit("main", {"config.json": b"{}"}, "somebody breaks it")
    (tmp_path / "command.py").write_text("from hf_mae_robust.__main__ import main\nmain()\n")
    name, *more = command
    flags = [name, "ada/encoder", tmp_path / "out", *more, "--revision", sha]
    if name == "analyze":
        flags = [*command, "ada/encoder", "--model_revision", sha, "--dataset_name", photos_dir, "--num_workers", "0"]
    code, output = run(tmp_path / "command.py", *flags, token=None)
    assert code == 2 and "ada/encoder at revision" in output and "hf auth login" in output, output
    code, output = run(tmp_path / "command.py", *flags, "--token", READER, token=None)
    assert code == 0, output
    assert name == "analyze" or (tmp_path / "out" / "model.safetensors").read_bytes()


def test_a_hub_that_is_away_is_said_so(run, words, hub):
    hub.faults = [Fault("reset", "", method) for method in ("GET", "POST", "HEAD")]
    code, output = run("run_pretrain.py", *words())
    assert code == 2 and "cannot be reached" in output and "Traceback" not in output, output
