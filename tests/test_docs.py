"""What the README and the recipes tell people to type exists and parses; every number of ours has a file."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from docs import generate
from igpt_jax.cli import recipe_names

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTED = {"README.md": README} | {f"configs/{path.name}": path.read_text() for path in sorted((ROOT / "configs").glob("*.py"))}
DOCUMENTED |= {f"docs/{page}": (ROOT / "docs" / page).read_text() for page in sorted(generate.pages())}
DOCUMENTED |= {f"igpt_jax/models/{path.name}": path.read_text() for path in sorted((ROOT / "igpt_jax/models").glob("*.md"))}
COMMANDS = sorted({(name, found.strip()) for name, text in DOCUMENTED.items() for found in re.findall(r"python -m (?!pip\b)[\w.]+(?: [^`\n#|,]*)?", text)})


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def flags_of(path):
    """The flags that a program or a module defines, by absl or argparse; a word like it elsewhere in the file is none."""
    return set(re.findall(r"""(?:DEFINE_\w+|add_argument)\(\s*f?["'](?:--)?([\w-]+)["']""", path.read_text()))


@pytest.mark.parametrize(("where", "command"), COMMANDS)
def test_commands_name_modules_recipes_and_flags_that_exist(where, command):
    words = shlex.split(command)
    module = words[2]
    path = ROOT / (module.replace(".", "/") + ".py")
    assert path.exists(), f"{where}: {module}"
    known = flags_of(path) | flags_of(ROOT / "igpt_jax/cli.py")
    if module.startswith("experiments."):  # where sweeps and benchmarks have the flags that all of them take
        shared = ("studies/sweep", "studies/stages", "studies/draws", "bench/rounds", "bench/models")
        known |= set().union(*(flags_of(ROOT / f"experiments/{name}.py") for name in shared))
    for word in words[3:]:
        flag, _, value = word.removeprefix("--").partition("=")
        if flag.startswith("config."):
            recipe = importlib.import_module("configs.base").get_config()
            for part in flag.split(".")[1:]:
                recipe = recipe[part]
        elif word.startswith("--"):
            assert flag in known, f"{where}: {command} has no flag --{flag}"
        if flag == "config" and value not in ("RECIPE", *recipe_names()):
            assert (ROOT / value).exists() or value == "my.py", f"{where}: {value}"


@pytest.mark.parametrize("target", sorted(set(re.findall(r"(?:^|`|    )make (\w+)", "\n".join(DOCUMENTED.values()), re.M))))
def test_make_targets_exist(target):
    assert subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize("program", ["quantize", "train", "finetune", "evaluate", "sample", "features", "probe", "convert", "report", "demo"])
def test_programs_explain_themselves(program):
    shown = subprocess.run([sys.executable, "-m", f"igpt_jax.{program}", "--help"], cwd=ROOT, capture_output=True, text=True)
    known = {flag for flag in flags_of(ROOT / f"igpt_jax/{program}.py") if f'"--{flag}"' in (ROOT / f"igpt_jax/{program}.py").read_text()}
    known |= {"config", "workdir"} if program in ("quantize", "train", "finetune") else set()
    assert f"igpt_jax.{program}" in shown.stdout and "Traceback" not in shown.stderr
    assert known or program == "convert"  # whose commands have the flags
    assert program == "convert" or not [flag for flag in known if f"--{flag}" not in shown.stdout]


def test_sizes_in_the_guide_are_those_of_the_recipes():
    from tests.test_configs import COUNTS, count, recipe

    for name in ("s", "m", "l", "xl"):
        config = recipe(name)
        config.data.image_size = 32
        assert f"{count(config):,}" in DOCUMENTED["docs/guides/pretraining.md"]
    assert f"{COUNTS['xl']:,}" in DOCUMENTED["docs/guides/pretraining.md"]
