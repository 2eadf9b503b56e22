"""What the studies of few labels share: draws of labelled images, and probes and fine-tunings that see the same labels.

A draw is a random set of training images with their labels, the same for every model. Whatever else needs labels is chosen on the same validation images: the
layer of a probe, C or k, and the step at which a fine-tuning is best. Neither probes nor fine-tunings are fitted to validation images, so all use the same
labels. A fine-tuning ends when the validation accuracy has not improved for some evaluations (`stopped_by` "validation"), or at its last step ("budget").
All classifiers are tested on the same random test images, and it is stored for each image whether its class is right.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from experiments.report.measurements import Factors, Measurement, fingerprint_of, to_json, with_images
from experiments.report.summary import COUNTED, baselines_of
from experiments.studies import origin, stages
from igpt_jax.data import pipeline
from igpt_jax.finetune import finetune
from igpt_jax.interop import hub
from igpt_jax.probing import knn
from igpt_jax.probing.lbfgs_probe import C_VALUES, SUBSET_SEED, choose_subset, fit_probes, read_pixels, standardise
from igpt_jax.probing.splits import Sample, Splits, vote
from igpt_jax.probing.store import read_description, read_layer, stored_layers
from igpt_jax.training import checkpoints
from igpt_jax.training.evaluation import evaluate_checkpoint
from igpt_jax.training.setup import SAME_FIELDS
from igpt_jax.types import Recipe

STARTS = ("pretrained", "scratch")
LOSSES = {"joint": 1.0, "classification": 0.0}  # weight of the generative loss; that of the classification loss is 1


class Draw(NamedTuple):
    """A random set of labelled training images."""

    labels: int  # of each class
    number: int  # from 0; also the seed of the fine-tunings that see it


@dataclasses.dataclass(frozen=True)
class Budget:
    """When a fine-tuning ends, and how fast it learns."""

    finetune_steps: int  # maximum
    evaluate_every: int  # steps
    patience: int  # evaluations without improvement after which it ends; 0: it runs to its last step
    finetune_rate: float  # learning rate, constant; 0: a third of the recipe's


class BudgetFlags:
    """The flags of a Budget; after the command line is parsed, `value` is the Budget."""

    def __init__(self, flags):
        self.holders = {
            "finetune_steps": flags.DEFINE_integer("finetune_steps", 2_000, "maximum number of steps of a fine-tuning", lower_bound=1),
            "evaluate_every": flags.DEFINE_integer("evaluate_every", 40, "steps between evaluations on the validation images", lower_bound=1),
            "patience": flags.DEFINE_integer("patience", 5, "evaluations without improvement after which a fine-tuning ends; 0: never", lower_bound=0),
            "finetune_rate": flags.DEFINE_float("finetune_rate", 0.0, "learning rate of fine-tunings; 0: a third of the recipe's", lower_bound=0.0),
        }

    @property
    def value(self) -> Budget:
        return Budget(**{name: holder.value for name, holder in self.holders.items()})


class Model(NamedTuple):
    """A pretrained model, and where it and what is measured of it are."""

    objective: str
    checkpoint: str
    home: pathlib.Path  # of its features


def check(config: Recipe, probing: stages.Probing, largest: int, flag: str) -> None:
    """ValueError, before any work, where no images are left to choose on, or too few for the largest draw, which `flag` asks for."""
    if not config.data.validation:
        raise ValueError("config.data.validation=0 leaves no images to choose C, layer and step on: set the share held out, for example 0.1")
    if probing.solver != "lbfgs":
        raise ValueError(f"--solver={probing.solver} is not for so few images: leave the flag out")
    pool = probing.labels_per_class
    if pool and pool * (1 - config.data.validation) < largest:
        held_out = f"{pool} labelled images of each class without the share config.data.validation={config.data.validation:g} held out"
        raise ValueError(f"{flag} asks for {largest} images of each class, and there are {held_out}: raise --labels_per_class, or set it to 0 for all images")


def check_pool(images: pipeline.DataConfig, draw: Draw) -> None:
    """ValueError where a class has fewer training images than a draw takes."""
    dataset = pipeline.open_dataset(images, "train")
    rows_of_draw(dataset.labels, len(dataset.class_names), draw)


def given_models(config: Recipe, workdir: pathlib.Path, places: Sequence[str]) -> tuple[dict[str, Model], Recipe, dict[str, int | None]]:
    """Read the models in `places`. Return them by objective, the recipe with their sizes, and the checksums of their parameters.

    ValueError if two have the same objective, or other sizes than each other.
    """
    models, checksums, recipe = {}, {}, config
    for place in (str(hub.local(given)) for given in places):
        pretrained = checkpoints.load(place)
        objective = pretrained.model_config.objective
        if objective in models:
            raise ValueError(f"{models[objective].checkpoint} and {place} both are {objective} models: give one for each objective")
        sized = stages.changed(config, **sizes_of(pretrained))
        if models and {**sized.model, "objective": ""} != {**recipe.model, "objective": ""}:
            raise ValueError(f"{place} is not of the same size as {next(iter(models.values())).checkpoint}: the two cannot be compared")
        models[objective], checksums[objective], recipe = Model(objective, place, workdir / "models" / objective), pretrained.checksum, sized
    return models, recipe, checksums


def sizes_of(pretrained: checkpoints.Pretrained) -> dict[str, Any]:
    """Return the changes of a recipe (as stages.changed takes them) that give it the architecture of a model."""
    model = pretrained.model_config
    fields = {f"model__{name}": getattr(model, name) for name in SAME_FIELDS if name not in ("vocabulary", "positions")}
    return fields | {"model__unroll": model.layers, "palette__size": model.vocabulary, "data__image_size": pretrained.image_size}


def pretrain(config: Recipe, workdir: pathlib.Path, objective: str) -> Model:
    """Pretrain the recipe with an objective, once."""
    home = workdir / "models" / objective
    stages.pretrain(stages.changed(stages.with_palette(config, workdir), model__objective=objective), home)
    return Model(objective, str(home), home)


def generative_loss(model: Model, config: Recipe, images: pipeline.DataConfig) -> dict:
    """Return the model's loss on the test images, and the two baselines that count colours; once."""
    return stages.compute_once(model.home / "loss.json", lambda: _generative_loss(model, config, images), _made_of(model, images))


def _made_of(model, images):
    return {"model": origin.of_model(model.checkpoint), "images": origin.of_images(images)}


def _with_images(rows, made_of):
    """Measurements with the fingerprint of their test images, whose labels alone they know."""
    name = made_of["images"]["test_images"]
    return [row | {"fingerprint": with_images(row["fingerprint"], name)} for row in rows]


def _generative_loss(model, config, images):
    pretrained = checkpoints.load(model.checkpoint)
    train = pipeline.open_dataset(pipeline.config_for({"data": config.data.to_dict()}, pretrained.image_size, config.data.source), "all_train").draw(COUNTED)
    found = evaluate_checkpoint(model.checkpoint, source=images.source, loss_only=True)
    size = {"layers": pretrained.model_config.layers, "width": pretrained.model_config.width, "image_size": pretrained.image_size}
    kept = {name: found[name] for name in ("checkpoint", "step", "nats_per_pixel", "images")}
    return kept | size | {"baselines": baselines_of(pretrained, train, pipeline.open_dataset(images, "test"))}


# ---- probes ----


def probe_draws(model: Model, images: pipeline.DataConfig, draws: Sequence[Draw], C_values: Sequence[float] = C_VALUES) -> list[dict]:
    """Probe every layer, and raw pixels, with each draw, linearly and by nearest neighbours. Return measurements of the best layer and of raw pixels."""
    place = model.home / "features"
    stages.write_features(model.checkpoint, images, place)
    splits = Splits(place, read_description(place))
    layers = stored_layers(splits.description)

    def read(split: str, mask: int) -> np.ndarray:
        return np.stack([read_layer(place, split, layer, mask) for layer in layers])

    samples = {"model": splits.samples(read), "raw pixels": splits.samples(lambda split, mask: read_pixels(splits, split), masked=False)}
    scaled = {name: standardise(*sample) for name, sample in samples.items()}

    def both(draw: Draw, name: str) -> list[dict]:
        linear = _probe_draw(model, splits, draw, name, C_values, *scaled[name])
        return [linear, _neighbours_of_draw(model, splits, draw, name, *samples[name])]

    def compute(draw: Draw) -> dict:
        return {"rows": _with_images([probe for name in samples for probe in both(draw, name)], made_of)}

    rows, made_of = [], _made_of(model, images)
    for draw in draws:
        place = model.home / "probes" / f"{draw.labels}-{draw.number}.json"
        rows += stages.compute_once(place, partial(compute, draw), made_of)["rows"]
    return rows


def _probe_draw(model, splits, draw, name, C_values, training, validation, test):
    """The measurement of the linear probe of the best of the layers, or of raw pixels, for one draw. Features are standardised."""
    few = _few(training, splits.classes, draw)
    outcomes = fit_probes(few, validation, test, splits.classes, C_values, refit=False)
    number = max(range(len(outcomes)), key=lambda layer: outcomes[layer].row["validation"])  # the lowest of equally good layers
    row = outcomes[number].row
    return _probed(model, draw, name, "linear probe", test, outcomes[number].arrays["test"], few, validation, number, {"C": row["C"]}, row["validation"])


def _neighbours_of_draw(model, splits, draw, name, training, validation, test):
    """The measurement of nearest neighbours in the best of the layers, or of raw pixels, for one draw. Features are not standardised."""
    few = _few(training, splits.classes, draw)
    counts = knn.counts_for(len(few.labels))

    def predicted(sample: Sample, layer: int) -> np.ndarray:
        """Classes [counts, images] by the vote of the sample's masks."""
        sizes = knn.sizes_for(1.0, few.features.shape[2], counts[-1], 4 * few.features.shape[2], len(sample.labels), len(few.labels))
        found = [knn.nearest(features[layer], [few.features[layer]], counts[-1], sizes) for features in (sample.features, *sample.more)]
        return vote(np.stack([knn.classify(nearest, few.labels, splits.classes, counts) for nearest in found], axis=1))

    shares_LK = np.stack([(predicted(validation, layer) == validation.labels).mean(axis=1) for layer in range(len(few.features))])
    number, place = np.unravel_index(shares_LK.argmax(), shares_LK.shape)  # the lowest of equally good layers, and its smallest k
    classes_B, facts = predicted(test, number)[place], {"k": counts[place]}
    return _probed(model, draw, name, "kNN", test, classes_B, few, validation, int(number), facts, float(shares_LK[number, place]))


def _few(training, classes, draw):
    rows = rows_of_draw(training.labels, classes, draw)
    return Sample(training.features[:, rows], training.labels[rows])


def _probed(model, draw, name, way, test, predicted_B, few, validation, number, facts, share):
    """The measurement of a probe, with the facts that were chosen and the accuracy on validation images."""
    factors: Factors = {"labels": draw.labels, "way": way}
    if name == "model":
        factors |= {"objective": model.objective, "layer": "best"} | ({"masks": 1 + len(test.more)} if test.more else {})
    else:
        factors |= {"features": name}
    what = next(iter(facts)) + (" and the layer" if name == "model" else "")
    budget = f"{len(few.labels):,} labels; {what} chosen on {len(validation.labels):,} validation images, which are not used otherwise"
    facts = facts | {"validation": share} | ({"chosen_layer": number} if name == "model" else {})
    return stored(factors, draw, predicted_B, test.labels, budget) | facts


def rows_of_draw(labels_B: np.ndarray, classes: int, draw: Draw) -> np.ndarray:
    """Return the rows of the images of a draw; the same that igpt_jax.probe --labels-per-class draws."""
    return choose_subset(labels_B, classes, draw.labels, (SUBSET_SEED, draw.labels, draw.number))


def stored(factors: Factors, draw: Draw, predicted_B: np.ndarray, labels_B: np.ndarray, budget: str) -> dict:
    """Return a measurement for JSON."""
    right_B = (np.asarray(predicted_B) == labels_B).astype(float)
    return to_json(Measurement(factors, draw.number, right_B, budget=budget, fingerprint=fingerprint_of(labels_B)))


# ---- fine-tunings ----


def write_draw(images: pipeline.DataConfig, place: pathlib.Path, draw: Draw) -> str:
    """Write the images of one draw once; return their source. The validation split is complete, and there is no test split."""

    def write(folder):
        for split in ("train", "validation"):
            dataset = pipeline.open_dataset(images, split)
            if split == "train":
                dataset = dataset.keep(rows_of_draw(dataset.labels, len(dataset.class_names), draw))
            names = np.asarray(dataset.class_names)
            np.savez(folder / f"{split}.npz", images=dataset.images(0, len(dataset)), labels=dataset.labels, class_names=names)

    return f"npz:{stages.make_once(place, write, {'images': origin.of_images(images)})}"


def finetuning(config: Recipe, source: str, classes: int, draw: Draw, loss: str, budget: Budget) -> Recipe:
    """Return the recipe of one fine-tuning: a constant learning rate; the best model by validation accuracy is saved."""
    changes = {"data__source": source, "data__view": "center_square", "data__validation": 0.0, "model__classes": classes, "seed": draw.number}
    changes |= {"loss__generative": LOSSES[loss], "loss__classification": 1.0}
    changes |= {"optim__learning_rate": budget.finetune_rate or config.optim.learning_rate / 3, "optim__schedule": "constant", "optim__warmup_steps": 0}
    changes |= {"steps": budget.finetune_steps, "eval_every": budget.evaluate_every, "eval_images": 0, "save_every": budget.finetune_steps}
    changes |= {"batch_size": min(config.batch_size, draw.labels * classes), "best__metric": "accuracy", "best__patience": budget.patience}
    return stages.changed(config, **changes)


def finetune_draw(
    config: Recipe, workdir: pathlib.Path, model: Model, images: pipeline.DataConfig, draw: Draw, start: str, loss: str, budget: Budget
) -> list[dict]:
    """Fine-tune a model, or train one from random parameters (`start` scratch), on one draw. Return measurements; of bert also with one mask."""
    name = f"{model.objective}-{start}-{loss}-{draw.labels}-{draw.number}"
    source = write_draw(images, workdir / "images" / f"{draw.labels}-{draw.number}", draw)
    recipe = finetuning(config, source, len(pipeline.open_dataset(images, "train").class_names), draw, loss, budget)
    weights = origin.of_model(model.checkpoint)

    def save_palette(folder: pathlib.Path) -> None:
        checkpoints.load(model.checkpoint).palette.save(folder / "palette.npy")

    palette = stages.make_once(model.home / "palette", save_palette, {"model": weights})
    recipe = stages.changed(recipe, model__objective=model.objective, palette__path=str(palette / "palette.npy"))
    place = workdir / "finetuned" / name
    made_of = {"images": origin.of_images(pipeline.DataConfig(**recipe.data))} | ({"model": weights} if start == "pretrained" else {})
    stages.train_once(place, lambda: finetune(recipe, place, model.checkpoint if start == "pretrained" else None), made_of)
    factors = {"labels": draw.labels, "objective": model.objective, "way": "fine-tuned", "start": start, "loss": loss}
    made_of = {"model": origin.of_model(place / "best"), "images": origin.of_images(images)}
    rows = stages.compute_once(place / "measured.json", lambda: {"rows": _with_images(_test(place, images, recipe, factors, draw), made_of)}, made_of)
    return rows["rows"]


def _test(place, images, recipe, factors, draw) -> Iterator[dict]:
    """The measurements of the best model of a fine-tuning."""
    best = json.loads((place / "result.json").read_text())["best"]
    steps = checkpoints.load(place).step
    stopped_by = "validation" if 0 < recipe.best.patience <= best["since"] else "budget"
    validation = len(pipeline.open_dataset(pipeline.DataConfig(**recipe.data), "validation"))
    ended = f"which ended it after {recipe.best.patience} evaluations" if stopped_by == "validation" else "the budget ended it"
    budget = f"{draw.labels * recipe.model.classes:,} labels; best step {best['step']:,} of {steps:,} x {recipe.batch_size} images chosen on "
    budget += f"{validation:,} validation images, which are not used otherwise; {ended}"
    facts = {"validation": best["value"], "step": best["step"], "steps": steps, "images_seen": steps * recipe.batch_size, "stopped_by": stopped_by}
    facts |= {"learning_rate": recipe.optim.learning_rate, "batch_size": recipe.batch_size}
    each = evaluate_checkpoint(place / "best", source=images.source, view=images.view, each_image=True)["each_image"]
    votes = {recipe.loss.evaluation_masks: "predicted", 1: "predicted_one_mask"} if "predicted_one_mask" in each else {0: "predicted"}
    for masks, key in votes.items():
        yield stored(factors | ({"masks": masks} if masks else {}), draw, each[key], each["label"], budget) | facts
