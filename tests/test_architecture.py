"""Who imports whom (the layers), one library one door, and importing starts nothing."""

import ast
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
LAYERS = [
    {
        "palette", "kmeans", "images", "codes", "tfds", "order", "attention", "sharding", "machine", "processes", "metrics",
        "progress", "lock", "activations", "logistic", "sgd", "probe_figure", "hlo", "cli",
    },
    {"model", "data", "objectives", "optim"},
    {"state", "checkpoint", "evaluate", "probe_lbfgs", "probe_sgd", "recipe", "run", "foreign", "openai", "huggingface"},
    {"quantize", "train", "finetune", "features", "probe", "sample", "convert", "aot"},
    {"demo"},  # a page over the programs
]
# assembly: a later one may use an earlier one; a palette is what k-means fits and stored codes come with, TFDS's pictures are read as all images are
ORDER_IN_LAYER = ["machine", "processes", "lock", "cli", "palette", "kmeans", "images", "codes", "tfds"]
ORDER_IN_LAYER += ["state", "checkpoint", "evaluate", "recipe", "run", "foreign", "openai", "huggingface"]
DOORS = {
    "optax": {"optim"},
    "orbax": {"checkpoint"},
    "flax": {"model"},
    "grain": {"data"},
    "tensorflow_datasets": {"tfds"},
    "PIL": {"images", "sample", "quantize"},
    "absl": {"cli", "data"},  # grain reads absl flags
    "ml_collections": {"cli"},
    "tensorflow": {"openai"},
    "gradio": {"demo"},
    "torch": {"huggingface"},
    "safetensors": {"huggingface"},
}
LAZY = {"grain", "tensorflow_datasets", "tensorboardX", "matplotlib", "sklearn", "ml_collections", "tensorflow", "torch", "safetensors", "gradio"}


def imported(tree):
    """(module, is at the top level) of every import."""
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node in top) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names] if node.module == "igpt_jax" else [node.module]
            yield from ((name, node in top) for name in names)


def modules():
    return {path.stem: ast.parse(path.read_text()) for path in (ROOT / "igpt_jax").glob("*.py") if path.stem != "__init__"}


def rank(name):
    layer = next(index for index, names in enumerate(LAYERS) if name in names)
    return layer, ORDER_IN_LAYER.index(name) if name in ORDER_IN_LAYER else -1


def test_every_module_has_a_layer():
    assert modules().keys() == set().union(*LAYERS)


def test_imports_go_strictly_downward():
    for name, tree in modules().items():
        for module, _ in imported(tree):
            if module.startswith("igpt_jax."):
                other = module.split(".")[1]
                assert rank(other) < rank(name), f"{name} imports {other}"


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
