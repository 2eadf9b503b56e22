"""Train linear probes of every layer: `python -m igpt_jax.probe --features=runs/digits/features --out=runs/digits`.

Reads the folder that igpt_jax.features wrote, trains a linear classifier on each layer, chooses its regularisation on the validation images, and tests it
(paper 2.6). Weighted nearest neighbours, which need no training, stand beside it: see igpt_jax/probing/knn.py. Writes probe.json, probe.npz with the probes
and their prediction for each image (see igpt_jax/probing/results.py), and accuracy_by_layer.png. There are two solvers:
- `--solver=lbfgs`, the default, has all images in memory: see igpt_jax/probing/lbfgs_probe.py. `--labels-per-class=4,25,400` adds the low-data protocol.
- `--solver=sgd`, the paper's for ImageNet, reads images from the disk: see igpt_jax/probing/sgd_probe.py.

`--concatenate=5` adds a probe of the 5 layers around the best one. `--pool=attention` adds, for features of --kind=positions and by sgd, a probe with
attention over the positions: see igpt_jax/probing/sgd.py.
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epath

from igpt_jax.cli import ANY_ERROR, SEEDS, Parser, explain, integer, list_of, positive
from igpt_jax.distributed import runtime
from igpt_jax.distributed.multihost import check_alone
from igpt_jax.interop import hub
from igpt_jax.probing import knn, sgd_probe
from igpt_jax.probing.report import report_lines
from igpt_jax.probing.run import Options, run
from igpt_jax.reporting.workdir import MARKS


def _ascending(text: str) -> list[float]:
    return sorted(set(list_of(positive())(text)))


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m igpt_jax.probe", description=__doc__)
    parser.add_argument("--features", required=True, help="folder that igpt_jax.features wrote")
    parser.add_argument("--out", help="folder for probe.json, probe.npz and accuracy_by_layer.png; default: the folder of the features")
    parser.add_argument("--checkpoint", help="refuse features of another model; default: compare with the checkpoint that the features name, if it exists")
    parser.add_argument("--layers", default=Options.layers, help="all, or a list like 0,4,8")
    parser.add_argument("--concatenate", type=integer(), default=Options.concatenate, metavar="N", help="also probe N layers around the best as one; paper: 5")
    parser.add_argument("--memory", type=positive(), default=Options.memory, help="GiB for the probes, which decide how many layers run side by side")
    cheap = f"up to {knn.CHEAP:.0e} pairs of images in a layer"
    parser.add_argument("--knn", action=argparse.BooleanOptionalAction, help=f"also probe by weighted nearest neighbours; default: yes, {cheap}")
    parser.add_argument("--solver", choices=("lbfgs", "sgd"), help="lbfgs: all images in memory; sgd: images from the disk; default: lbfgs")
    lbfgs = parser.add_argument_group("--solver=lbfgs")
    lbfgs.add_argument("--C", dest="C_values", type=_ascending, metavar="LIST", default=Options.C_values, help="scikit-learn's C, to choose from")
    lbfgs.add_argument("--raw-pixels", action=argparse.BooleanOptionalAction, help="also probe the pixels, for comparison; default: yes")
    lbfgs.add_argument("--labels-per-class", type=list_of(integer(1)), metavar="LIST", default=(), help="also probe this few labels; paper: 4,25,400")
    lbfgs.add_argument("--subsets", type=integer(1), default=Options.subsets, help="random subsets for each of --labels-per-class")
    sgd = parser.add_argument_group("--solver=sgd")
    sgd.add_argument("--learning-rates", type=_ascending, metavar="LIST", default=Options.learning_rates, help="to choose from")
    steps = f"batches; default: {sgd_probe.EPOCHS} epochs, at least {sgd_probe.LEAST_STEPS} steps"
    sgd.add_argument("--steps", type=integer(), default=Options.steps, help=steps)
    sgd.add_argument("--batch", type=integer(1), default=Options.batch, help="images in one step")
    sgd.add_argument("--seed", type=integer(0, SEEDS), default=Options.seed, help="of the order of the images")
    sgd.add_argument("--pool", choices=("mean", "attention"), default=Options.pool, help="attention: also a probe with attention over the positions")
    sgd.add_argument("--attention-rates", type=_ascending, metavar="LIST", default=Options.attention_rates, help="of --pool=attention, to choose from")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Run the program with the words of a command line (None: sys.argv). Returns its exit code."""
    arguments = _parse(words)
    runtime.prepare()
    try:
        check_alone("probe")
        checkpoint = arguments.checkpoint and hub.local(arguments.checkpoint)
        result = run(Options(**vars(arguments) | {"checkpoint": checkpoint}))
    except ANY_ERROR as error:
        print(explain(error, arguments.out or arguments.features), file=sys.stderr)
        return 1
    out = epath.Path(arguments.out or arguments.features)
    print("\n".join(report_lines(result, out)))
    if any((out / name).exists() for name in MARKS):
        print(f"next: python -m igpt_jax.report {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
