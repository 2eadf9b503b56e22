"""Pages of the documentation that are written from the code: programs from their --help, recipe keys from configs/base.py, modules, notebooks."""

import ast
import importlib
import inspect
import os
import pathlib
import pkgutil
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
DOCS = pathlib.Path(__file__).parent
GENERATED = ("reference/programs", "reference/recipe", "reference/api", "tutorials/notebooks")  # folders that are not part of the repository
PROGRAMS = ("quantize", "train", "finetune", "evaluate", "sample", "features", "probe", "convert", "aot", "report", "demo")


def pages() -> list[str]:
    """The pages that are written by hand, relative to docs/."""
    found = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    return [page for page in found if not page.startswith((*GENERATED, "_build"))]


def write(app=None) -> None:
    """Write all generated pages; ValueError if a public symbol has no docstring."""
    if lacking := undocumented():
        raise ValueError(f"{len(lacking)} public symbols have no docstring: {', '.join(lacking)}")
    _fill(DOCS / "reference/programs", {f"{name}.md": program_page(name) for name in PROGRAMS})
    _fill(DOCS / "reference/recipe", {"keys.md": recipe_page(), "recipes.md": recipes_page()})
    _fill(DOCS / "reference/api", {f"{package}.md": package_page(package) for package in packages()})
    _fill(DOCS / "tutorials/notebooks", {path.name: notebook(path) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))})


def program_page(name: str) -> str:
    """The page of a program: its help, and that of its commands."""
    text = _help(name)
    pages = [f"# {name}", text]
    commands = re.match(rf"```text\nusage: python -m igpt_jax\.{name} ([\w|-]+\|[\w-]+)\n", text)
    for command in commands[1].split("|") if commands else ():  # each has a --help of its own
        pages += [f"## {name} {command}", _help(name, command)]
    return "\n\n".join(pages) + "\n"


def _help(name: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"igpt_jax.{name}", *command, "--help"], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"}
    )
    if done.returncode or not done.stdout:
        raise RuntimeError(f"python -m igpt_jax.{name} {' '.join(command)} --help failed: {done.stderr[-300:]}")
    return f"```text\n{done.stdout.strip()}\n```"


def recipe_page() -> str:
    """All keys of a recipe, with the values and comments of configs/base.py, a table for each group."""
    rows: dict[str, list[str]] = {}
    for key, value, comment in re.findall(r"^ +config\.([\w.]+) = (.*?)(?:  # (.+))?$", (ROOT / "configs/base.py").read_text(), re.M):
        if value == "ConfigDict()":
            continue
        group, derived = key.rpartition(".")[0], "get_ref" in value
        value = re.sub(r'config\.((?:\w+\.)?)get_ref\("(\w+)"\)', r"\1\2", value)
        comment = comment or ("follows from that, also on the command line" if derived else "")
        rows.setdefault(group, []).append(f"| `{key}` | `{value}` | {_cell(comment)} |")
    intention = "Every key with its value in `configs/base.py`, its unit and its source. `--config.KEY=VALUE` sets it on the command line."
    lines = ["# Keys of a recipe", "", intention, ""]
    for group in sorted(rows, key=bool):
        lines += [f"## {f'config.{group}' if group else 'config'}", "", "| key | value | meaning |", "|---|---|---|", *rows[group], ""]
    return "\n".join(lines)


def recipes_page() -> str:
    """The recipes of configs/, each with its docstring."""
    lines = ["# Recipes", "", "One file in `configs/` is one run. `--config=NAME` takes them by name, also where only the wheel is installed.", ""]
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem in ("__init__", "base"):
            continue
        docstring = inspect.getdoc(importlib.import_module(f"configs.{path.stem}")) or ""
        lines += [f"## {path.stem}", "", "```text", docstring, "```", ""]
    return "\n".join(lines)


def packages() -> list[str]:
    """The folders of the package that have modules, in the order of an image's way."""
    return ["palette", "distributed", "data", "model", "training", "sampling", "probing", "inspection", "interop", "reporting"]


def modules(package: str | None = None) -> list[str]:
    """The names of the public modules of a package; None: of all packages."""
    if package is None:
        return [name for each in packages() for name in modules(each)]
    found = pkgutil.iter_modules([str(ROOT / "igpt_jax" / package)])
    return [f"igpt_jax.{package}.{module.name}" for module in found if not module.name.startswith("_")]


def undocumented() -> list[str]:
    """The public modules, functions, classes and methods of the package that have no docstring."""
    found = []
    for path in sorted((ROOT / "igpt_jax").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if path.stat().st_size:
            found += [f"{module}{name}" for name, node in _public(ast.parse(path.read_text())) if ast.get_docstring(node) is None]
    return found


def _public(node: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    """A module or a class, and what is public in it, with their names."""
    yield name, node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            yield from _public(child, f"{name}.{child.name}") if isinstance(child, ast.ClassDef) else [(f"{name}.{child.name}", child)]


def package_page(package: str) -> str:
    """The page of a package: its modules, each with its public members."""
    lines = [f"# igpt_jax.{package}", ""]
    for name in modules(package):
        lines += [f"## {name.rpartition('.')[2]}", "", "```{eval-rst}", f".. automodule:: {name}", "   :members:", "```", ""]
    return "\n".join(lines)


def notebook(path: pathlib.Path) -> str:
    """A notebook whose links to the repository lead there from the documentation."""
    from experiments.report.owner import owner

    return path.read_text().replace("](../", f"](https://github.com/{owner()}/igpt_jax/blob/main/")


def as_rst(app, what, name, obj, options, lines: list[str]) -> None:
    """Turn a docstring, which is plain text with `code`, lists and indented blocks, into reStructuredText; in place."""
    made: list[str] = []
    inside = ""  # what the last line belongs to: a "list", a "block", or a paragraph
    for line in lines:
        begins_list, indented = line.startswith("- "), line.startswith(" ")
        if begins_list and inside != "list":
            inside = "list"
            made.append("")
        elif indented and not inside and made and not made[-1]:
            inside = "block"
            made += ["::", ""]
        elif line and not indented and not begins_list and inside:
            inside = ""
            made += [""] if made[-1] else []
        made.append(line if inside == "block" else _escaped(line))
    lines[:] = made


def _escaped(line: str) -> str:
    """A line of text in which only `code` is markup."""
    pieces = re.split(r"(`[^`]+`)", line)
    return "".join(f"`{piece}`" if piece.startswith("`") and len(piece) > 1 else re.sub(r"([*|\\]|_(?!\w))", r"\\\1", piece) for piece in pieces)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _fill(folder: pathlib.Path, files: dict[str, str]) -> None:
    """Make a folder hold exactly these files; a file that is the same already keeps its time, so that Sphinx does not read it again."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in files:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, text in files.items():
        if not (folder / name).exists() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
