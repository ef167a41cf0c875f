"""What pyproject.toml, the citation, the workflow and the templates for issues say is so."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from hf_mae_robust import __version__

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text()
REQUIREMENTS = {
    requirement.name: requirement
    for requirement in map(
        Requirement, re.findall(r'"([\w.-]+(?:\[\w+\])?>=[^"]*)"', PROJECT.split("dependencies = [")[1])
    )
}


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [
        ("datasets", "5.0.0", "resumed streams lose their place or their shards (huggingface/datasets #8308, #8669)"),
        ("datasets", "5.0.1", "resumed streams lose their place or their shards (huggingface/datasets #8308, #8669)"),
        ("torch", "2.6.0", "the compiled training step fails: `view` of what indexing gives"),
        ("torch", "2.7.1", "transformers 5.20 cannot be imported with it"),
        ("transformers", "5.22.0", "TrainingArguments has no activation_checkpointing_kwargs"),
        ("pytest-xdist", "3.7.0", "it does not know --no-loadscope-reorder"),
    ],
)
def test_versions_that_do_not_work_are_excluded(name, version, reason):
    assert not REQUIREMENTS[name].specifier.contains(version), reason


@pytest.mark.parametrize("name", ["datasets", "torch", "transformers", "accelerate"])
def test_the_versions_that_this_runs_with_are_allowed(name):
    module = __import__(name)
    assert REQUIREMENTS[name].specifier.contains(module.__version__.split("+")[0], prereleases=True)


def test_every_requirement_has_a_lower_bound_that_ci_can_install():
    """.ci/lowest installs these; without one, it would install a version of ten years ago."""
    assert len(REQUIREMENTS) > 25
    assert all(any(part.operator == ">=" for part in each.specifier) for each in REQUIREMENTS.values())


def test_the_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == __version__ and citation["cff-version"] == "1.2.0"
    assert [reference["title"].split()[0] for reference in citation["references"]] == ["A", "Masked"]


def test_the_lowest_python_is_the_same_everywhere():
    """transformers 5.23, the lowest one, needs Python 3.11."""
    lowest, highest = (re.findall(r"Python :: (3\.\d+)", PROJECT)[place] for place in (0, -1))
    assert tomllib.loads(PROJECT)["project"]["requires-python"] == f">={lowest}" and lowest == "3.11"
    assert f'target-version = "py{lowest.replace(".", "")}"' in PROJECT
    for name in ("README.md", "docs/quickstart.md"):
        assert f"Python {lowest} or newer" in (ROOT / name).read_text(), name
    assert f"{lowest} to {highest}" in (ROOT / "docs" / "images" / "python.svg").read_text()


def test_the_workflow_runs_both_scripts_on_all_versions_of_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    supported = re.findall(r"Programming Language :: Python :: (3\.\d+)", PROJECT)
    assert jobs["tests"]["strategy"]["matrix"]["python"] == supported
    runs = {job: [step["run"] for step in jobs[job]["steps"] if "run" in step] for job in jobs}
    assert runs == {"tests": ["bash .ci/run"], "lowest": ["bash .ci/lowest"]}
    assert all((ROOT / ".ci" / name).stat().st_mode & 0o111 for name in ("run", "lowest"))


@pytest.mark.parametrize("name", ["bug", "question", "figures"])
def test_templates_ask_for_what_a_run_wrote_down(name):
    template = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text())
    fields = [field["id"] for field in template["body"] if "id" in field]
    assert "run" in fields and len(fields) == len(set(fields))
    assert any("run.json" in field["attributes"].get("label", "") for field in template["body"])
