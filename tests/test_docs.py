"""What the README and the recipes tell people to type exists and parses; every number of ours has a file."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTED = {"README.md": README} | {f"configs/{path.name}": path.read_text() for path in sorted((ROOT / "configs").glob("*.py"))}
COMMANDS = sorted({(name, found.strip()) for name, text in DOCUMENTED.items() for found in re.findall(r"python -m [\w.]+(?: [^`\n#|,]*)?", text)})


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_commands_name_modules_recipes_and_flags_that_exist(where, command):
    words = shlex.split(command)
    module = words[2]
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists(), f"{where}: {module}"
    source = path.read_text() + (ROOT / "igpt_jax/cli.py").read_text()
    for word in words[3:]:
        flag, _, value = word.removeprefix("--").partition("=")
        if flag.startswith("config."):
            recipe = importlib.import_module("configs.base").get_config()
            for part in flag.split(".")[1:]:
                recipe = recipe[part]
        elif word.startswith("--"):
            assert f'"--{flag}"' in source or f'"{flag}"' in source, f"{where}: {command} has no flag --{flag}"
        if flag == "config":
            assert (ROOT / value).exists(), f"{where}: {value}"


@pytest.mark.parametrize("target", re.findall(r"`?make (\w+)", README))
def test_make_targets_exist(target):
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("program", ["quantize", "train", "finetune", "evaluate", "sample", "features", "probe", "convert", "demo"])
def test_programs_explain_themselves(program):
    shown = subprocess.run([sys.executable, "-m", f"igpt_jax.{program}", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert f"igpt_jax.{program}" in shown.stdout and "--" in shown.stdout


def test_sizes_in_the_readme_are_those_of_the_recipes():
    from tests.test_configs import COUNTS, count, recipe

    for name in ("s", "m", "l", "xl"):
        config = recipe(name)
        config.data.image_size = 32
        assert f"{count(config):,}" in README
    assert f"{COUNTS['xl']:,}" in README


def test_results_in_the_readme_come_from_files():
    """Each row of the results table names its file; each number in the row's own column stands in it, as text or rounded."""
    import json

    block = README.split("<!-- results:begin -->")[1].split("<!-- results:end -->")[0]
    lines = [line for line in block.strip().splitlines() if line.startswith("|")][2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert rows
    for what, _, ours, _, source in rows:
        if ours == "not run here":
            continue
        path = re.search(r"\(([^)]+)\)", source).group(1)
        numbers = list(_numbers(json.loads((ROOT / path).read_text())))
        for text in re.findall(r"\d[\d,]*\.?\d*", ours):
            digits = len(text.partition(".")[2])
            value = float(text.replace(",", ""))
            scales = (1, 100)  # a share may be written in percent
            assert any(round(number * scale, digits) == value for number in numbers for scale in scales), f"{what}: {text} is not in {path}"


def _numbers(tree):
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from _numbers(value)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield tree
