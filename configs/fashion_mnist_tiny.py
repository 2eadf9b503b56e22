"""Fashion-MNIST at 28 x 28, 16 greys, 3 layers of width 32 with two-dimensional rotary positions, 38,144 parameters.

    python -m igpt_jax.quantize --config=configs/fashion_mnist_tiny.py --workdir=runs/fashion_mnist_tiny
    python -m igpt_jax.train --config=configs/fashion_mnist_tiny.py --workdir=runs/fashion_mnist_tiny

It is of the size of the published model of teddykoker/image-gpt (39,000 parameters, 16 greys, 27 epochs), whose own program was measured at 0.7126 nats per
pixel on the 10,000 test images.
Hardware: 2 CPU cores, 50 images/s beside another program: 54,000 images * 8 epochs / 50 images/s = 2.4 hours.
Expected: not run to the end. 4,158 steps (1.2 epochs, the last 600 of them with a falling rate; commit d3b9034, 2 CPU cores, seed 0) came to 0.7532 nats per
pixel on the 6,000 validation images.
"""

from configs import fashion_mnist


def get_config():
    config = fashion_mnist.get_config()
    config.model.layers = 3
    config.model.width = 32
    config.model.heads = 2
    config.model.position_encoding = "rotary"
    config.model.dtype = "float32"
    config.batch_size = 16  # 16 images * 784 pixels = 12,544 tokens a step
    config.steps = 27_000  # 8 epochs * 54,000 images / 16
    config.optim.learning_rate = 0.004
    config.optim.schedule = "wsd"
    config.optim.decay_steps = 5_400  # a fifth
    config.optim.warmup_steps = 500
    config.optim.clip_norm = 1.0
    config.log_every = 50
    config.eval_every = 1_000
    config.eval_images = 1_000
    config.save_every = 250
    return config
