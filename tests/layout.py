"""Who imports whom in igpt_jax: `python -m tests.layout` prints each folder's files, lines and imports between folders, and the longest files and functions."""

import ast
import collections
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "igpt_jax"
RANKS = [  # a folder imports only from the ranks below its own; a file at the top level of the package counts as a folder
    {"types", "files", "extras", "shapes"},
    {"palette", "distributed", "progress", "provenance"},
    {"data", "model", "cli"},
    {"training"},
    {"sampling", "probing", "interop", "inspection"},
    {"reporting"},
    {"report", "quantize", "train", "finetune", "evaluate", "sample", "features", "probe", "convert", "aot"},
    {"demo", "__main__"},
]


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its dotted name without `igpt_jax.`, parsed; `__init__` files have the name of their folder."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text()) for path in sorted(paths)}


def imported(tree, names=()):
    """(dotted name, whether the import stands at the top level) of every import; `from package import module` gives the module if `names` has it."""
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node in top) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield (inner if inner.removeprefix("igpt_jax.") in names else node.module), node in top


def imports_inside() -> list[tuple[str, str]]:
    """(importer, imported) of the package's own modules, without repetition."""
    found = modules()
    pairs = {(name, other.removeprefix("igpt_jax.")) for name, tree in found.items() for other, _ in imported(tree, found) if other.startswith("igpt_jax.")}
    return sorted(pairs)


def folder(module: str) -> str:
    return module.split(".")[0]


def rank(module: str) -> int:
    return next(number for number, names in enumerate(RANKS) if folder(module) in names)


def longest_functions(tree):
    """(lines, name) of every function."""
    return [(node.end_lineno - node.lineno + 1, node.name) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def main() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in ((name, _path(name)) for name in modules())}
    pairs = [(one, other) for one, other in imports_inside() if folder(one) != folder(other)]
    to, by = collections.defaultdict(collections.Counter), collections.Counter()
    for one, other in pairs:
        to[folder(one)][folder(other)] += 1
        by[folder(other)] += 1
    print(f"{'rank':4}  {'folder':12} {'files':>5} {'lines':>6} {'imported':>8}  imports")
    for number, names in enumerate(RANKS):
        for name in sorted(names):
            own = [module for module in lines if folder(module) == name]
            targets = ", ".join(f"{target} {count}" for target, count in sorted(to[name].items()))
            print(f"{number:4}  {name:12} {len(own):5} {sum(lines[module] for module in own):6} {by[name]:8}  {targets or '-'}")
    upward = [pair for pair in pairs if rank(pair[1]) >= rank(pair[0])]
    units = len(to.keys() | by.keys())
    imports = f"{sum(map(len, to.values()))} pairs of them by {len(pairs)} imports, {len(upward)} not downward"
    print(f"{units} folders and programs, {len(RANKS)} ranks, {imports}, {sum(lines.values()):,} lines")
    print("longest files: " + ", ".join(f"{name} {count}" for name, count in collections.Counter(lines).most_common(5)))
    functions = sorted(((size, f"{name}.{function}") for name, tree in modules().items() for size, function in longest_functions(tree)), reverse=True)
    print("longest functions: " + ", ".join(f"{name} {size}" for size, name in functions[:5]))


def _path(name: str) -> pathlib.Path:
    path = PACKAGE.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


if __name__ == "__main__":
    main()
