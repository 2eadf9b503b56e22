"""The base recipe: every key with its unit and its source. All other recipes start from this one and change some values.

The values are those of the paper for iGPT-S on ImageNet at 32 x 32 (sections 3.3 and A.2 of "Generative Pretraining from Pixels", version 2).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of initial parameters, order of images, augmentation and masks

    config.deterministic = False  # True: a run on GPUs repeats bit for bit, also after a restart (XLA's deterministic operations, which are slower)

    config.data = ConfigDict()
    config.data.source = "tfds:imagenet2012"  # or hf:NAME, folder:DIR, wds:DIR, ...: igpt_jax/data/config.py; a mixture: "folder:a*0.7 + tfds:b*0.3"
    config.data.image_size = 32  # resolution in pixels, both height and width; 32, 48 or 64 in the paper, 3.2
    config.data.augment = "imagenet"  # imagenet | cifar | none, paper 3.1
    config.data.view = "imagenet"  # in evaluation: imagenet: shorter side 224, centre, 2.1 | center_square: central square | squash: all of it, as Hugging Face
    config.data.validation = 0.04  # share of the training images held out if the data have no validation split; 0.04 for ImageNet, 0.10 for others, paper 3.1
    config.data.directory = ""  # data directory of TFDS; "": the default of TFDS
    config.data.workers = 0  # processes that decode and code pictures; 0: threads of this process
    config.data.seed = 0  # of the choice of held-out images
    config.data.split_by = "name"  # how a folder's validation and test pictures are chosen: name | position in the list, as before this key existed

    config.palette = ConfigDict()
    config.palette.kind = "colours"  # colours: fitted by k-means | levels: values of a channel, three codes per pixel, see configs/cifar10_rgb.py
    config.palette.size = 512  # colours, "9-bit", paper 3.2
    config.palette.iterations = 100  # maximum of k-means; not in the paper
    config.palette.tolerance = 1e-4  # relative improvement of the error below which k-means stops; not in the paper
    config.palette.path = ""  # a palette to use instead of WORKDIR/palette.npy, for example OpenAI's kmeans_centers.npy

    config.model = ConfigDict()
    config.model.layers = 24  # paper 3.3
    config.model.width = 512  # paper 3.3
    config.model.heads = 8  # README of openai/image-gpt
    config.model.vocabulary = config.palette.get_ref("size")
    config.model.positions = config.data.get_ref("image_size") * config.data.get_ref("image_size")
    config.model.tokens_per_pixel = 1  # 1: palette colours; 3: red, green, blue, see configs/cifar10_rgb.py
    config.model.objective = "autoregressive"  # autoregressive | bert, paper 2.1 | prefix: AIM (El-Nouby et al. 2024, 3.2)
    config.model.position_encoding = "learned"  # learned: the paper's | axial: row + column | rotary: in attention, by row and column (LlamaGen, 2024)
    config.model.qk_norm = False  # True: queries and keys are normalised, "Scaling Vision Transformers to 22 Billion Parameters" (2023)
    config.model.activation = "gelu"  # gelu: the paper's | swiglu: gated (Shazeer 2020; LLaMA blocks probe better in Toto, 2025)
    config.model.bias = False  # True: a bias, zero at first, is added to each product of the blocks' matrices, as in transformers' ImageGPT; the paper has none
    config.model.block = 1  # side of squares of pixels that are predicted together, 1: pixel by pixel, the paper's | 2, 4, ...: XTRA (Amrani et al. 2024)
    config.model.classes = 0  # of the class head; 0: no head
    config.model.class_layer = -1  # layer whose features the head reads; -1: after the final norm, paper 2.4
    config.model.dropout = 0.0  # share dropped in training, of the embedding and of what attention and mlp add; 0: none, as the paper, for example 0.1
    config.model.dtype = "bfloat16"  # of matrix products; the paper trained in float32
    config.model.remat = "auto"  # what the backward pass computes again: none | dots: all but products and attention | full: all | auto: the least that fits
    config.model.unroll = 0  # blocks per iteration of the loop over layers; 0: all on a CPU and on GPUs that hold all parameters each, else 1
    config.model.matmul_precision = "highest"  # of float32 products: highest: float32 | high: TF32 on GPUs, factors of 10 bits; sampling has highest
    config.model.attention = "auto"  # auto | reference | contiguous | blocks | cudnn | splash, see igpt_jax/model/attention.py

    config.batch_size = 128  # 128 images * 1024 pixels = 131,072 tokens a step, paper A.2
    config.steps = 1_000_000  # paper A.2
    config.gradient_accumulation_steps = 1  # number of equal parts in which a batch is computed, if it does not fit into memory

    config.optim = ConfigDict()
    config.optim.name = "adam"  # adam: paper A.2 | muon: Muon for the matrices of the blocks, Adam for the rest (Jordan et al. 2024; Liu et al. 2025)
    config.optim.learning_rate = 0.003  # table 5
    config.optim.schedule = "cosine"  # cosine: to zero, paper A.2 | constant | wsd: constant until the last decay_steps (MiniCPM, 2024)
    config.optim.warmup_steps = 9_609  # one epoch: 0.96 * 1,281,167 images / 128, paper A.2
    config.optim.decay_steps = 0  # wsd: number of last steps, in which the rate falls to zero; 0: none, to be decided later
    config.optim.steps = config.get_ref("steps")
    config.optim.beta1 = 0.9  # paper A.2
    config.optim.beta2 = 0.95  # 0.999 "causes loss spikes", paper A.2
    config.optim.epsilon = 1e-8  # not in the paper; the usual value
    config.optim.weight_decay = 0.0  # "did not change representation quality", paper A.2
    config.optim.loss_spike_factor = 0.0  # skip the update of a batch whose loss is above this many times the running mean, for example 2; 0: never
    config.optim.clip_norm = 0.0  # maximum norm of the gradient; 0: no clipping, as the paper mentions none
    config.optim.ema_decay = 0.0  # of a moving average of the weights, evaluated beside them and read by --ema, for example 0.999; 0: none
    config.optim.base_width = 0  # muP: the width for which learning_rate was found, at the same head size (Yang et al. 2022); 0: off, see training/rates.py
    config.optim.layer_decay = 1.0  # fine-tuning: a layer's rate is this times that of the layer above, for example 0.75 (BEiT, 2021); 1: all the same
    config.optim.frozen_layers = 0  # fine-tuning: the embeddings and so many first blocks are not trained; 0: all are

    config.loss = ConfigDict()
    config.loss.generative = 1.0  # weight of the model's own objective, paper 2.4
    config.loss.classification = 0.0  # weight of the class head's loss; 1 in the paper's fine-tuning, 2.4
    config.loss.mask_probability = 0.15  # bert: share of pixels masked, paper 2.1
    config.loss.evaluation_masks = 5  # bert with a class head: number of masks that vote on the class, paper 2.4

    config.best = ConfigDict()
    config.best.metric = ""  # save the best model by this metric of the validation split: accuracy | nats_per_pixel | ...; "": do not
    config.best.patience = 0  # number of evaluations without improvement after which the run ends; 0: never

    config.mesh = ConfigDict()
    config.mesh.data = 1  # replicas of the model
    config.mesh.fsdp = -1  # shards of parameters and batch; -1: all remaining devices
    config.mesh.tensor = 1  # shards of heads and mlp

    config.max_consecutive_skips = 10  # the run stops after this many updates in a row were skipped because loss or gradient was not finite

    config.log_every = 100  # steps
    config.track = ""  # wandb:PROJECT or wandb:ENTITY/PROJECT, see igpt_jax/training/tracking.py; "": none
    config.profile = ()  # first and last step of a trace in WORKDIR/profile, --config.profile=10,12 or "(10, 12)"; (): none. The first step of a start compiles
    config.eval_every = 5_000  # steps
    config.eval_images = 10_000  # images of the validation split, drawn at random once; 0: all
    config.eval_pictures = 0  # held-out images that are completed after each evaluation, for TensorBoard and wandb; 0: none. Each takes as long as a sample
    config.save_every = 5_000  # steps
    config.keep_last = 3  # number of checkpoints
    config.keep_every = 0  # steps; checkpoints at multiples of this are never deleted; 0: none
    return config.lock()
