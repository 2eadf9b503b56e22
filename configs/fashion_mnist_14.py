"""Fashion-MNIST at 14 x 14, 16 greys, small enough to train many models on a laptop: 4 layers of width 64, 211,840 parameters.

    python -m experiments.studies.objectives --config=configs/fashion_mnist_14.py --workdir=runs/objectives

Hardware: 2 CPU cores, about an hour for the study. Expected: experiments/results/objectives.json.
"""

from configs import fashion_mnist_small


def get_config():
    config = fashion_mnist_small.get_config()
    config.data.image_size = 14
    config.batch_size = 32  # 32 images * 196 pixels = 6,272 tokens a step
    config.steps = 2_000
    config.optim.warmup_steps = 100
    config.log_every = 100
    config.eval_every = 500
    config.eval_images = 1_000
    config.save_every = 500
    return config
