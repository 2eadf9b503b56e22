"""The distribution: a wheel with one top-level name and the recipes in it, an sdist with the tests, one version, one owner of the repository."""

import configparser
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

import igpt_jax
from experiments.report import owner
from igpt_jax import cli

ROOT = pathlib.Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def run_python(*words, cwd, **environment):
    """Run Python without what the tests have on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=500)


def test_every_package_is_in_setup_cfg():
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "igpt_jax").rglob("__init__.py")}
    assert set(SETUP["options"]["packages"].split()) == folders | {"igpt_jax.recipes"}


def test_an_extra_has_no_underscore():
    """setuptools writes it with a hyphen, and pip before 23.3, which Python 3.11 brings, then installs nothing for a name with an underscore."""
    assert all(re.fullmatch("[a-z]+(-[a-z]+)*", name) for name in SETUP["options.extras_require"])


def test_the_version_stands_once():
    assert SETUP["metadata"]["version"] == "attr: igpt_jax.__version__"
    assert re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == igpt_jax.__version__
    assert re.search(r"^## \[?(\d\S*?)\]?(?: |$)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1] == igpt_jax.__version__


def test_every_address_of_the_repository_has_its_owner():
    files = [path for path in owner.files() if "igpt_jax" in path.read_text()]
    assert {"README.md", "CONTRIBUTING.md", "CITATION.cff", "CHANGELOG.md"} <= {path.name for path in files}
    assert not [path for path in files if owner.with_owner(path.read_text(), owner.owner()) != path.read_text()], "run python -m experiments.report.owner"


def test_another_owner_is_written_everywhere(tmp_path, monkeypatch):
    address = "https://github.com/{}/igpt_jax"
    badge = "(https://colab.research.google.com/github/{}/igpt_jax/blob/main/notebooks/a.ipynb)"
    texts = {"README.md": f"{badge} and github.com/openai/image-gpt", "notebooks/a.ipynb": f'"{address}"', "CITATION.cff": f"url: {address}\n"}
    (tmp_path / "setup.cfg").write_text(f"[metadata]\nurl = {address.format('new-owner')}\n")
    (tmp_path / "notebooks").mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text.format("OWNER"))
    monkeypatch.setattr(owner, "ROOT", tmp_path)
    owner.main()
    assert {name: (tmp_path / name).read_text() for name in texts} == {name: text.format("new-owner") for name, text in texts.items()}


def test_actions_are_pinned_by_commit_and_run_the_pythons_that_setup_cfg_names():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    actions = re.findall(r"uses: (.*)", workflow)
    assert actions and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action) for action in actions)
    pythons = re.findall(r"Python :: (3\.\d+)", SETUP["metadata"]["classifiers"])
    assert re.findall(r"python: (\[.*\])", workflow) == [str(pythons).replace("'", '"')] * 2


def test_importing_the_package_imports_no_library():
    done = run_python("-c", "import sys, igpt_jax; print([name for name in ('jax', 'numpy', 'flax', 'igpt_jax.training') if name in sys.modules])", cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


def test_a_missing_jax_is_one_line():
    program = "import importlib.util as u, runpy; f = u.find_spec; u.find_spec = lambda name, *a: None if name == 'jax' else f(name, *a); "
    done = run_python("-c", program + "runpy._run_module_as_main('igpt_jax.train')", cwd=ROOT)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "igpt_jax needs jax: pip install igpt_jax" in done.stderr and ".venv/bin/activate" in done.stderr


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory with a folder configs/ of a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "configs", sys.modules.get("configs"))  # restored afterwards
    if sys.modules["configs"] is None:
        del sys.modules["configs"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.py").write_text("mine = True\n")
    return tmp_path


@pytest.mark.parametrize("words", [["--config=NAME"], ["-config=NAME"], ["--config", "NAME"]])
def test_a_bare_name_is_the_own_recipe_or_the_installed_one(elsewhere, words):
    def file_of(name):
        return cli.with_recipe_file(["program", *(word.replace("NAME", name) for word in words), "--workdir=xl"])

    def line(name):
        return ["program", *(word.replace("NAME", name) for word in words), "--workdir=xl"]

    assert file_of("digits") == line("configs/digits.py")
    assert file_of("xl") == line(str(cli.RECIPES / "xl.py"))
    assert file_of("xl:argument") == line(f"{cli.RECIPES / 'xl.py'}:argument")
    assert file_of("configs/digits.py") == line("configs/digits.py")


def test_a_recipe_that_does_not_exist_is_named_with_those_that_do(elsewhere):
    for name in ("digit", "configs/digit.py", "digit.py"):
        with pytest.raises(ValueError, match=f"no recipe '{name}' .did you mean digits.*: give a file, or one of base, cifar10, .*, digits, .*, xl$"):
            cli.with_recipe_file(["program", f"--config={name}"])
    (elsewhere / "configs" / "own.py").touch()
    assert "own" in cli.recipe_names() and "__init__" not in cli.recipe_names()


def test_old_keys_on_the_command_line_are_read(tmp_path):
    words = ("--config=digits", f"--workdir={tmp_path}", "--config.accumulate=3", "--config.optim.spike", "2", "--config.skips=4", "--config.steps=-1")
    program = "from igpt_jax import cli; cli.run_recipe(lambda c, _: print(c.gradient_accumulation_steps, c.optim.loss_spike_factor, c.max_consecutive_skips))"
    done = run_python("-c", program, *words, cwd=ROOT)
    assert done.stdout == "3 2.0 4\n", done.stderr


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """The sdist and the wheel, built from a copy of the files so that the checkout gets no build folder."""
    pytest.importorskip("build", reason="needs the extra `test`")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    names = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if names.returncode:
        pytest.skip("needs a git checkout")
    for name in filter(None, names.stdout.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    built = run_python("-m", "build", "--no-isolation", "--outdir", out, source, cwd=out)
    assert built.returncode == 0, built.stderr
    return next(out.glob("*.tar.gz")), next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_sdist_holds_what_the_tests_need(distribution):
    with tarfile.open(distribution[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"setup.cfg", "Makefile", "README.md", "CHANGELOG.md", ".ci/run", "configs/xl.py", "experiments/bench/train.py", "tests/conftest.py"} <= names
    assert {"igpt_jax/models/cifar10-16.safetensors", "igpt_jax/models/cifar10-16.md"} <= names
    assert not [name for name in names if "__pycache__" in name or "node_modules" in name]


@pytest.mark.slow
def test_the_wheel_has_one_top_level_name_and_finds_its_recipes(distribution, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(distribution[1]) as archive:
        archive.extractall(site)
    assert {path.name for path in site.iterdir()} == {"igpt_jax", f"igpt_jax-{igpt_jax.__version__}.dist-info"}
    packaged = {path.name for path in (site / "igpt_jax" / "recipes").glob("*.py")}
    assert packaged == {path.name for path in (ROOT / "configs").glob("*.py")} and (site / "igpt_jax" / "py.typed").exists()
    models = {path.name: path.read_bytes() for path in (ROOT / "igpt_jax" / "models").iterdir()}
    assert {path.name: path.read_bytes() for path in (site / "igpt_jax" / "models").iterdir()} == models and "cifar10-16.safetensors" in models

    path = {"PYTHONPATH": str(site)}
    program = f"import igpt_jax; assert igpt_jax.__file__.startswith({str(site)!r}); "
    program += "from igpt_jax import cli; cli.run_recipe(lambda c, _: print(c.data.source, c.steps), lambda flags: {})"
    recipe = ["from configs import digits", "def get_config():", "    config = digits.get_config()", "    config.steps = 9", "    return config"]
    (empty / "mine.py").write_text("\n".join(recipe))
    for recipe, printed in (("digits", "digits 400"), ("mine.py", "digits 9")):
        done = run_python("-c", program, f"--config={recipe}", "--workdir=w", cwd=empty, **path)
        assert done.stdout.strip() == printed, done.stderr
    for folder in sorted(site.rglob("*"), reverse=True):
        folder.chmod(0o555 if folder.is_dir() else 0o444)  # as where another user installed it
    done = run_python("-m", "igpt_jax.sample", "--checkpoint=cifar10-16", "--photographs", "--completions=1", cwd=empty, **path)
    assert done.stdout.startswith("wrote completions.png, 504 x 626 pixels\nnext: python -m igpt_jax.demo "), done.stderr
    assert (empty / "completions.png").exists()
    for folder in site.rglob("*"):
        folder.chmod(0o755)
    refused = run_python("-m", "igpt_jax.train", "--config=nothing", "--workdir=w", cwd=empty, **path)
    assert refused.returncode == 1 and refused.stderr.startswith("error: there is no recipe 'nothing': give a file, or one of base, ")
