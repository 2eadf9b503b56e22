"""The training step beside PyTorch's: `python -m experiments.bench.train [--model=s|m|l] [--batch=N|largest]`.

ours            igpt_jax.training.step.jit_train_step: forward, backward, Adam, the guard against bad steps; the state's memory used again
hugging-face    transformers' ImageGPT as it comes (eager), torch's fused Adam
torch           the same model in plain PyTorch: scaled_dot_product_attention, fused Adam, eager
torch-compiled  the same, model and loss through torch.compile

All have the same sizes, the same codes, which lie on the device, and on a CPU the same threads; float32, or in bfloat16 torch's autocast.
MFU is ModelConfig.training_flops (half of the attention, since it is causal) over the chip's peak from its data sheet, or where there is
none (a CPU, float32) over the fastest large matrix product of jax and torch in this run. --batch=largest is the largest that ours has
memory for: all of the GPU with `--programs ours`, else half of it. Peak memory is given where the platform tells it.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import models, rounds
from igpt_jax.cli import Parser, integer
from igpt_jax.distributed import sharding
from igpt_jax.training import metrics
from igpt_jax.training.step import LossConfig, abstract_state, init_state, jit_train_step

PROGRAMS = {"ours": (), "hugging-face": ("torch", "transformers"), "torch": ("torch",), "torch-compiled": ("torch",)}
LOSS = LossConfig(generative=1.0, classification=0.0, mask_probability=0.15, evaluation_masks=1)
MEMORY = 0.92  # of what there is that the largest batch is meant to fill
WARM = 2  # steps at the beginning of each turn that are not counted
COLUMNS = {
    "ms a step": ("milliseconds", "{:,.1f}"),
    "images/s": ("images_per_second", "{:,.1f}"),
    "tokens/s": ("tokens_per_second", "{:,.0f}"),
    "MFU": ("mfu", "{:.1%}"),
    "peak GiB": ("peak_gib", "{:.1f}"),
    "loss": ("loss", "{:.3f}"),
}


def main(argv=None) -> dict:
    parser = Parser(description=__doc__)
    models.add_arguments(parser)
    parser.add_argument("--batch", type=lambda text: text if text == "largest" else integer(1)(text), default=16, help="images; or largest")
    parser.add_argument("--steps", type=integer(1), default=10, help="of a turn")
    small = models.SMALL | {"batch": 2, "steps": 2, "rounds": 2}
    return rounds.start("train", bench, parser, argv, PROGRAMS, small, models.GPU | {"batch": 32}, models.SIZES, all_cores=True)


def bench(arguments) -> dict:
    """Measure; the result without its provenance."""
    config = models.model_config(arguments)
    batch = arguments.batch
    if batch == "largest":
        batch = largest_batch(functools.partial(step_bytes, config), _memory())
    ours, batch = _fitted(config, batch, arguments.steps)
    programs = {"ours": ours} | {name: _peer(name, config, batch, arguments.steps) for name in arguments.programs if name != "ours"}
    peak, source = peak_flops(arguments.dtype, with_torch=len(programs) > 1, side=512 if arguments.small else None)
    rows = rounds.alternate(programs, arguments.rounds)
    found = rounds.summary(rows, batch, "images")
    for values in found.values():
        if "failed" not in values:
            values |= rates(config, batch, values["seconds"], peak)
    print(f"{config.layers} layers, width {config.width}, {config.positions} positions, batch {batch}, {config.dtype}")
    print(f"MFU is of {peak / 1e12:.4g} TFLOP/s: {source}")
    rounds.print_table(found, COLUMNS)
    return {
        "what": "one training step: forward, backward, Adam",
        "sizes": models.sizes(config), "dtype": config.dtype, "batch": batch, "steps": arguments.steps,
        "flops_per_image": config.training_flops(), "peak_flops": peak, "peak_source": source, "programs": found, "rounds": rows,
    }  # fmt: skip


def ours(config, batch: int, steps: int, mesh=None):
    """Our training step as a program, on the devices of `mesh` or those for training; its state lives on from turn to turn."""
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
        found = {"seconds": seconds, "loss": float(held.loss)}
        told = jax.devices()[0].memory_stats() or {}
        return found | ({"peak_gib": told["peak_bytes_in_use"] / 2**30} if "peak_bytes_in_use" in told else {})

    return turn


def peer(model, config, batch: int, steps: int, compiled: bool):
    """A PyTorch model's training step as a program; on a GPU it makes room after each turn, and its optimiser begins anew."""
    import torch
    from torch.nn import functional

    device = rounds.torch_device()
    codes_BS = torch.from_numpy(models.random_codes(config, batch)).long().to(device)
    start_B1 = torch.full((batch, 1), config.vocabulary, device=device)
    inputs_BS = torch.cat([start_B1, codes_BS[:, :-1]], dim=1)

    def loss_of(inputs_BS, codes_BS):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            output = model(inputs_BS)
            logits_BSV = getattr(output, "logits", output)
        return functional.cross_entropy(logits_BSV.float().flatten(0, 1), codes_BS.flatten())

    loss_of = torch.compile(loss_of) if compiled else loss_of
    held = types.SimpleNamespace(loss=None)

    def turn():
        model.to(device)
        optim = models.OPTIM
        rate, betas = optim.learning_rate / optim.warmup_steps, (optim.beta1, optim.beta2)  # of the first steps, which these are
        adam = torch.optim.Adam(model.parameters(), rate, betas, optim.epsilon, fused=True)

        def advance():
            adam.zero_grad(set_to_none=True)
            loss = loss_of(inputs_BS, codes_BS)
            loss.backward()
            adam.step()
            held.loss = loss.detach()

        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            found = {"seconds": rounds.seconds_each(advance, steps, rounds.torch_wait, WARM), "loss": float(held.loss)}
            return found | ({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if device.type == "cuda" else {})
        finally:
            if device.type == "cuda":
                del adam
                model.zero_grad(set_to_none=True)
                model.to("cpu")
                torch.cuda.empty_cache()

    return turn


def rates(config, batch: int, seconds: float, peak: float) -> dict:
    """What a step of `batch` images in `seconds` makes of a chip of `peak` FLOP/s."""
    images = batch / seconds
    return {"milliseconds": 1e3 * seconds, "tokens_per_second": images * config.positions, "mfu": images * config.training_flops() / peak}


def peak_flops(dtype: str, with_torch: bool, side=None) -> tuple[float, str]:
    """FLOP/s that MFU is taken of, and where they are from; `side` of the matrices where they are measured."""
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


def largest_batch(bytes_of, memory: float) -> int:
    """The largest batch whose bytes, a line through those of 1 and 3, are within `memory`; from 16 on a multiple of 8. ValueError: none."""
    one, three = bytes_of(1), bytes_of(3)
    slope = (three - one) / 2
    batch = int((MEMORY * memory - one) / slope) + 1
    if MEMORY * memory < one:
        raise ValueError(f"a batch of 1 takes {one / 2**30:.1f} GiB of {memory / 2**30:.1f}: give --remat=full, or a smaller model")
    return batch - batch % 8 if batch >= 16 else batch


def step_bytes(config, batch: int) -> int:
    """Bytes that our compiled step takes, state, codes and all between."""
    mesh = models.one_device()
    place = sharding.batch_sharding(mesh)
    shapes = {"codes": (batch, config.positions), "index": (batch,)}
    images = {name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=place) for name, shape in shapes.items()}
    with jax.set_mesh(mesh):
        state = abstract_state(config, mesh)
        lowered = jit_train_step(mesh, config, models.OPTIM, LOSS).lower(state, images, jax.random.key(0))
    told = lowered.compile().memory_analysis()
    return told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes + told.temp_size_in_bytes


def _memory():
    told = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" not in told:
        raise ValueError("--batch=largest needs a device that tells its memory, which this one does not: give --batch a number")
    return told["bytes_limit"]


def _fitted(config, batch, steps):
    """Our program and the batch it runs with; an eighth less as long as the device has no memory for it."""
    while True:
        program = None  # what did not fit gives its memory back first
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
