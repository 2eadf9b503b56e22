"""Mutation testing: changes one operator, comparison or constant of a module at a time, runs its tests, prints the changes that no test notices.

    make mutants MODULE=data.sampler NUMBER=40 SEED=0      ONLY=3,17 repeats two of them, for example after a new test; TESTS="data/test_sampler.py -k x"

cosmic-ray makes the changes; here they are drawn, each at another place of the module, and tested. The tests run in a copy of the repository, so a stopped run
leaves nothing behind, and programs that a test starts see the change too. Each change has a process of its own, forked from this one after the imports
that take seconds and before any device is touched. Tests marked slow are left out. `tests/mutants.md` holds what was found.
"""

import argparse
import ast
import difflib
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from tests import conftest  # sets what jax reads when it is imported

ROOT = pathlib.Path(__file__).parents[1]
OPERATORS = (  # of cosmic-ray, what their names begin with
    "ReplaceBinaryOperator", "ReplaceComparisonOperator", "ReplaceUnaryOperator", "ReplaceAnd", "ReplaceOr", "AddNot", "ReplaceTrue", "ReplaceFalse", "Number",
)  # fmt: skip
TESTS = {  # a module of igpt_jax or experiments -> its tests, the fast and specific first; of another module tests/FOLDER/test_MODULE.py
    "palette.palette": "palette/test_palette.py data/test_quantization.py",
    "training.step": "training/test_step.py training/test_finetuning.py::test_bert_votes_with_several_masks_and_breaks_ties_at_random",
    "probing.logistic": "probing/test_lbfgs_probe.py",
    "probing.sgd": "probing/test_sgd_probe.py",
    "probing.splits": "probing/test_lbfgs_probe.py probing/test_sgd_probe.py",
    "training.checkpoints": "training/test_checkpoints.py training/test_loop.py::test_a_run_whose_checkpoint_has_the_optimiser_by_position_goes_on",
    "training.storage": "training/test_checkpoints.py",
    "training.trees": "training/test_checkpoints.py",
    "training.setup": "training/test_finetuning.py training/test_loop.py distributed/test_multihost.py",
    "training.loop": "training/test_finetuning.py training/test_recipe.py training/test_loop.py",
    "report.findings": "report/test_findings.py report/test_readme.py",
    "report.claims": "report/test_contrasts.py report/test_verdicts.py report/test_claims.py",
    "report.classifiers": "report/test_verdicts.py report/test_contrasts.py report/test_claims.py report/test_former.py",
    "report.measurements": "report/test_measurements.py report/test_claims.py",
    "report.sentences": "report/test_verdicts.py report/test_contrasts.py report/test_claims.py report/test_claims_table.py",
    "report.results_table": "report/test_results_table.py report/test_readme.py",
}


def places(source: str) -> dict[tuple, list]:
    """Position in the source -> [(operator, occurrence)] of the changes that can be made there; none in annotations."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    notes = [getattr(node, name, None) for node in ast.walk(ast.parse(source)) for name in ("annotation", "returns")]
    inside = [((note.lineno, note.col_offset), (note.end_lineno, note.end_col_offset)) for note in notes if isinstance(note, ast.expr)]
    found, nodes = {}, list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if name.split("/")[1].startswith(OPERATORS):
            operator = get_operator(name)()
            positions = [position for node in nodes for position in operator.mutation_positions(node)]
            for occurrence, (start, end) in enumerate(positions):
                if not any(first <= start < last for first, last in inside):
                    found.setdefault((start, end), []).append((operator, occurrence))
    return found


def draw(source: str, number: int, seed: int) -> list[str]:
    """So many changed sources, each changed at another place; in a small module all places, some of them in two ways."""
    from cosmic_ray.mutating import mutate_code

    generator, found = random.Random(seed), places(source)
    ways = {position: generator.sample(found[position], len(found[position])) for position in sorted(found)}
    chosen = []
    for turn in range(max(map(len, ways.values()), default=0)):
        positions = [position for position in ways if len(ways[position]) > turn]
        chosen += [ways[position][turn] for position in generator.sample(positions, len(positions))]
    return [mutate_code(source, *way) for way in chosen[:number]]


def run_tests(tree: pathlib.Path, tests: list[str], seconds: float) -> tuple[bool, str]:
    """(whether the tests passed, the first that failed or what else ended them) in a fork of this process."""
    log = tree.parent / "log"
    child = os.fork()
    if not child:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(1, 2)
        os.chdir(tree)
        sys.path.insert(0, str(tree))
        os.environ["PYTHONPATH"], sys.dont_write_bytecode, os.environ["PYTHONDONTWRITEBYTECODE"] = str(tree), True, "1"
        for name in [name for name in sys.modules if name.split(".")[0] in ("tests", "igpt_jax", "experiments", "configs")]:
            del sys.modules[name]
        os._exit(conftest.pytest.main(["-n", "0", "-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-m", "not slow", *tests]))
    end, ended = time.monotonic() + seconds, (0, 0)
    try:
        while not ended[0] and time.monotonic() < end:
            time.sleep(0.05)
            ended = os.waitpid(child, os.WNOHANG)
    finally:  # where this program is stopped, too
        if not ended[0]:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    if not ended[0]:
        return False, f"stopped after {seconds:.0f} s"
    lines = log.read_text(errors="replace").splitlines()
    return ended[1] == 0, next((line for line in lines if line.startswith(("FAILED", "ERROR"))), lines[-1] if lines else "ended without a word")


def copy(folder: str) -> pathlib.Path:
    """The repository's files as they are now, beside the same ../shared."""
    tree = pathlib.Path(folder) / "tree"
    names = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    (tree.parent / "shared").symlink_to(ROOT.parent / "shared")
    return tree


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--module", required=True, help="of igpt_jax or experiments, as data.sampler")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=lambda text: [int(number) for number in text.split(",") if number], help="numbers of changes, 3,17")
    parser.add_argument("--tests", help="instead of all of the module's, as 'probing/test_sgd_probe.py -k moments'")
    flags = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    place = flags.module.replace(".", "/")
    name = next((name for name in (f"igpt_jax/{place}.py", f"experiments/{place}.py") if (ROOT / name).exists()), None)
    if name is None:
        sys.exit(f"error: there is no module {flags.module} in igpt_jax or experiments: give one as data.sampler")
    words = shlex.split(flags.tests or TESTS.get(flags.module) or "/test_".join(place.rsplit("/", 1)) + ".py")
    tests = [f"tests/{word}" if ".py" in word and not word.startswith("-") else word for word in words]

    import flax.nnx  # noqa: F401
    import jax  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        tree = copy(folder)
        source = (tree / name).read_text()
        began = time.monotonic()
        passed, end = run_tests(tree, tests, 1800)
        seconds = time.monotonic() - began
        if not passed:
            sys.exit(f"error: the tests of {name} fail without a change: {end}")
        (tree / name).write_text("raise AssertionError\n")
        if run_tests(tree, tests, 1800)[0]:
            sys.exit(f"error: {' '.join(tests)} pass without {name}: they import another copy of it, or none")
        print(f"{name}: {len(places(source))} places, its tests take {seconds:.0f} s", flush=True)
        unnoticed, changes = [], list(enumerate(draw(source, flags.number, flags.seed)))
        for number, changed in [change for change in changes if not flags.only or change[0] in flags.only]:
            (tree / name).write_text(changed)
            passed, end = run_tests(tree, tests, 2 * seconds + 20)
            unnoticed += [number] * passed
            lines = [line for line in difflib.unified_diff(source.splitlines(), changed.splitlines(), n=0, lineterm="") if not line.startswith(("---", "+++"))]
            print("\n".join([f"{number}: {'UNNOTICED' if passed else f'noticed, {end}'}", *lines]), flush=True)
    print(f"{name}, seed {flags.seed}: {len(unnoticed)} unnoticed of {len(flags.only or changes)}: {unnoticed}")


if __name__ == "__main__":
    main()
