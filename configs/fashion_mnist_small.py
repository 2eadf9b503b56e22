"""Fashion-MNIST at 28 x 28, 16 greys, small enough for a laptop: 4 layers of width 64, 249,472 parameters.

    python -m igpt_jax.quantize --config=configs/fashion_mnist_small.py --workdir=runs/fashion_mnist_small --codes
    python -m igpt_jax.train --config=configs/fashion_mnist_small.py --workdir=runs/fashion_mnist_small

Hardware: 2 CPU cores. Expected with 150 steps: experiments/results/fashion_mnist_small.json (1,500 test images).
"""

from configs import fashion_mnist


def get_config():
    config = fashion_mnist.get_config()
    config.model.layers = 4
    config.model.width = 64
    config.model.heads = 2
    config.model.dtype = "float32"
    config.model.unroll = 4
    config.batch_size = 16  # 16 images * 784 pixels = 12,544 tokens a step
    config.steps = 300
    config.optim.warmup_steps = 20
    config.log_every = 20
    config.eval_every = 100
    config.eval_images = 256
    config.save_every = 100
    return config
