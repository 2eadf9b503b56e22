"""Who imports whom, one library one door, and importing starts nothing."""

import ast
import re
import subprocess
import sys

from tests.layout import PACKAGE, RANKS, ROOT, folder, imported, imports_inside, modules, rank

DOORS = {  # a library -> the modules that may import it
    "optax": {"training.optimizer"},
    "orbax": {"training.storage"},
    "flax": {"model.transformer"},
    "grain": {"data.pipeline"},
    "tensorflow_datasets": {"data.tfds"},
    "datasets": {"data.hf"},
    "braceexpand": {"data.wds"},
    "PIL": {"data.images", "sampling.grid", "sample"},
    "absl": {"cli", "data.pipeline"},  # grain reads absl flags
    "ml_collections": {"cli"},
    "tensorflow": {"interop.openai"},
    "gradio": {"demo"},
    "wandb": {"training.tracking"},
    "torch": {"interop.huggingface"},
    "huggingface_hub": {"interop.hub"},
    "safetensors": {"interop.huggingface", "training.model_file"},
}
LAZY = {"grain", "tensorflow_datasets", "datasets", "braceexpand", "array_record", "tensorboardX", "matplotlib", "sklearn", "ml_collections", "tensorflow"}
LAZY |= {"torch", "safetensors", "gradio", "wandb", "huggingface_hub"}


def test_every_folder_and_program_has_a_rank():
    assert {folder(name) for name in modules()} == set().union(*RANKS)


def test_a_folder_imports_only_from_folders_below():
    upward = [(one, other) for one, other in imports_inside() if folder(one) != folder(other) and rank(other) >= rank(one)]
    assert not upward


def test_inside_a_folder_there_is_no_circle():
    inside = {}
    for one, other in imports_inside():
        if folder(one) == folder(other):
            inside.setdefault(one, set()).add(other)

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        for other in inside.get(name, ()):
            visit(other, [*path, name])

    for name in inside:
        visit(name, [])


def test_one_library_one_door():
    found = {library: set() for library in DOORS}
    for name, tree in modules().items():
        for module, top in imported(tree):
            library = module.split(".")[0]
            found.get(library, set()).add(name)
            assert not (top and library in LAZY), f"{name} imports {library} at its top, where a machine may lack it"
    assert found == DOORS


def test_configs_import_only_ml_collections_and_themselves_and_nothing_imports_them():
    for path in (ROOT / "configs").glob("*.py"):
        assert {module.split(".")[0] for module, _ in imported(ast.parse(path.read_text()))} <= {"ml_collections", "configs"}
    for name, tree in modules().items():
        assert not {module.split(".")[0] for module, _ in imported(tree)} & {"configs", "experiments", "notebooks", "tests"}, name


def without_annotation(tree):
    """(name, parameters without a type, "return" among them) of every public function and method that lacks one; a constructor returns None."""

    def visit(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from visit(node.body, f"{prefix}{node.name}.")
            if isinstance(node, ast.FunctionDef) and not re.match("_(?!_)", node.name):
                parameters = [*node.args.posonlyargs, *node.args.args, node.args.vararg, *node.args.kwonlyargs, node.args.kwarg]
                missing = [each.arg for each in parameters if each and each.arg not in ("self", "cls") and not each.annotation]
                missing += [] if node.returns or node.name == "__init__" else ["return"]
                if missing:
                    yield f"{prefix}{node.name}", missing

    return list(visit(tree.body, ""))


def test_public_functions_and_methods_are_annotated():
    source = """
def f(a, *b: int, c=1): pass
def _g(a): pass
class A:
    def __init__(self, a: int): pass
    def h(self, **k) -> None: pass
    def __len__(self): pass
class _B:
    def i(a): pass
"""
    assert without_annotation(ast.parse(source)) == [("f", ["a", "c", "return"]), ("A.h", ["k"]), ("A.__len__", ["return"])]
    trees = modules() | {"__init__": ast.parse((PACKAGE / "__init__.py").read_text())}
    assert not [(module, *lacking) for module, tree in trees.items() for lacking in without_annotation(tree)]


def test_importing_starts_no_device_and_needs_only_the_core_libraries():
    program = f"""
import sys
for name in {sorted(LAZY)}: sys.modules[name] = None  # an import of it fails
import importlib
for name in {sorted(modules())}: importlib.import_module("igpt_jax." + name)
from jax._src import xla_bridge
assert not xla_bridge._backends, "a device was touched"
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_processes_that_decode_pictures_do_without_jax():
    """Grain's workers import what reads a batch; jax would cost each of them a second and 100 MB."""
    subprocess.run([sys.executable, "-c", "import sys, igpt_jax.data.pipeline; assert 'jax' not in sys.modules"], check=True, cwd=ROOT)
