"""README and recipes give the paper's figures as paper.py has them."""

import re
from pathlib import Path

import pytest

from hf_mae_robust.paper import FIGURES, PAPER_RESULTS
from hf_mae_robust.recipes import recipe_path
from hf_mae_robust.studies.definitions import STUDIES, studies

ROOT = Path(__file__).parents[1]
# README, and the pages of the manual.
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What no setting looks like: percent with one or two decimals, from 40 to 90.
FIGURE = re.compile(r"(?<![\w.])[4-8]\d\.\d{1,2}(?!\w|\.\d)")
# Others' figures that the documents name as such.
OTHERS = {"upernet_vit_base": {"48.1"}}


def figures_of(recipe: str) -> list[str]:
    return [value for _, value in PAPER_RESULTS[recipe].figures]


def agrees(printed: str, figures: list[str]) -> bool:
    """Whether it is one of them, to as many decimals as are printed."""
    decimals = len(printed.partition(".")[2])
    return printed in {f"{float(figure):.{decimals}f}" for figure in figures}


@pytest.mark.parametrize("recipe", sorted(PAPER_RESULTS))
def test_the_comment_of_a_recipe_gives_its_figures(recipe):
    comment = " ".join(line for line in recipe_path(recipe).read_text().splitlines() if line.startswith("#"))
    found = set(FIGURE.findall(comment)) - OTHERS.get(recipe, set())
    assert found and all(agrees(figure, figures_of(recipe)) for figure in found)


def test_the_tables_of_the_documents_give_the_figures_of_their_recipes():
    told = {}
    for line in "\n".join(path.read_text(encoding="utf-8") for path in DOCUMENTS).splitlines():
        recipes = [name for name in re.findall(r"`(\w+)`", line) if name in PAPER_RESULTS]
        if line.startswith("| `") and recipes and (found := FIGURE.findall(line)):
            told |= dict.fromkeys(recipes, found)
            assert all(agrees(figure, sum(map(figures_of, recipes), [])) for figure in found), line
            assert all(any(agrees(figure, figures_of(recipe)) for figure in found) for recipe in recipes), line
    pretraining = {name for name in PAPER_RESULTS if not name.startswith("finetune_")}
    assert told.keys() >= pretraining


@pytest.mark.parametrize("name", sorted(studies(12)))
def test_studies_show_a_figure_for_each_metric_of_their_own_variants(name):
    study = studies(12)[name]
    assert name in STUDIES
    if not study.paper:
        assert not name.startswith("table")
        return
    assert study.paper is FIGURES[f"Table {name.removeprefix('table')}"]["ViT-B"]
    assert all(len(figures) == len(study.metrics) for figures in study.paper.values())
    assert "mae" in study.paper and study.paper.keys() - {"mae_1600"} <= {variant.name for variant in study.variants}
