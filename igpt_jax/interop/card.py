"""The model card of a model that is uploaded: what its checkpoint says about data, training and numbers, and how to load it."""

import json
import pathlib
from typing import Any

from igpt_jax.data import pipeline
from igpt_jax.extras import install
from igpt_jax.interop.pack import is_portable
from igpt_jax.model.transformer import parameter_count
from igpt_jax.training.checkpoints import Pretrained

HEADER = """---
library_name: transformers
pipeline_tag: {task}
tags:
- image-gpt
- imagegpt
- igpt_jax
---
<!-- Name the licence above, in a line like "license: apache-2.0". The program that wrote this card does not know it. -->
"""
TEXT = """
# {title}

An Image GPT, "Generative Pretraining from Pixels" (Chen et al., 2020), of {size} x {size} pixels, trained with igpt_jax and written for transformers.

## Use

With transformers:

```python
from transformers import AutoImageProcessor, {architecture}

processor = AutoImageProcessor.from_pretrained("{repository}")
model = {architecture}.from_pretrained("{repository}")
```

With igpt_jax, after `{install}`:

```python
import igpt_jax

pretrained = igpt_jax.load("hf:{repository}")
```

The palette of the model is `clusters` in preprocessor_config.json. {view}

## What the checkpoint says

| what | value |
|---|---|
{rows}

## Not stated

The licence, the limits of the model and what it must not be used for: the author adds them here.
"""


def model_card(pretrained: Pretrained, repository: str, architecture: str) -> str:
    """Return the README.md of a repository, OWNER/NAME, that holds the model as a class of transformers. It names no path of the machine."""
    size, classifies = pretrained.image_size, architecture == "ImageGPTForImageClassification"
    facts = _model(pretrained, classifies) | _training(pretrained.config, pretrained.step) | _results(pretrained)
    texts = {"title": repository.split("/")[-1], "size": size, "architecture": architecture, "repository": repository, "view": _view(pretrained)}
    texts["install"] = install("hub")
    header = HEADER.format(task="image-classification" if classifies else "unconditional-image-generation")
    return header + TEXT.format(**texts, rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()))


def _view(pretrained: Pretrained) -> str:
    """The sentence about the square of a picture."""
    view, size = pipeline.view_of(pretrained.config, pretrained.image_size), pretrained.image_size
    if view == "squash":
        return f"The image processor squashes a picture to {size} x {size} pixels, as in the model's training."
    return f"The model was trained with the view `{view}`, and the image processor squashes a picture to {size} x {size} pixels: crop it to a square first."


def _model(pretrained: Pretrained, classifies: bool) -> dict[str, str]:
    config, palette = pretrained.model_config, pretrained.palette
    facts = {
        "model": f"{config.layers} layers, width {config.width}, {config.heads} heads, {parameter_count(pretrained.model):,} parameters in the checkpoint",
        "images": f"{pretrained.image_size} x {pretrained.image_size} pixels in {palette.size} colours",
        "objective": config.objective,
    }
    if classifies:
        names = ", ".join(map(str, pretrained.class_names or ())) or "not named"
        facts["classes"] = f"{config.classes}: {names}"
    return facts


def _training(recipe: dict[str, Any], step: int) -> dict[str, str]:
    """What a recipe says; a converted model has no steps of its own."""
    data, optim, facts = recipe.get("data", {}), recipe.get("optim", {}), {}
    if origin := recipe.get("converted_from"):
        facts["converted from"] = origin if origin.startswith("hf:") else pathlib.PurePath(origin).name
    if source := data.get("source"):
        facts["data"] = source if is_portable(source) else f"not public: a source of the kind {source.partition(':')[0]}"
        facts["augmentation"] = data.get("augment", "none")
    if "batch_size" in recipe:
        facts["training"] = f"{step:,} steps of {recipe['batch_size']:,} images"
    if "learning_rate" in optim:
        facts["learning rate"] = f"{optim['learning_rate']:g}, {optim.get('schedule', 'constant')}, {optim.get('warmup_steps', 0):,} steps of warm-up"
    if "seed" in recipe:
        facts["seed"] = str(recipe["seed"])
    return facts


def _results(pretrained: Pretrained) -> dict[str, str]:
    """The numbers of the run's own evaluation at its last step, if the model is that of this step."""
    path = pathlib.Path(pretrained.path).parent.parent / "result.json"
    if not path.is_file():
        return {}
    result = json.loads(path.read_text())
    if result.get("step") != pretrained.step:
        return {}
    known = {"nats_per_pixel": "nats per pixel", "accuracy": "accuracy"}
    return {f"{known[name]}, {result.get('split', '')} images": f"{result[name]:.4f}" for name in known if name in result}
