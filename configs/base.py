"""Every key of a recipe, once, with its unit and where it comes from. A recipe (another file here) starts from this one and changes what it must.

The values here are the paper's for iGPT-S on ImageNet at 32 x 32 (sections 3.3 and A.2 of "Generative Pretraining from Pixels", version 2).
"""

from ml_collections import ConfigDict


def get_config():
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of images, augmentation and masks

    config.deterministic = False  # True: on GPUs a run gives the same bits each time, killed and resumed too (XLA's deterministic operations, which are slower)

    config.data = ConfigDict()
    config.data.source = "tfds:imagenet2012"  # digits | tfds:NAME | folder:DIR | npz:DIR | codes:DIR | npy:DIR[/PREFIX], see igpt_jax/data/pipeline.py
    config.data.image_size = 32  # pixels a side; 32, 48 or 64 in the paper, 3.2
    config.data.augment = "imagenet"  # imagenet | cifar | none, paper 3.1
    config.data.view = "imagenet"  # of evaluation: imagenet, paper 2.1: shorter side 224, middle | center_square: middle, resized | squash: Hugging Face's
    config.data.validation = 0.04  # share of the training images held out, unless the data have their own; 0.04 for ImageNet, 0.10 for others, paper 3.1
    config.data.directory = ""  # where TFDS keeps its data; "": its own default
    config.data.workers = 0  # processes that decode images; 0: threads of this process
    config.data.seed = 0  # of the held-out split
    config.data.split_by = "name"  # what draws a folder's validation and test pictures: name | position in today's list, as in runs from before this key

    config.palette = ConfigDict()
    config.palette.kind = "colours"  # colours: fitted by k-means; levels: the values of a channel, three codes to a pixel, see configs/cifar10_rgb.py
    config.palette.size = 512  # colours, "9-bit", paper 3.2
    config.palette.iterations = 100  # of k-means at most; the paper does not say
    config.palette.tolerance = 1e-4  # relative improvement of the error at which k-means stops; the paper does not say
    config.palette.path = ""  # a palette to use instead of WORKDIR/palette.npy (OpenAI's kmeans_centers.npy, say)

    config.model = ConfigDict()
    config.model.layers = 24  # paper 3.3
    config.model.width = 512  # paper 3.3
    config.model.heads = 8  # README of openai/image-gpt
    config.model.vocabulary = config.palette.get_ref("size")
    config.model.positions = config.data.get_ref("image_size") * config.data.get_ref("image_size")
    config.model.tokens_per_pixel = 1  # 1: palette colours; 3: red, green, blue, see configs/cifar10_rgb.py
    config.model.objective = "autoregressive"  # autoregressive | bert, paper 2.1; prefix: AIM (El-Nouby et al. 2024, 3.2)
    config.model.position_encoding = "learned"  # learned: paper | axial: row + column | rotary: in attention, by row and column (LlamaGen, 2024)
    config.model.qk_norm = False  # True: queries and keys normalised, "Scaling Vision Transformers to 22 Billion Parameters" (2023)
    config.model.activation = "gelu"  # gelu: paper | swiglu: gated (Shazeer 2020; LLaMA blocks probe better in Toto, 2025)
    config.model.classes = 0  # of the class head; 0: none
    config.model.class_layer = -1  # features that the head reads; -1: after the final norm, paper 2.4
    config.model.dtype = "bfloat16"  # of matrix products; the paper trained in float32
    config.model.remat = "none"  # none | dots | full: what the backward pass computes again to save memory
    config.model.unroll = 1  # blocks in one turn of the loop over layers
    config.model.attention = "auto"  # auto | reference | contiguous | cudnn, see igpt_jax/model/attention.py

    config.batch_size = 128  # 128 images * 1024 pixels = 131,072 tokens a step, paper A.2
    config.steps = 1_000_000  # paper A.2
    config.gradient_accumulation_steps = 1  # equal parts that a batch is computed in, where it does not fit at once

    config.optim = ConfigDict()
    config.optim.learning_rate = 0.003  # table 5
    config.optim.schedule = "cosine"  # cosine (to zero) | constant, paper A.2; wsd: constant until the last decay_steps (MiniCPM, 2024)
    config.optim.warmup_steps = 9_609  # one epoch: 0.96 * 1,281,167 images / 128, paper A.2
    config.optim.decay_steps = 0  # wsd: the last steps, in which the rate falls to zero; 0: none, to be decided later
    config.optim.steps = config.get_ref("steps")
    config.optim.beta1 = 0.9  # paper A.2
    config.optim.beta2 = 0.95  # 0.999 "causes loss spikes", paper A.2
    config.optim.epsilon = 1e-8  # not said in the paper; the usual value
    config.optim.weight_decay = 0.0  # "did not change representation quality", paper A.2
    config.optim.loss_spike_factor = 0.0  # skip the update of a batch whose loss is above so many times its running mean (2, say); 0: never
    config.optim.clip_norm = 0.0  # not mentioned in the paper; 0: none

    config.loss = ConfigDict()
    config.loss.generative = 1.0  # weight of the model's own objective, paper 2.4
    config.loss.classification = 0.0  # weight of the class head's loss; 1 in the paper's fine-tuning, 2.4
    config.loss.mask_probability = 0.15  # bert: share of pixels masked, paper 2.1

    config.loss.evaluation_masks = 5  # bert with a class head: masks that vote on the class, paper 2.4

    config.best = ConfigDict()
    config.best.metric = ""  # keep the best model by this measure of the validation split: accuracy | nats_per_pixel | ...; "": do not
    config.best.patience = 0  # evaluations without a better one after which the run ends; 0: never

    config.mesh = ConfigDict()
    config.mesh.data = 1  # replicas of the model
    config.mesh.fsdp = -1  # shards of parameters and batch; -1: all other devices
    config.mesh.tensor = 1  # shards of heads and mlp

    config.max_consecutive_skips = 10  # updates in a row skipped, for a loss or gradient that is not finite, after which the run stops

    config.log_every = 100  # steps
    config.eval_every = 5_000  # steps
    config.eval_images = 10_000  # of the validation split, drawn at random, the same each time; 0: all
    config.save_every = 5_000  # steps
    config.keep_last = 3  # checkpoints
    config.keep_every = 0  # steps; checkpoints at these stay for ever; 0: none
    return config.lock()
