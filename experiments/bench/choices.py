"""What each choice about speed brings: `python -m experiments.bench.choices`. The training step with one thing changed, in turns with it as it is.

Writes experiments/results/bench_choices.json and speed.md: what, predicted, measured, kept or not. Sizes and options are those of experiments.bench.train;
on a GPU the attention rows compare cuDNN's kernel.
"""

import argparse
import contextlib
import dataclasses
import pathlib
from unittest import mock

import jax

from experiments.bench import models, rounds, train
from igpt_jax import attention, machine, model


def gelu_by_rule(x):
    """The activation with the gradient that jax makes of it."""
    return x * jax.nn.sigmoid(1.702 * x)


def query_block(size):
    """Queries taken together."""
    return mock.patch.object(attention, "QUERY_BLOCK", size)


@contextlib.contextmanager
def memory_returned():
    """The C library gives a step's memory back to the system, as it does by itself."""
    machine.keep_memory(False)
    try:
        yield
    finally:
        machine.keep_memory()


CHOICES = {  # name -> (fields of ModelConfig to change, or a context; what was predicted of the step as it is against this; what it teaches)
    "memory given back after each step": (
        {"within": memory_returned}, "1.2 x: the system clears its pages anew for each step", "kept: `machine.keep_memory`, where the C library is glibc",
    ),
    "GELU's gradient by rule": (
        {"within": lambda: mock.patch.object(model, "gelu", gelu_by_rule)}, "1.03 x: an array of the mlp's size less to write and read",
        "kept: a gradient of its own",
    ),
    "heads as they come, one product over [B, N]": (
        {"attention": "reference"}, "several times faster",
        "kept: heads folded into the batch, key transposed beforehand, backward from the kept probabilities",
    ),
    "queries in one block": (
        {"within": lambda: query_block(1 << 20)}, "1.3 x at two blocks: a quarter of the products is behind the diagonal", "kept: blocks of 128 queries",
    ),
    "queries in blocks of 64": ({"within": lambda: query_block(64)}, "slower: smaller products", "128 stays"),
    "a loop over the layers": ({"unroll": 1}, "1.3 x: the loop copies each layer's parameters and gradients", "kept: recipes for a CPU unroll"),
    "matrix products saved alone (remat dots)": ({"remat": "dots"}, "1.1 x", "a CPU has memory enough: none"),
    "blocks computed again (remat full)": ({"remat": "full"}, "1.33 x: a fourth third", "a CPU has memory enough: none"),
    "bfloat16": ({"dtype": "bfloat16"}, "slower where the CPU has no bfloat16 products, faster where it has", "float32 on a CPU"),
}  # fmt: skip


def main(argv=None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    small = models.SMALL | {"batch": 2, "steps": 2, "rounds": 2}
    return rounds.start("choices", bench, parser, argv, {"ours": ()}, small, models.GPU | {"batch": 32}, models.SIZES, draw=write)


def bench(arguments) -> dict:
    """Measure; the result without its provenance."""
    config = models.model_config(arguments)
    programs = {"ours": train.ours(config, arguments.batch, arguments.steps)}
    for name, (changes, *_) in CHOICES.items():
        programs[name] = _changed(config, dict(changes), arguments)
    rows = rounds.alternate(programs, arguments.rounds)
    found = rounds.summary(rows, arguments.batch, "images")
    rounds.print_table(found, {"s a step": ("seconds", "{:.3f}")})
    return {"what": "one training step with one thing changed", "sizes": models.sizes(config), "batch": arguments.batch, "programs": found, "rounds": rows}


def write(result, path: pathlib.Path) -> None:
    """speed.md beside the JSON."""
    path.with_name("speed.md").write_text(markdown(result))


def markdown(result) -> str:
    """The table, from bench_choices.json alone."""
    size = result["sizes"]
    lines = [
        "# What made it faster",
        "",
        f"The training step ({size['layers']} layers, width {size['width']}, {size['positions']} positions, batch {result['batch']}, {size['dtype']}) in turns "
        "with itself with one thing changed; measured is how many times as fast it is as with the change, the median of the rounds.",
        "",
        "| against | predicted | measured | |",
        "|---|---|---|---|",
    ]
    for name, (_, predicted, verdict) in CHOICES.items():
        one = result["programs"][name]
        measured = one.get("failed") or f"{one['ours_is_faster_by']:.2f} x ({min(one['ratios']):.2f} to {max(one['ratios']):.2f})"
        lines.append(f"| {name} | {predicted} | {measured} | {verdict} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"`{result['command']}`, commit {result['commit']}, {result['hardware']}, {result['backend']}; {versions}.", ""]
    return "\n".join(lines)


def _changed(config, changes, arguments):
    """The step with these changes as a program; each of its turns is within the changed context, and so the first, which compiles it."""
    within = changes.pop("within", contextlib.nullcontext)
    program = train.ours(dataclasses.replace(config, **changes), arguments.batch, arguments.steps)

    def turn():
        with within():
            return program()

    return turn


if __name__ == "__main__":
    main()
