"""python -m hf_mae_robust demo: a checkpoint tried out in the browser, here or as a Space on the Hub."""

import argparse
import importlib.util
import shutil
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import torch
import yaml
from packaging.requirements import Requirement

from ..errors import UserError
from ..files import check_is_free, written_whole
from ..hub.models import local_model
from ..hub.run_record import read_record
from .inspector import Inspector, load_inspector

PACKAGE = Path(__file__).parents[1]
APP = '''"""The demo of {title}. Run it with `python app.py`."""

from pathlib import Path

from hf_mae_robust.demo.app import build_app, launch
from hf_mae_robust.demo.inspector import load_inspector

HERE = Path(__file__).parent
app = build_app(load_inspector({source}), {title!r})

if __name__ == "__main__":
    launch(app)
'''
PAGE = """
# {title}

Upload an image, mask patches of it by clicking, and see what the model makes of it. Written by
`python -m hf_mae_robust demo --space`; upload it with `hf upload NAME/OF-SPACE . --repo-type space`, or run it with
`pip install -r requirements.txt && python app.py`.

- `app.py`: loads {model} and starts the page.
- `hf_mae_robust/`: the code, version {version} (Apache-2.0).
"""


def requirements(*extras: str) -> list[str]:
    """Of this package with these extras, as pip reads them. Raises ValueError where it is not installed."""
    try:
        required = [Requirement(line) for line in distribution("hf_mae_robust").requires or ()]
    except PackageNotFoundError as error:
        raise UserError(
            "--space writes the requirements of hf_mae_robust, which are known where it is installed: pip install "
            '".[demo]", in a clone of it.'
        ) from error
    chosen = [{"extra": extra} for extra in extras]
    needed = [part for part in required if part.marker is None or any(map(part.marker.evaluate, chosen))]
    return sorted(f"{part.name}{part.specifier}" for part in needed)


def licence_of(source: str) -> str | None:
    """Of the weights, as the run that trained them says; None where nobody has given one, or there was no such run."""
    try:
        return read_record(Path(source))["about"]["license"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_space(
    folder: str | Path,
    inspector: Inspector,
    title: str,
    hub_id: str | None,
    revision: str | None,
    model_license: str | None = None,
) -> None:
    """A folder that is a Space of the Hub with the SDK gradio: `app.py`, `requirements.txt`, a `README.md` with the
    settings in its front matter, and this package, because a Space has no other way to it. A model of the Hub is
    loaded from there, at one commit; any other goes along, with its image processor, in `checkpoint/`.

    Args:
        hub_id, revision: of the model; None where it is not a model on the Hub.
        model_license: of the weights, which becomes the Space's; None: it names none.

    The folder appears when it is complete. Raises FileExistsError where it is not empty, ValueError where this package
    is not installed.
    """
    needed = requirements("demo", *(["bands"] if inspector.is_of_bands else []))
    settings = {
        "title": title.rpartition("/")[2],
        "emoji": "🧩",
        "colorFrom": "gray",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        # A string, because 3.10 is a number to YAML. The Hub's own choice may be older than what the packages need.
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        **({"license": model_license} if model_license else {}),
        **({"models": [hub_id]} if hub_id else {}),
    }
    with written_whole(folder) as path:
        ignored = shutil.ignore_patterns("__pycache__", "*.py[cod]")
        shutil.copytree(PACKAGE, path / PACKAGE.name, ignore=ignored)
        if hub_id is None:
            inspector.model.save_pretrained(path / "checkpoint")
            inspector.processor.save_pretrained(path / "checkpoint")
        source = 'str(HERE / "checkpoint")' if hub_id is None else f"{hub_id!r}, revision={revision!r}"
        model = "the model in `checkpoint/`" if hub_id is None else f"`{hub_id}` from the Hub"
        front = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        page = PAGE.format(title=title, model=model, version=_version())
        (path / "app.py").write_text(APP.format(title=title, source=source), encoding="utf-8")
        (path / "README.md").write_text(f"---\n{front}---\n{page}", encoding="utf-8")
        (path / "requirements.txt").write_text("".join(f"{line}\n" for line in needed), encoding="utf-8")


def _version() -> str:
    return version("hf_mae_robust")


def device_of(name: str | None) -> torch.device:
    """Without a name the accelerator, where there is one. Raises ValueError for a device that torch does not have."""
    if name is None:
        # Without the question, a PyTorch that was built for a GPU names it where there is none.
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device("cpu") if found is None else found
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"--device {name}: torch has no such device here ({reason}).") from error


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `python -m hf_mae_robust demo`."""
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        help="folder, Hub id or official file of a pre-training model, an encoder or a classifier (no attentive probe)",
    )
    parser.add_argument("--space", type=Path, metavar="DIR", help="write a Space for the Hub to DIR, and start nothing")
    model = parser.add_argument_group("model")
    model.add_argument("--revision", help="branch, tag or commit of a model on the Hub (main)")
    model.add_argument("--token", help="Hub token; default: that of `hf auth login` or HF_TOKEN")
    model.add_argument("--device", help="such as cpu, cuda:1 or mps; default: the accelerator, where there is one")
    model.add_argument("--num_attention_heads", type=int, help="of an official file; ViT-B 12, ViT-L and ViT-H 16")
    model.add_argument("--decoder_num_attention_heads", type=int, help="of an official file with a decoder; MAE: 16")
    server = parser.add_argument_group("server (as in gradio)")
    server.add_argument("--share", action="store_true", help="a public link, through gradio's servers")
    server.add_argument("--server_name", help="address to listen at; 0.0.0.0 for all (127.0.0.1)")
    server.add_argument("--server_port", type=int, help="default: the first free one from 7860")


def run_demo(args: argparse.Namespace) -> None:
    """Try a checkpoint out in the browser: reconstructions of masks drawn by clicking, attention, features, classes."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError('demo needs gradio: pip install ".[demo]", in a clone of hf_mae_robust.')
    if args.revision is not None and Path(args.checkpoint).exists():
        raise UserError(f"--revision {args.revision}: {args.checkpoint} is not a model on the Hub.")
    if args.space is not None:
        check_is_free(args.space)
    device = device_of(args.device)
    source, commit = local_model(args.checkpoint, args.revision, args.token)
    inspector = load_inspector(
        source,
        token=args.token,
        device=device,
        num_attention_heads=args.num_attention_heads,
        decoder_num_attention_heads=args.decoder_num_attention_heads,
    )
    title = args.checkpoint if commit else Path(args.checkpoint).resolve().name
    if args.space is not None:
        hub_id = args.checkpoint if commit else None
        write_space(args.space, inspector, title, hub_id, commit, licence_of(source))
        print(f"{args.space}: a Space; `hf upload NAME/OF-SPACE {args.space} --repo-type space` puts it on the Hub.")
        return
    from .app import build_app, launch  # gradio is optional

    try:
        settings = {"share": args.share, "server_name": args.server_name, "server_port": args.server_port}
        launch(build_app(inspector, title), **settings)
    except OSError as error:
        raise UserError(f"The page cannot be served: {error}") from error
