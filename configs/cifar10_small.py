"""CIFAR-10 at 32 x 32, 512 colours, small enough for a laptop: 4 layers of width 64, 328,320 parameters.

    python -m igpt_jax.quantize --config=configs/cifar10_small.py --workdir=runs/cifar10_small --codes
    python -m igpt_jax.train --config=configs/cifar10_small.py --workdir=runs/cifar10_small

Your own arrays: --config.data.source=npz:DIR.
Hardware: 2 CPU cores, 20 minutes. Expected: 3.28 nats per pixel on 3,000 test images of
CIFAR-10 (JPEG q75), where counting colours gives 6.01 (commit 3228845121). Its pictures are noise; for pictures train longer, as experiments/README.md says.
"""

from configs import cifar10


def get_config():
    config = cifar10.get_config()
    config.model.layers = 4
    config.model.width = 64
    config.model.heads = 2
    config.model.dtype = "float32"
    config.model.unroll = 4
    config.batch_size = 16  # 16 images * 1,024 pixels = 16,384 tokens a step
    config.steps = 300
    config.optim.warmup_steps = 20
    config.log_every = 20
    config.eval_every = 100
    config.eval_images = 256
    config.save_every = 100
    return config
