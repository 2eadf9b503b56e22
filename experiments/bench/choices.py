"""What each choice about speed brings: `python -m experiments.bench.choices`.

The training step takes turns with a variant of it that differs in one thing. Writes experiments/results/bench_choices.json and speed.md, with the
prediction, the measurement and the decision for each choice. Sizes and options are those of experiments.bench.train. On a GPU the attention rows compare
with cuDNN's kernel.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import pathlib
from unittest import mock

import jax
import jax.numpy as jnp

from experiments.bench import models, rounds, train
from igpt_jax.cli import Parser, integer
from igpt_jax.distributed import runtime
from igpt_jax.model import attention, transformer


def gelu_by_rule(x):
    """The activation with the gradient that jax derives."""
    return x * jax.nn.sigmoid(1.702 * x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalised_attention(q_GSK, k_GKS, v_GSK, causal, precision):
    """The heads' attention with a backward pass from probabilities, with the products of the derivative."""
    return normalised_forward(q_GSK, k_GKS, v_GSK, causal, precision)[0]


def normalised_forward(q_GSK, k_GKS, v_GSK, causal, precision):
    """The forward pass; it saves each weight divided by the sum of its row."""
    output_GSK, (*inputs, weights, _) = attention._heads_forward(q_GSK, k_GKS, v_GSK, causal, precision)
    return output_GSK, (*inputs, [e_GQT / sum_GQ1 for e_GQT, sum_GQ1 in weights])


def normalised_backward(causal, precision, residuals, gradient_GSK):
    """The backward pass; it takes the mean of the gradients over all keys."""
    q_GSK, k_GKS, v_GSK, probabilities = residuals
    multiply = functools.partial(jnp.matmul, precision=precision)
    length = q_GSK.shape[1]
    q_gradients, k_gradient_GKS, v_gradient_GSK = [], 0.0, 0.0
    for (start, stop), p_GQT in zip(attention._query_blocks(length, causal), probabilities, strict=True):
        seen, block_GQK = p_GQT.shape[2], gradient_GSK[:, start:stop]
        v_gradient_GSK += jnp.pad(multiply(p_GQT.swapaxes(1, 2), block_GQK), ((0, 0), (0, length - seen), (0, 0)))
        p_gradient_GQT = multiply(block_GQK, v_GSK[:, :seen].swapaxes(1, 2))
        logits_gradient_GQT = p_GQT * (p_gradient_GQT - (p_gradient_GQT * p_GQT).sum(axis=-1, keepdims=True))
        q_gradients.append(multiply(logits_gradient_GQT, k_GKS[:, :, :seen].swapaxes(1, 2)))
        k_gradient_GKS += jnp.pad(multiply(q_GSK[:, start:stop].swapaxes(1, 2), logits_gradient_GQT), ((0, 0), (0, 0), (0, length - seen)))
    return jnp.concatenate(q_gradients, axis=1), k_gradient_GKS, v_gradient_GSK


normalised_attention.defvjp(normalised_forward, normalised_backward)


def patched(module: object, name: str, value: object) -> dict:
    """Return the change that gives a name of a module another value."""
    return {"within": lambda: mock.patch.object(module, name, value)}


# name -> (change: fields of ModelConfig, a context, or its own process; predicted speed of the step relative to the changed one; decision)
CHOICES = {
    "the CPU as one device": (
        patched(models, "training_mesh", lambda batch: models.one_device()), "1.15 x: XLA:CPU gives attention's small products to one core",
        "kept: `runtime.divide_cores`, a power of two of cores that divides the batch",
    ),
    "memory given back after each step": (
        {"alone": True}, "1.2 x: the system clears its pages again for each step",
        "kept: `runtime.keep_memory`, where the C library is glibc and an eighth of the memory is free",
    ),
    "GELU's gradient by rule": (
        patched(transformer, "gelu", gelu_by_rule), "1.03 x: an array of the mlp's size less to write and read",
        "kept for the memory: an array of the mlp's size less in each layer",
    ),
    "probabilities and their gradient's mean over all keys": (
        patched(attention, "_heads_attention", normalised_attention), "1.1 x: two passes over the weights less; values' gradients at half the speed",
        "kept: sums divide the outputs, the mean is of gradient times output, values' gradients are made transposed",
    ),
    "queries, keys and values by a weight of four axes": (
        patched(transformer, "is_divided", lambda axis: True), "1.05 x: its gradient is copied twice",
        "kept: one matrix, where the weight is whole or on a CPU",
    ),
    "heads as they come, one product over [B, N]": (
        {"attention": "reference"}, "several times faster",
        "kept: heads folded into the batch, key transposed beforehand, backward from the kept probabilities",
    ),
    "queries in one block": (
        patched(attention, "QUERY_BLOCK", 1 << 20), "1.3 x at two blocks: a quarter of the products is above the diagonal", "kept: blocks of 128 queries",
    ),
    "queries in blocks of 64": (patched(attention, "QUERY_BLOCK", 64), "slower: smaller products", "no faster within the spread: 128 stays"),
    "a loop over the layers": ({"unroll": 1}, "1.3 x: the loop copies each layer's parameters and gradients", "kept: recipes for a CPU unroll"),
    "matrix products saved alone (remat dots)": (
        {"remat": "dots"}, "1.1 x: something is computed again", "as much memory: XLA:CPU computes again too early without a loop. Recipes save all",
    ),
    "blocks computed again (remat full)": ({"remat": "full"}, "1.33 x: a fourth third", "only if memory is short, and with `unroll = 1`"),
    "bfloat16": ({"dtype": "bfloat16"}, "slower if the CPU has no bfloat16 products, faster if it has", "slower here, and less exact: float32 on a CPU"),
}  # fmt: skip


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=integer(1), default=16, help="images in a batch")
    parser.add_argument("--steps", type=integer(1), default=5, help="steps in a turn")
    small = models.SMALL | {"batch": 2, "steps": 2, "rounds": 2}
    return rounds.start("choices", bench, parser, argv, {"ours": ()}, small, models.GPU | {"batch": 32}, models.SIZES, draw=write, all_cores=True)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    config = models.model_config(arguments)
    programs = {"ours": train.ours(config, arguments.batch, arguments.steps)}
    for name, (changes, *_) in CHOICES.items():
        programs[name] = _changed(config, dict(changes), arguments)
    rows = rounds.alternate(programs, arguments.rounds)
    summary = rounds.summary(rows, arguments.batch, "images")
    rounds.print_table(summary, {"s a step": ("seconds", "{:.3f}")})
    return {"what": "one training step with one thing changed", "sizes": models.sizes(config), "batch": arguments.batch, "programs": summary, "rounds": rows}


def write(result: dict, path: pathlib.Path) -> None:
    """Write speed.md beside the JSON file."""
    path.with_name("speed.md").write_text(markdown(result))


def markdown(result: dict) -> str:
    """Return speed.md from the contents of bench_choices.json."""
    size = result["sizes"]
    lines = [
        "# What made it faster",
        "",
        f"The training step ({size['layers']} layers, width {size['width']}, {size['positions']} positions, batch {result['batch']}, {size['dtype']}) in turns "
        "with a variant that differs in one thing. \"Measured\" is the time of the variant over that of the step, the median of the rounds.",
        "",
        "| variant | predicted | measured | decision |",
        "|---|---|---|---|",
    ]
    for name, (_, predicted, verdict) in CHOICES.items():
        variant = result["programs"][name]
        measured = variant.get("failed") or f"{variant['ours_is_faster_by']:.2f} x ({min(variant['ratios']):.2f} to {max(variant['ratios']):.2f})"
        lines.append(f"| {name} | {predicted} | {measured} | {verdict} |")
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines += ["", f"`{result['command']}`, commit {result['commit']}, {result['hardware']}, {result['backend']}; {versions}.", ""]
    return "\n".join(lines)


def _changed(config, changes, arguments):
    """The step with these changes as a program. Every turn runs in the changed context, also the first, which compiles."""
    if changes.pop("alone", False):
        program = f"from experiments.bench import choices; choices.alone({dataclasses.asdict(config)!r}, {arguments.batch}, {arguments.steps})"
        return functools.partial(rounds.in_a_process, program)
    within = changes.pop("within", contextlib.nullcontext)
    with within():
        program = train.ours(dataclasses.replace(config, **changes), arguments.batch, arguments.steps)

    def turn():
        with within():
            return program()

    return turn


def alone(config: dict, batch: int, steps: int) -> None:
    """Print the second turn of the step as JSON; the first one compiles."""
    runtime.divide_cores()
    turn = train.ours(transformer.ModelConfig(**config), batch, steps)
    turn()
    print(json.dumps(turn()))


if __name__ == "__main__":
    main()
