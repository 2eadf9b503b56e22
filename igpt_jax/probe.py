"""Linear probes of every layer: `python -m igpt_jax.probe --features=runs/digits/features [--out=runs/digits]`.

Reads the folder that igpt_jax.features wrote (igpt_jax/probing/store.py describes it), trains a linear classifier on each layer, chooses what regularises it
on the validation images, and tests (paper 2.6). Writes probe.json and accuracy_by_layer.png. Two solvers:
- `--solver=lbfgs`, the default, all images in memory: see probing/lbfgs_probe.py. `--labels-per-class=4,25,400` adds the low-data protocol.
- `--solver=sgd`, the paper's for ImageNet, images from the disk: see probing/sgd_probe.py.
`--concatenate=5` adds a probe of the 5 layers around the best one. `--pool=attention` (features of --kind=positions; by sgd) trains, beside the probe
of the mean over positions, one that attends to them, see sgd.py.
"""

import argparse
import sys

from igpt_jax.cli import ANY_ERROR, SEEDS, Parser, explain, integer, list_of, positive
from igpt_jax.distributed import runtime
from igpt_jax.probing import sgd_probe
from igpt_jax.probing.layers import run
from igpt_jax.probing.lbfgs_probe import C_VALUES
from igpt_jax.probing.report import report_lines

# ---- the command line, and what is printed ----


def _rates(text):
    return sorted(set(list_of(positive())(text)))


def _parse(arguments):
    parser = Parser(prog="python -m igpt_jax.probe", description=__doc__.split("\n")[0])
    parser.add_argument("--features", required=True, help="folder that igpt_jax.features wrote")
    parser.add_argument("--checkpoint", help="refuse features of another model than this one's; default: than the one where theirs lay, if any")
    parser.add_argument("--out", help="folder for probe.json and accuracy_by_layer.png; default: the features' folder")
    parser.add_argument("--layers", default="all", help="all, or a list like 0,4,8")
    parser.add_argument("--concatenate", type=integer(), default=0, metavar="N", help="also probe N layers around the best as one; the paper: 5")
    parser.add_argument("--memory", type=positive(), default=8, help="GiB that the probes may take: how many layers run side by side")
    parser.add_argument("--solver", choices=("lbfgs", "sgd"), help="lbfgs (default): all images in memory; sgd: images from the disk")
    lbfgs = parser.add_argument_group("--solver=lbfgs")
    lbfgs.add_argument("--C", type=_rates, default=list(C_VALUES), help="values of C to choose from, a list")
    lbfgs.add_argument("--raw-pixels", action=argparse.BooleanOptionalAction, help="probe the pixels too, for comparison; default: yes")
    lbfgs.add_argument("--labels-per-class", type=list_of(integer(1)), default=[], help="also probe from so few labels, a list; the paper: 4,25,400")
    lbfgs.add_argument("--subsets", type=integer(1), default=5, help="random subsets for each of --labels-per-class")
    sgd = parser.add_argument_group("--solver=sgd")
    sgd.add_argument("--learning-rates", type=_rates, default=sorted(sgd_probe.LEARNING_RATES), help="to choose from, a list")
    sgd.add_argument("--steps", type=integer(), default=0, help=f"batches; default: {sgd_probe.EPOCHS} epochs, at least {sgd_probe.LEAST_STEPS} steps")
    sgd.add_argument("--batch", type=integer(1), default=256, help="images in one step")
    sgd.add_argument("--seed", type=integer(0, SEEDS), default=0, help="of the order of the images")
    sgd.add_argument("--pool", choices=("mean", "attention"), default="mean", help="attention: also a probe that attends to the positions")
    sgd.add_argument("--attention-rates", type=_rates, default=sorted(sgd_probe.ATTENTION_RATES), help="learning rates of --pool=attention, a list")
    return parser.parse_args(arguments)


def main(arguments=None) -> int:
    """Run the program; returns its exit code."""
    arguments = _parse(arguments)
    runtime.keep()
    try:
        result = run(arguments)
    except ANY_ERROR as error:
        print(explain(error, arguments.out or arguments.features), file=sys.stderr)
        return 1
    print("\n".join(report_lines(result, arguments.out or arguments.features)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
