"""README's table of sentences, of the paper or not: how many comparisons support each, contradict it, or leave it undecided.

Everything is read from claims.json, which `python -m experiments.report.claims` writes. `python -m experiments.report.readme` writes the block.
"""

import pathlib
import statistics
from typing import Any

from experiments.report import claims, claims_table, sentences
from experiments.report.measurements import read_results
from experiments.report.verdicts import VERDICTS

TEXT = "text"  # the place of a sentence that has no figure or table
HEAD = ["| sentence (its place in the paper) | supported | contradicted | undecided | differences: lowest, median, highest |", "|---|--:|--:|--:|---|"]


def block(results: pathlib.Path) -> str:
    """Return the table: a row for each sentence that was compared, and what stands beside it."""
    path = results / "claims.json"
    if not path.exists():
        return f"Not run: `{claims.COMMAND}`.\n"
    found = read_results(path)
    texts = dict.fromkeys(sentence.text for sentence in sentences.SENTENCES)
    shown = {text: rows for text in texts if (rows := claims_table.rows_about(found["claims"], text))}
    lines = [line(text, rows) for text, rows in shown.items() if rows[0]["place"] != TEXT]
    others = [f"{text} {' / '.join(counts(rows))}" for text, rows in shown.items() if rows[0]["place"] == TEXT]
    also = [f"Sentences without a figure or table, supported / contradicted / undecided: {'; '.join(others)}.", ""] if others else []
    limits = " ".join(filter(None, (about_rows(shown), of_losses(found, shown), of_figure_4(found["claims"]), of_fine_tunings(found))))
    return "\n".join([*HEAD, *lines, "", *also, limits, "", note(found), ""])


def counts(rows: list[dict[str, Any]]) -> list[str]:
    """Return how many claims are supported, contradicted and undecided, as text."""
    return [str(sum(row["verdict"] == verdict for row in rows)) for verdict in VERDICTS]


def line(text: str, rows: list[dict[str, Any]]) -> str:
    """Return the row of one sentence, from its claims."""
    places = ", ".join(filter(None, dict.fromkeys(row["place"] for row in rows)))
    return f"| {text}{f' ({places})' if places else ''} | {' | '.join(counts(rows))} | {span(rows)} |"


def span(rows: list[dict[str, Any]]) -> str:
    """Return the lowest, the median and the highest difference of some claims, as text."""
    measured = [row["difference"] for row in rows if row["difference"] is not None]
    if not measured:
        return "-"
    [unit] = {row["unit"] for row in rows}
    shown = (min(measured), statistics.median(measured), max(measured))
    return ", ".join(claims_table.amount(one, unit) for one in shown) + {"accuracy": " points", "nats": " nats"}[unit]


def about_rows(shown: dict[str, list[dict[str, Any]]]) -> str:
    """Return how many rows of sentences are of the paper, taken for granted by it, or neither."""
    kinds = [claims_table.kind_of({"sentences": rows}) for rows in shown.values()]
    return (
        f"Of these {len(kinds)} sentences {kinds.count('paper')} stand in the paper, {kinds.count('granted')} it takes for granted, "
        f"and of {kinds.count('none')} it says nothing."
    )


def of_losses(found: dict[str, Any], shown: dict[str, list[dict[str, Any]]]) -> str:
    """Return how many pairs of models the sentence on better generative models is about, and how many not."""
    told, undecided = len(shown.get(sentences.GENERATIVE, ())), len(found["undecided losses"])
    pairs = told + undecided
    if not pairs:
        return ""
    return (
        f"Which of two models is the better generative one is decided by their test losses: for {told} of {pairs} pairs; "
        f"{undecided} pairs have losses that do not differ beyond chance, and are not counted."
    )


def of_figure_4(rows: list[dict[str, Any]]) -> str:
    """Return on how many pretrainings the comparisons of figure 4 rest, if it is one of each objective; else nothing."""
    about = [row for row in rows if any(one["place"] == "figure 4" for one in row["sentences"])]
    if not about or any(row["pretrained models"] > len({one["objective"] for one in claims.sides_of(row) if "objective" in one}) for row in about):
        return ""
    return "Figure 4 rests on one pretraining of each objective: its intervals are over test images and draws of the labels, not over pretrainings."


def of_fine_tunings(found: dict[str, Any]) -> str:
    """Return how many fine-tunings were ended by their budget, as a sentence; nothing if none was run."""
    ended = found["fine-tunings ended by"]
    number, by_budget = sum(ended.values()), ended.get("budget", 0)
    if not by_budget:
        return ""
    if by_budget == number:
        return f"Every fine-tuning, {number} in all, was ended by its budget of steps, and none because its validation accuracy no longer rose."
    return f"{by_budget} of {number} fine-tunings were ended by their budget of steps, and not because their validation accuracy no longer rose."


def note(found: dict[str, Any]) -> str:
    """Return what the counts are, and where all comparisons are."""
    accuracies = [row for row in found["claims"] if row["unit"] == "accuracy"]
    unpaired = sum(row["paired"] is False for row in accuracies)
    return (
        f"{claims_table.note(found)} [claims.md](experiments/results/claims.md) has the rule by which they are made, each of them, and what is not compared. "
        "Supported and contradicted: the 95 % interval lies above 0, or below. A comparison counts in each sentence that it is about, and once in the total. "
        f"{unpaired} comparisons of accuracies are not paired image by image, because their study stored no more than accuracies, and have wider intervals."
    )
