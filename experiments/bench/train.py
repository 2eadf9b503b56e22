"""The training step beside PyTorch's: `python -m experiments.bench.train [--model=s|m|l] [--batch=N|largest]`.

ours            igpt_jax.training.step.jit_train_step: forward, backward, Adam, the guard against bad steps; the state is donated
hugging-face    transformers' ImageGPT, eager, with torch's fused Adam
torch           the same model in plain PyTorch: scaled_dot_product_attention, fused Adam, eager
torch-compiled  the same, model and loss through torch.compile

All have the same sizes, the same codes on the device, and on a CPU the same number of threads. In bfloat16 torch uses autocast. MFU is
ModelConfig.training_flops (half of the attention, because it is causal) per second over the peak of the chip's data sheet. Without one (a CPU, float32) the
peak is the fastest large matrix product of jax and torch in this run. --batch=largest is the largest batch for which ours has memory: all memory of the GPU
with `--programs ours`, else half of it. Peak memory is shown if the platform reports it.
"""

import argparse
import functools
import types
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import models, rounds
from igpt_jax.cli import Parser, integer
from igpt_jax.distributed import sharding
from igpt_jax.model.transformer import ModelConfig
from igpt_jax.training import metrics
from igpt_jax.training.compilation import Step
from igpt_jax.training.step import LossConfig, init_state, jit_train_step

PROGRAMS = {"ours": (), "hugging-face": ("torch", "transformers"), "torch": ("torch",), "torch-compiled": ("torch",)}
LOSS = LossConfig(generative=1.0, classification=0.0, mask_probability=0.15, evaluation_masks=1)
MEMORY = 0.92  # share of the memory that the largest batch should fill
WARM = 2  # uncounted steps at the beginning of each turn
COLUMNS = {
    "ms a step": ("milliseconds", "{:,.1f}"),
    "images/s": ("images_per_second", "{:,.1f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "MFU": ("mfu", "{:.1%}"),
    "peak GiB": ("peak_gib", "{:.1f}"),
    "loss": ("loss", "{:.3f}"),
}


def main(argv: list[str] | None = None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=lambda text: text if text == "largest" else integer(1)(text), default=16, help="images in a batch, or largest")
    parser.add_argument("--steps", type=integer(1), default=10, help="steps in a turn")
    small = models.SMALL | {"batch": 2, "steps": 2, "rounds": 2}
    return rounds.start("train", bench, parser, argv, PROGRAMS, small, models.GPU | {"batch": 32}, models.SIZES, all_cores=True)


def bench(arguments: argparse.Namespace) -> dict:
    """Measure; return the result without its provenance."""
    config = models.model_config(arguments)
    batch = arguments.batch
    if batch == "largest":
        batch = largest_batch(functools.partial(step_bytes, config), _memory())
    ours, batch = _fitted(config, batch, arguments.steps)
    programs = {"ours": ours} | {name: _peer(name, config, batch, arguments.steps) for name in arguments.programs if name != "ours"}
    peak, source = peak_flops(arguments.dtype, with_torch=len(programs) > 1, side=512 if arguments.small else None)
    rows = rounds.alternate(programs, arguments.rounds)
    summary = rounds.summary(rows, batch, "images")
    for values in summary.values():
        if "failed" not in values:
            values |= rates(config, batch, values["seconds"], peak)
    print(f"{config.layers} layers, width {config.width}, {config.positions} positions, batch {batch}, {config.dtype}")
    print(f"MFU is of {peak / 1e12:.4g} TFLOP/s: {source}")
    rounds.print_table(summary, COLUMNS)
    return {
        "what": "one training step: forward, backward, Adam",
        "sizes": models.sizes(config), "dtype": config.dtype, "batch": batch, "steps": arguments.steps,
        "flops_per_image": config.training_flops(), "peak_flops": peak, "peak_source": source, "programs": summary, "rounds": rows,
    }  # fmt: skip


def ours(config: ModelConfig, batch: int, steps: int, mesh: jax.sharding.Mesh | None = None) -> rounds.Program:
    """Return our training step as a program on `mesh`, default: models.training_mesh. The state is kept from turn to turn."""
    mesh, key = mesh or models.training_mesh(batch), jax.random.key(0)
    images = sharding.shard_batch(mesh, {"codes": models.random_codes(config, batch), "index": np.arange(batch, dtype=np.int32)})
    step = jit_train_step(mesh, config, models.OPTIM, LOSS)
    held = types.SimpleNamespace(state=init_state(config, mesh, key), loss=None)

    def advance():
        held.state, values = step(held.state, images, key)
        held.loss = values["loss"]
        return held.state, values

    def turn():
        with jax.set_mesh(mesh):
            seconds = rounds.seconds_each(advance, steps, jax.block_until_ready, WARM)
        row = {"seconds": seconds, "loss": float(held.loss)}
        memory = jax.devices()[0].memory_stats() or {}
        return row | ({"peak_gib": memory["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in memory else {})

    return turn


def peer(model, config: ModelConfig, batch: int, steps: int, compiled: bool) -> rounds.Program:
    """Return the training step of a PyTorch model as a program. Each turn has a new optimiser; on a GPU the model leaves the device after each turn."""
    import torch

    device, held = rounds.torch_device(), types.SimpleNamespace(loss=None)
    loss_of_batch = _torch_loss(model, config, batch, device, compiled)

    def turn():
        model.to(device)
        optim = models.OPTIM
        rate, betas = optim.learning_rate / optim.warmup_steps, (optim.beta1, optim.beta2)  # the rate of the first step of the warmup
        adam = torch.optim.Adam(model.parameters(), rate, betas, optim.epsilon, fused=True)

        def advance():
            adam.zero_grad(set_to_none=True)
            loss = loss_of_batch()
            loss.backward()
            adam.step()
            held.loss = loss.detach()

        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            row = {"seconds": rounds.seconds_each(advance, steps, rounds.torch_wait, WARM), "loss": float(held.loss)}
            return row | ({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {})
        finally:
            if device.type == "cuda":
                del adam
                model.zero_grad(set_to_none=True)
                model.to("cpu")
                torch.cuda.empty_cache()

    return turn


def _torch_loss(model, config, batch, device, compiled):
    """A function that returns the loss of a PyTorch model on random codes, which are on the device."""
    import torch
    from torch.nn import functional

    codes_BS = torch.from_numpy(models.random_codes(config, batch)).long().to(device)
    start_B1 = torch.full((batch, 1), config.vocabulary, device=device)
    inputs_BS = torch.cat([start_B1, codes_BS[:, :-1]], dim=1)

    def loss_of(inputs_BS, codes_BS):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            output = model(inputs_BS)
            logits_BSV = getattr(output, "logits", output)
        return functional.cross_entropy(logits_BSV.float().flatten(0, 1), codes_BS.flatten())

    loss_of = torch.compile(loss_of) if compiled else loss_of
    return lambda: loss_of(inputs_BS, codes_BS)


def rates(config: ModelConfig, batch: int, seconds: float, peak: float) -> dict:
    """Return milliseconds, tokens per second and MFU of a step of `batch` images on a chip with `peak` FLOP/s."""
    images = batch / seconds
    return {"milliseconds": 1e3 * seconds, "tokens_per_second": images * config.positions, "mfu": images * config.training_flops() / peak}


def peak_flops(dtype: str, with_torch: bool, side: int | None = None) -> tuple[float, str]:
    """Return (FLOP/s, source) of the peak for MFU; if it is measured, with matrices [side, side]."""
    kind = jax.devices()[0].device_kind
    if dtype == "bfloat16" and (known := metrics.peak_flops(kind)):
        return known, f"data sheet of {kind}, dense bfloat16"
    side = side or (8192 if jax.default_backend() == "gpu" else 2048)
    numbers = np.random.default_rng(0).standard_normal((side, side), np.float32)
    x = jax.device_put(jnp.asarray(numbers, dtype), jax.devices()[0])
    multiply = jax.jit(functools.partial(jnp.matmul, precision="highest" if dtype == "float32" else "default"))
    speeds = {"jax": _product_speed(lambda: multiply(x, x), jax.block_until_ready, side)}
    if with_torch:
        import torch

        y = torch.from_numpy(numbers).to(rounds.torch_device(), getattr(torch, dtype))
        speeds["torch"] = _product_speed(lambda: y @ y, rounds.torch_wait, side)
    best = max(speeds, key=speeds.get)
    return speeds[best], f"measured, the product of two {dtype} matrices of {side} x {side} by {best}, the best of 5"


def largest_batch(bytes_of: Callable[[int], float], memory: float) -> int:
    """Return the largest batch that fits into `memory`, from 16 on a multiple of 8; ValueError if none does.

    The bytes of a batch are on a line through those of batches of 1 and 3.
    """
    smallest = bytes_of(1)
    slope = (bytes_of(3) - smallest) / 2
    batch = int((MEMORY * memory - smallest) / slope) + 1
    if MEMORY * memory < smallest:
        raise ValueError(f"a batch of 1 takes {smallest / 2**30:.1f} GiB of {memory / 2**30:.1f}: give --remat=full, or a smaller model")
    return batch - batch % 8 if batch >= 16 else batch


def step_bytes(config: ModelConfig, batch: int) -> int:
    """Return the bytes of our compiled step: state, codes and temporaries."""
    return Step(models.one_device(), config, models.OPTIM, LOSS, batch, gradient_accumulation_steps=1).needed_bytes(config)


def _memory():
    memory = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in memory:
        raise ValueError("--batch=largest needs a device that reports its memory, and this one does not: give --batch a number")
    return memory["bytes_limit"]


def _fitted(config, batch, steps):
    """Our program and its batch, which is reduced by an eighth until the device has memory for it."""
    while True:
        program = None  # free the memory of the batch that did not fit
        try:
            program = ours(config, batch, steps)
            program()
            return program, batch
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise MemoryError(f"a batch of {batch} does not run: {str(error).splitlines()[0]}") from None
        batch -= max(1, batch // 8)
        print(f"out of memory: batch {batch}", flush=True)


def _peer(name, config, batch, steps):
    device = rounds.torch_device()
    model = models.hugging_face(config, device) if name == "hugging-face" else models.plain_torch(config, device)
    if device.type == "cuda":
        model.to("cpu")  # until its turn
    return peer(model.train(), config, batch, steps, compiled=name == "torch-compiled")


def _product_speed(multiply, wait, side):
    return 2 * side**3 / min(rounds.seconds_each(multiply, 3, wait) for _ in range(5))


if __name__ == "__main__":
    main()
