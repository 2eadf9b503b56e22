"""claims.md: every claim under the sentences that it is about, and the rule by which the claims were made."""

from typing import Any

from experiments.report import intervals, sentences
from experiments.report.classifiers import describe
from experiments.report.sentences import GRANTED
from experiments.report.verdicts import ONLY, VERDICTS, turned

RULE = (
    "Classifiers of one study that differ in one thing are compared. Layers: the best inner layer with the first and with the last, the middle layer with the "
    "last, and the last with the first, at every snapshot; neighbouring layers, at the last snapshot. Raw pixels, objectives, numbers of masks, and nearest "
    "neighbours with linear probes: at each equal layer, and at the best. All else: at the best layer. Losses: those with scores of each image, or with "
    f"{intervals.ENOUGH} models of each kind. Factors of up to {sentences.MANY} levels: all pairs; longer ones: neighbours, and the last level with the first. "
    "Some comparisons are of more: fine-tuned models with raw pixels, the gap between two objectives before and after fine-tuning, sizes at equal losses, all "
    "models of which one has the lower loss, and the last steps of a run with the fall of its learning rate. A claim counts in each sentence that it is about, "
    "in the direction of the sentence, and once in the total. Two names of the same classifiers (the best layer, and its number) are one claim."
)
ROWS = (
    "An interval *over seeds* is over the seeds of each side of 3 models or more, and over test images too if their scores are stored. Any other is over test "
    "images alone, and its row is about these models only. The verdict is *supported* if the 95 % interval lies above 0, *contradicted* if it lies below 0, "
    "else *undecided*. [claims.json](claims.json) also has what each side was trained on."
)
HEAD = ["| study | what | with | difference | 95 % interval | verdict | models, images | paper |", "|---|---|---|--:|---|---|---|---|"]
SILENT = ["## Comparisons that are about no sentence", "", "Supported: the first of the two is better. Contradicted: the second is.", ""]
KINDS = {"paper": "about sentences of the paper", "granted": "about what it takes for granted", "none": "about neither"}


def table(found: dict[str, Any]) -> str:
    """Return claims.md: how the claims are counted, and a row for each, under each of its sentences."""
    lines = ["# All comparisons", "", note(found), "", RULE, "", ROWS, "", *_left_out(found)]
    for text in dict.fromkeys(sentence.text for sentence in sentences.SENTENCES):
        if rows := rows_about(found["claims"], text):
            lines += [f"## {text[0].upper()}{text[1:]}", ""]
            lines += _of_undecided_losses(found) if text == sentences.GENERATIVE else []
            lines += [*HEAD, *(_families(rows) if text == sentences.EVERY else map(_line, rows)), ""]
    if rows := [row | {"paper": None} for row in found["claims"] if not row["sentences"]]:
        lines += [*SILENT, *HEAD, *map(_line, rows), ""]
    return "\n".join(lines)


def rows_about(claims: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Return the claims about a sentence, in its direction, by the names that they have there, with its place and the paper's number."""
    rows = [(row, one) for row in claims for one in row["sentences"] if one["sentence"] == text]
    return [(turned(row) if one["opposite"] else row) | one for row, one in rows]


def kind_of(row: dict[str, Any]) -> str:
    """Return whether a claim is about a sentence of the "paper", about what it takes for "granted", or "none"."""
    places = {one["place"] for one in row["sentences"]} - {""}
    return "paper" if places - {GRANTED} else "granted" if places else "none"


def note(found: dict[str, Any]) -> str:
    """Return how many claims there are, and what they are about, as two sentences."""
    parts = [f"{_counted([row for row in found['claims'] if kind_of(row) == kind])} {text}" for kind, text in KINDS.items()]
    absent = f" Studies without a file: {', '.join(found['absent'])}." if found.get("absent") else ""
    chance = "No verdict is corrected for their number, and claims about the same model are not independent."
    return f"{_counted(found['claims'])}: {'; '.join(parts)}.{absent} {chance}"


def _counted(claims):
    verdicts = ", ".join(f"{sum(row['verdict'] == verdict for row in claims)} {verdict}" for verdict in VERDICTS)
    return f"{len(claims)} comparisons ({verdicts})"


def _left_out(found):
    """What is not compared: single classifiers, pairs that the rule leaves out, and files."""
    lines = []
    if alone := found["not compared"]:
        lines += ["Not compared:", "", *(f"- {one}" for one in alone), ""]
    if left := found["left out by the rule"]:
        lines += [f"Pairs that differ in one thing and that the rule leaves out: {', '.join(f'{name} {count:,}' for name, count in left.items())}.", ""]
    if absent := found.get("absent"):
        lines += [f"Studies without a file here, whose comparisons are missing: {', '.join(absent)}.", ""]
    if by_labels := found.get("images known by labels alone"):
        lines += [f"Older files, of which test images are compared by their labels and order alone, not by their pixels: {', '.join(by_labels)}.", ""]
    if outside := found["outside"]:
        lines += [f"Files that are in no comparison: {'; '.join(f'{name}.json ({why})' for name, why in outside.items())}.", ""]
    return lines


def _of_undecided_losses(found):
    """The pairs of models of which neither is the better generative one."""
    pairs = found["undecided losses"]
    if not pairs:
        return []
    return [f"The first of each pair has the lower test loss. {len(pairs)} pairs are left out, because their losses do not differ beyond chance:", "",
            *(f"- {pair}" for pair in pairs), ""]  # fmt: skip


def _line(row):
    if row["interval"] is None:
        return f"| {row['study']} | {row['what']} | {row['with']} | - | {row['why']} | {row['verdict']} | - | {row['paper'] or '-'} |"
    low, high = (amount(end, row["unit"]) for end in row["interval"])
    numbers = f"{amount(row['difference'], row['unit'])}{' points' if row['unit'] == 'accuracy' else ' nats'} | {low} to {high}"
    what = row["what"] + (", test losses {lower:.4f} and {higher:.4f}".format(**row["test losses"]) if "test losses" in row else "")
    return f"| {row['study']} | {what} | {row['with']} | {numbers} | {row['verdict']} | {_sample([row])} | {row['paper'] or '-'} |"


def _sample(rows):
    """The models and images of some rows, and whether their two sides are compared image by image."""
    paired = {row["paired"] for row in rows if row["over"].startswith("test images")}
    pairing = {frozenset([False]): ", not paired", frozenset([False, True]): ", not all paired"}.get(frozenset(paired), "")
    return f"{models(rows[0])}; {rows[0]['images']:,} images{pairing}"


def _families(rows):
    """A line for all layers of a curve, with the lowest and the highest difference."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["study"], describe({name: level for name, level in row["larger"].items() if name != "layer"})), []).append(row)
    for (study, context), family in groups.items():
        ends = " to ".join(amount(one(row["difference"] for row in family), "accuracy") for one in (min, max))
        verdicts = [(verdict, sorted(row["layer"] for row in family if row["verdict"] == verdict)) for verdict in VERDICTS]
        told = "; ".join(f"{verdict}: {', '.join(map(str, layers))}" for verdict, layers in verdicts if layers)
        yield f"| {study} | {len(family)} layers above raw pixels | {context} | {ends} points | - | {told} | {_sample(family)} | - |"


def models(row: dict[str, Any]) -> str:
    """Return of how many pretrained models, draws of labels and trainings from scratch a claim is, and whether its interval is over them."""
    pretrained, scratch = row["pretrained models"], row["trainings from scratch"]
    drawn = [(number, noun) for number, noun in zip(row["seeds"], row["of"], strict=True) if noun == "draws"]
    parts = [_draws(row, sorted({number for number, _ in drawn}))] if drawn else []
    if pretrained:
        parts.append(_counted_noun(pretrained, "pretrained model") if drawn else _pretrained(row))
    if scratch:
        parts.append(_counted_noun(scratch, "training") + " from scratch")
    return ", ".join([*(parts or ["no model"]), *(["over seeds"] if row["over"] != ONLY else [])])


def _draws(row, numbers):
    """The draws of labels of a row; those of different numbers of labels are different draws."""
    labels = {one.get("labels") for side in ("larger", "smaller") for one in (row[side] if isinstance(row[side], list) else [row[side]])}
    return f"{_listed(numbers)} draws{' of each' if len(labels) > 1 else ''}"


def _pretrained(row):
    """The pretrained models of a row, of each side where the sides do not share them."""
    numbers, count = [number for number, noun in zip(row["seeds"], row["of"], strict=True) if noun == "models"], row["pretrained models"]
    if len(numbers) == 1 or count < sum(numbers):
        return "one model" if count == 1 else f"{count} models"
    if len(set(numbers)) > 1:
        return f"{_listed(numbers)} models"
    return "one model of each" if numbers[0] == 1 else f"{numbers[0]} models of each"


def _counted_noun(number, noun):
    return f"{number} {noun}{'s' if number != 1 else ''}"


def _listed(numbers):
    return " and ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1]))))


def amount(value: float, unit: str) -> str:
    """Return a difference as text: points of accuracy, or nats."""
    return f"{100 * value:+.1f}" if unit == "accuracy" else f"{value:+.4f}"
