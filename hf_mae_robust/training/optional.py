"""Packages that only a flag needs: whether they are installed is found out before anything else."""

from importlib.util import find_spec

from transformers.integrations import integration_utils

from ..errors import UserError

# Name for --report_to -> the function that tells whether its package is installed, and the package for pip, where it
# has another name.
_CHECKS = {"azure_ml": ("is_azureml_available", "azureml-core"), "flyte": ("is_flytekit_available", "flytekit")}
_PACKAGES = {"comet_ml": "comet-ml"}
_NO_CHECK = ("kubeflow",)  # needs none


def check_package(flag: str, package: str) -> None:
    """Raises UserError where the package that a flag needs is not installed."""
    if find_spec(package) is None:
        raise UserError(f"{flag} needs the package {package}: pip install {package}.")


def check_reports(report_to: str | list[str] | None) -> None:
    """Raises UserError where --report_to names something that transformers cannot report to, or a package that is not
    installed."""
    known = list(integration_utils.INTEGRATION_TO_CALLBACK)
    for name in [report_to] if isinstance(report_to, str) else report_to or []:
        if name in ("none", "all", *_NO_CHECK):
            continue
        if name not in known:
            raise UserError(f"--report_to {name}: one of none, all, {', '.join(known)}.")
        default = (f"is_{name.removesuffix('_ml')}_available", _PACKAGES.get(name, name))
        function, package = _CHECKS.get(name, default)
        is_available = getattr(integration_utils, function, None)
        if is_available is not None and not is_available():
            raise UserError(f"--report_to {name} needs the package {package}: pip install {package}.")
