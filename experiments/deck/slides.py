"""Slides in Markdown with placeholders, which are filled from files.

    {{digits.json: test.nats_per_pixel | .3f}}                a number of experiments/results/digits.json, formatted as Python does
    {{objectives.json: rows.[way=kNN,objective=bert].mean | .1%}}      of its rows, the one with these factors
    {{configs/s.py: model.layers}}                            a value of a recipe; `parameters` counts its model's
    {{picture: completions.png or digits_completions.png | alternative text}}      the first file that exists
    {{table: speed}}                                          a function of tables.py

If the file does not exist, the slide says "not run". The tooltip of a number is its source, and the footer of a slide names its files.
"""

import dataclasses
import html
import importlib
import json
import pathlib
import re
from collections.abc import Iterable
from functools import cache, partial

from igpt_jax.types import Recipe

PATH = re.compile(r"\[[^\]]*\]|[^.\[\]]+")
PLACEHOLDER = re.compile(r"\{\{(.+?)\}\}")
LINK = re.compile(r"\[([^\]]+)\]\((?:experiments/results/)?([^)]+)\)")
NOTES = "\nNote:\n"


@dataclasses.dataclass(frozen=True)
class Slide:
    """One slide; `sources` are the files that it was filled from, `missing` the files that do not exist; names in experiments/results/ or configs/."""

    number: int
    markdown: str
    sources: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The first heading, as text."""
        heading = re.search(r"^#+ (.+)$", self.markdown, re.MULTILINE)
        return html.unescape(re.sub("<[^>]+>", "", heading.group(1))) if heading else ""


def split(text: str) -> list[Slide]:
    """Return the slides of a text; lines of `---` separate them."""
    return [Slide(number, part.strip()) for number, part in enumerate(re.split(r"^---$", text, flags=re.MULTILINE), start=1)]


def fill(slide: Slide, results: pathlib.Path) -> Slide:
    """Return the slide with every placeholder filled, in a frame with a footer; ValueError if a placeholder names nothing."""
    sources: list[str] = []
    missing: list[str] = []

    def replace(placeholder):
        kind, _, rest = placeholder.group(1).partition(":")
        argument, _, more = (part.strip() for part in rest.partition("|"))
        try:
            if kind == "picture":
                text, used = _picture(argument, more, results)
            elif kind == "table":
                text, used = _table(argument, results)
            else:
                text, used = value(kind, argument, more, results), [kind]
        except FileNotFoundError as error:
            name = pathlib.Path(error.filename).name
            missing.append(name)
            return _not_run(name, block=kind in ("picture", "table"))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"slides.md, slide {slide.number} ({slide.title}), {placeholder.group()}: {error}") from None
        sources.extend(used)
        return text

    body, _, notes = PLACEHOLDER.sub(replace, slide.markdown).partition(NOTES)
    used, lacking = tuple(dict.fromkeys(sources)), tuple(dict.fromkeys(missing))
    framed = f'<div class="slide">\n\n{body.strip()}\n\n{footer(used, results)}\n\n</div>\n{NOTES}\n{notes.strip()}'
    return Slide(slide.number, framed, used, tuple(name for name in used if name.endswith(".png")), lacking)


def value(source: str, path: str, style: str, results: pathlib.Path) -> str:
    """Return one number or word of a result or a recipe as HTML with its source; FileNotFoundError without the file, ValueError without the key."""
    if source.startswith("configs/"):
        content = parameters(source) if path == "parameters" else _follow(recipe(source), source, path)
    else:
        content = _follow(json.loads((results / source).read_text()), source, path)
    if isinstance(content, (dict, list)):
        raise ValueError(f"{path} of {source} is not one value but {len(content)}")
    return f'<span class="value" title="{html.escape(f"{source}: {path}")}">{html.escape(format(content, style))}</span>'


def recipe(source: str) -> Recipe:
    """Return the recipe of a file in configs/; ValueError if there is none."""
    try:
        return importlib.import_module(source.removesuffix(".py").replace("/", ".")).get_config()
    except ModuleNotFoundError:
        raise ValueError(f"there is no recipe {source}") from None


@cache
def parameters(source: str, resolution: int = 0) -> int:
    """Return the number of parameters of a recipe's model without making it; `resolution` 0: that of the recipe."""
    import jax

    from igpt_jax.model.transformer import ImageGPT, ModelConfig, parameter_count

    config = recipe(source)
    config.data.image_size = resolution or config.data.image_size
    return parameter_count(jax.eval_shape(partial(ImageGPT, ModelConfig(**config.model)), jax.random.key(0)))


def footer(sources: Iterable[str], results: pathlib.Path) -> str:
    """Return the files of a slide, grouped by commit and hardware; a picture has those of the numbers that it was drawn from.

    A file made of other files, such as claims.json, has neither: it names each of them.
    """
    origins: dict[str, list[str]] = {}
    for name in sources:
        numbers = _numbers_of(results / name)
        content = json.loads(numbers.read_text()) if numbers else {}
        origin = f"commit {content['commit']}, {content['hardware']}" if "commit" in content else ""
        origins.setdefault(origin, []).append(name)
    return f"<footer>{html.escape('; '.join(', '.join(names) + (f' ({origin})' if origin else '') for origin, names in origins.items()))}</footer>"


def _follow(content, source, path):
    """The value at a path of keys and indices, `a.0.b`; of a list of rows, `[key=value, key=value]` is the one row that has these factors."""
    done = []
    for key in PATH.findall(path):
        if key.startswith("["):
            content = _row(content, key, f"{source} has no {path}")
        else:
            known = range(len(content)) if isinstance(content, list) else content.keys() if hasattr(content, "keys") else ()
            key = int(key) if isinstance(content, list) and key.isdigit() else key
            if key not in known:
                raise ValueError(f"{source} has no {path}: {'.'.join(done) or 'it'} has {', '.join(map(str, known)) or 'no keys'}")
            content = content[key]
        done.append(str(key))
    return content


def _row(rows, condition, problem):
    """The one of `rows` whose factors have the values of `[key=value, ...]`."""
    wanted = dict(part.strip().split("=", 1) for part in condition.strip("[]").split(","))
    found = [row for row in rows if all(str(row["factors"].get(key)) == value for key, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{problem}: {condition} fits {len(found)} of {len(rows)} rows, not 1")
    return found[0]


def _picture(names, alternative, results):
    candidates = [name.strip() for name in names.split(" or ")]
    chosen = next((name for name in candidates if (results / name).exists()), None)
    if chosen is None:
        raise FileNotFoundError(2, "no such picture", str(results / candidates[0]))
    return f'<figure><img src="pictures/{chosen}" alt="{html.escape(alternative)}" title="{chosen}"></figure>', [chosen]


def _table(name, results):
    from experiments.deck import tables

    if name not in tables.TABLES:
        raise ValueError(f"there is no such table, only {', '.join(tables.TABLES)}")
    text = tables.TABLES[name](results)
    return LINK.sub(r"\1", text), [source for _, source in LINK.findall(text)]


def _not_run(name, block):
    reason = f"not run: there is no experiments/results/{name}"
    return f'<div class="not-run">{reason}</div>' if block else f'<span class="not-run" title="{reason}">not run</span>'


def _numbers_of(path):
    """The JSON file that a picture was drawn from: of the same name, or of the longest prefix of its name; None if there is none."""
    parts = path.stem.split("_")
    names = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((numbers for name in names if (numbers := path.with_name(f"{name}.json")).exists()), None)
