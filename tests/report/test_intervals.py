"""95 % intervals of differences, recomputed by other means."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.report import intervals
from experiments.report.intervals import Sample, contrast


def bits(share, images, seed=0):
    return (np.random.default_rng(seed).random(images) < share).astype(float)


def sample(scores, seeds=None, **options):
    scores_RB = np.atleast_2d(np.asarray(scores, float))
    return Sample(tuple(seeds or range(len(scores_RB))), scores_RB.mean(axis=1), scores_RB.shape[1], scores_RB, **options)


def at(share, images):
    return (np.arange(images) < share * images).astype(float)


def bare(accuracies, images):
    """A sample of which the scores of each image were not stored."""
    return Sample(tuple(range(len(accuracies))), np.asarray(accuracies, float), images, None)


def related(images=2_000, models=1, noise=0.3, seed=0):
    """Scores [2, models, images] of two kinds of classifiers that are right on much the same images."""
    generator = np.random.default_rng(seed)
    difficulty_B = generator.random(images)
    return (difficulty_B + noise * generator.standard_normal((2, models, images)) < np.array([0.5, 0.55])[:, None, None]).astype(float)


def test_a_pair_of_classifiers_has_bonett_and_price_s_interval():
    """By hand: counts of images that one alone has right, each with one more, and two more images."""
    (worse,), (better,) = related(400)
    gained, lost = ((better > worse).sum(), (better < worse).sum())
    p, q, total = (gained + 1) / 402, (lost + 1) / 402, 402
    half = stats.t.ppf(0.975, 399) * math.sqrt((p + q - (p - q) ** 2) / total)
    found = contrast([(1, sample(better)), (-1, sample(worse))])
    assert found[:3] == pytest.approx(((gained - lost) / 400, p - q - half, p - q + half), abs=1e-12)
    assert found.paired and not found.seeds


def test_scipy_s_bootstrap_has_nearly_the_same_interval():
    (worse,), (better,) = related(2_000)
    found = contrast([(1, sample(better)), (-1, sample(worse))])
    each, options = (better - worse,), {"method": "percentile", "n_resamples": 4_000, "batch": 500, "rng": np.random.default_rng(0)}
    resampled = stats.bootstrap(each, np.mean, **options).confidence_interval
    assert found[1:3] == pytest.approx(tuple(resampled), abs=0.0015)
    losses = np.random.default_rng(1).gamma(2.0, 1.0, (2, 2_000))
    found = contrast([(1, sample(losses[0], unit="nats")), (-1, sample(losses[1], unit="nats"))])
    assert found[1:3] == pytest.approx(tuple(stats.ttest_rel(*losses).confidence_interval()), abs=1e-12)


def test_two_models_are_judged_by_their_mean_on_each_image():
    worse, better = related(300, models=2)
    difference = [(better[0][image] + better[1][image]) / 2 - (worse[0][image] + worse[1][image]) / 2 for image in range(300)] + [-1, 1]
    mean = sum(difference) / 302
    half = stats.t.ppf(0.975, 299) * math.sqrt(sum((one - mean) ** 2 for one in difference)) / 302
    found = contrast([(1, sample(better)), (-1, sample(worse))])
    assert found[1:3] == pytest.approx((mean - half, mean + half), abs=1e-12) and not found.seeds


def by_loops(better, worse, shared):
    """The interval of three or more models of each side, by loops over images and models."""
    models, images = better.shape
    each = [sum(better[m][b] - worse[m][b] for m in range(models)) / models for b in range(images)]
    more = [*each, -1, 1]
    mean = sum(more) / len(more)
    of_images = sum((one - mean) ** 2 for one in more) / len(more) ** 2
    parts = []
    for scores in [better - worse] if shared else [better, worse]:
        rows, columns, overall = [sum(row) / images for row in scores], [sum(column) / models for column in scores.T], scores.sum() / scores.size
        of_seeds = sum((row - overall) ** 2 for row in rows) / (models - 1) / models
        rest = sum((scores[m][b] - rows[m] - columns[b] + overall) ** 2 for m in range(models) for b in range(images))
        parts.append((of_seeds, min(of_seeds, rest / ((models - 1) * (images - 1)) / (models * images))))
    variance = of_images + sum(whole - single for whole, single in parts)
    freedom = variance**2 / (of_images**2 / (images - 1) + sum(whole**2 / (models - 1) for whole, _ in parts))
    half = stats.t.ppf(0.975, freedom) * math.sqrt(variance)
    return mean - half, mean + half


@pytest.mark.parametrize("models", [3, 4])
@pytest.mark.parametrize("shared", [True, False])
def test_three_models_of_each_side_are_judged_over_seeds_too(models, shared):
    """`shared`: models of equal seeds are of one pretraining, and their accuracies move together."""
    generator, origins = np.random.default_rng(models), ("same", "same") if shared else ("one", "other")
    limits_R = 0.5 + 0.1 * np.arange(models)[:, None]
    worse, better = ((generator.random((models, 200)) < limit).astype(float) for limit in (limits_R, limits_R + 0.05))
    found = contrast([(1, sample(better, origin=origins[0])), (-1, sample(worse, origin=origins[1]))])
    assert found.seeds and found[1:3] == pytest.approx(by_loops(better, worse, shared), abs=1e-12)
    unknown = contrast([(1, sample(better)), (-1, sample(worse))])
    assert unknown[1:3] == pytest.approx(by_loops(better, worse, False), abs=1e-12)
    other_seeds = contrast([(1, sample(better, origin="same")), (-1, sample(worse, range(5, 5 + models), origin="same"))])
    assert other_seeds == unknown
    assert (found.high - found.low < unknown.high - unknown.low) == shared


def test_models_of_equal_accuracy_have_no_variance_over_seeds():
    """Their accuracies differ less than chance on single images makes likely: nothing is left of the seeds' part, but its degrees of freedom count."""
    better, worse = (np.stack([np.roll(at(share, 200), 60 * seed) for seed in range(3)]) for share in (0.6, 0.5))
    found = contrast([(1, sample(better)), (-1, sample(worse))])
    assert found[1:3] == pytest.approx(by_loops(better, worse, False), abs=1e-12) and found.seeds
    nearly = better.copy()
    nearly[0, :2] = 0  # 116 to 120 of 200 are right: a variance below that of single images
    found = contrast([(1, sample(nearly)), (-1, sample(worse))])
    assert found[1:3] == pytest.approx(by_loops(nearly, worse, False), abs=1e-12)


def test_what_single_images_add_is_known_of_equal_images_alone():
    """Of other images, or of accuracies alone, the whole variance over seeds is kept."""
    generator = np.random.default_rng(0)
    one, other = (generator.random((3, images)) < 0.5 for images in (200, 199))
    variance = float((one.mean(axis=1) - other.mean(axis=1)).var(ddof=1)) / 3
    for second in (sample(other, origin="same"), bare(other.mean(axis=1), 199)._replace(origin="same")):
        [part] = intervals._over_seeds([(1, sample(one, origin="same")), (-1, second)])
        assert part == (pytest.approx(variance), 2, 0.0)
    [part] = intervals._over_seeds([(1, sample(one, origin="same"))])
    assert 0 < part.counted_twice <= part.variance


def test_the_side_of_three_models_counts_its_seeds_against_a_single_model():
    generator = np.random.default_rng(0)
    many = np.stack([generator.random(500) < share for share in (0.4, 0.5, 0.6)]).astype(float)
    one = bits(0.5, 500, seed=9)
    found, alone = contrast([(1, sample(many)), (-1, sample(one))]), contrast([(1, sample(many[:2])), (-1, sample(one))])
    assert found.seeds and not alone.seeds and found.high - found.low > 0.3 > alone.high - alone.low  # the seeds' part: 4.3 x 0.1 / sqrt(3), twice


def test_four_means_are_a_difference_of_differences():
    a, b, c, d = (bits(share, 500, seed) for seed, share in enumerate((0.8, 0.6, 0.7, 0.65)))
    terms = [(1, sample(a)), (-1, sample(b)), (-1, sample(c)), (1, sample(d))]
    each = np.concatenate([a - b - c + d, [-1, 1]])
    half = stats.t.ppf(0.975, 499) * each.std() / math.sqrt(502)
    assert contrast(terms)[:3] == pytest.approx(((a - b - c + d).mean(), each.mean() - half, each.mean() + half), abs=1e-12)
    losses = [sample(10 + 3 * one, unit="nats") for one in (a, b, c, d)]
    scaled = contrast([(sign, loss) for (sign, _), loss in zip(terms, losses, strict=True)])
    half = 3 * stats.t.ppf(0.975, 499) * (a - b - c + d).std(ddof=1) / math.sqrt(500)
    assert scaled.high - scaled.difference == pytest.approx(half) and scaled.difference == pytest.approx(3 * (a - b - c + d).mean())


def test_accuracies_alone_are_compared_as_of_two_samples_of_images():
    """Agresti and Caffo's interval with Welch's degrees of freedom."""
    better, worse = (180 + 1) / 302, (150 + 1) / 302
    parts = [share * (1 - share) / 302 for share in (better, worse)]
    freedom = sum(parts) ** 2 / sum(part**2 / 299 for part in parts)
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    for terms in ([bare([0.6], 300), bare([0.5], 300)], [sample(np.arange(300) < 180), bare([0.5], 300)], [bare([0.7, 0.5], 300), bare([0.4, 0.6], 300)]):
        found = contrast([(1, terms[0]), (-1, terms[1])])
        assert found[:3] == pytest.approx((0.1, better - worse - half, better - worse + half), abs=1e-12) and not found.paired


def test_other_images_are_not_paired():
    """Other numbers of images, or as many of which the labels have another order; without fingerprints equal numbers are equal images."""
    (worse,), (better,) = related(400)
    paired, unpaired = contrast([(1, sample(better)), (-1, sample(worse))]), contrast([(1, bare([better.mean()], 400)), (-1, bare([worse.mean()], 400))])
    assert paired.paired and not unpaired.paired and unpaired.high - unpaired.low > 1.15 * (paired.high - paired.low)
    for one, other, same in (("a", "b", False), ("a", "a", True), ("a", "", True), ("", "", True)):
        found = contrast([(1, sample(better, fingerprint=one)), (-1, sample(worse, fingerprint=other))])
        assert found == (paired if same else unpaired)
    fewer = contrast([(1, sample(better)), (-1, sample(worse[:399]))])
    assert not fewer.paired and fewer.difference == better.mean() - worse[:399].mean()


def test_seeds_of_accuracies_alone():
    """What chance on single images adds is not known, so nothing is subtracted."""
    accuracies = np.array([0.5, 0.6, 0.7])
    found = contrast([(1, bare(accuracies, 1_000)), (-1, bare([0.5], 1_000))])
    share, base = 601 / 1_002, 501 / 1_002
    parts = [(share * (1 - share) / 1_002, 999), (base * (1 - base) / 1_002, 999), (0.01 / 3, 2)]
    variance = sum(part for part, _ in parts)
    half = stats.t.ppf(0.975, variance**2 / sum(part**2 / freedom for part, freedom in parts)) * math.sqrt(variance)
    assert found.seeds and found[1:3] == pytest.approx((share - base - half, share - base + half), abs=1e-12)


def test_equal_scores_tell_nothing():
    for scores in (np.ones(100), np.zeros(100), bits(0.5, 100)):
        found = contrast([(1, sample(scores)), (-1, sample(scores))])
        assert found.difference == 0 and found.low == -found.high < 0 and found.high == pytest.approx(stats.t.ppf(0.975, 99) * math.sqrt(2) / 102)
    nats = sample(np.linspace(1, 2, 100), unit="nats")
    assert contrast([(1, nats), (-1, nats)])[:3] == (0, 0, 0)


def test_one_accuracy_has_an_interval_inside_0_and_1():
    found = contrast([(1, sample(np.arange(100) < 30))])
    share = 31 / 102
    half = stats.t.ppf(0.975, 99) * math.sqrt(share * (1 - share) / 102)
    assert found[:3] == pytest.approx((0.3, share - half, share + half), abs=1e-12) and found.paired
    assert contrast([(1, sample(np.ones(20)))]).high == 1 and contrast([(1, sample(np.zeros(20)))]).low == 0
    assert contrast([(1, sample(np.ones(2))), (-1, sample(np.zeros(2)))])[:3] == (1, -1, 1)
    assert contrast([(1, sample([5.0, 9.0], unit="nats"))]).high > 9
    ones, zeros = sample(np.ones(2)), sample(np.zeros(2))
    assert contrast([(1, ones), (-1, zeros), (-1, zeros), (1, ones)])[:3] == (2, -2, 2)
    assert contrast([(1, zeros), (-1, ones), (-1, ones)])[:3] == (-2, -2, 1)


def test_the_width_falls_with_the_root_of_the_images():
    widths = [np.subtract(*contrast([(1, sample(bits(0.5, images))), (-1, sample(bits(0.5, images, 1)))])[2:0:-1]) for images in (400, 1_600, 6_400)]
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1) and widths[1] / widths[2] == pytest.approx(2, rel=0.1)


NAN = np.array([0.0, 1.0, np.nan])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([sample([1.0]), sample([0.0])], "needs 2 or more images, here 1"),
        ([sample(np.ones(3)), sample(NAN)], "1 of 3 scores are not numbers"),
        ([bare([0.5, np.inf], 3), bare([0.5], 3)], "1 of 2 scores are not numbers"),
        ([sample(np.ones(3)), sample(np.ones(3), unit="nats")], "scores of accuracy and nats cannot be subtracted"),
        ([bare([2.0], 3)._replace(unit="nats"), sample(np.ones(3), unit="nats")], "an interval of nats needs the scores of each image, or 3 models"),
        ([bare([2.0, 2.1, 2.2], 3)._replace(unit="nats"), bare([2.0, 2.1], 3)._replace(unit="nats")], "the scores of each image, or 3 models of each kind"),
        ([bare([2.0], 3)._replace(unit="nats")], "an interval of nats needs the scores of each image, or 3 models"),
    ],
)
def test_what_cannot_be_compared_is_refused(terms, message):
    with pytest.raises(ValueError, match=message):
        contrast(list(zip((1, -1), terms, strict=False)))


def losses(values, origin=None, stored=False):
    values = np.array(values)
    scores_RB = values[:, None] + np.linspace(-1, 1, 5) if stored else None
    return Sample(tuple(range(len(values))), values, 5, scores_RB, "nats", origin=origin)


def test_losses_without_scores_of_images_have_the_part_of_the_seeds_alone():
    """Welch's t where the seeds are others, Student's t of the differences where they are shared; one side with scores of images changes nothing."""
    one, other = [2.0, 2.1, 2.3, 2.2], [1.9, 1.7, 1.75]
    found = contrast([(1, losses(one)), (-1, losses(other))])
    assert [found.low, found.high] == pytest.approx(list(stats.ttest_ind(one, other, equal_var=False).confidence_interval()))
    assert (found.paired, found.seeds, found.images) == (False, True, False) and found == contrast([(1, losses(one, stored=True)), (-1, losses(other))])
    shared = contrast([(1, losses(one[:3], "a")), (-1, losses(other, "a"))])
    assert [shared.low, shared.high] == pytest.approx(list(stats.ttest_rel(one[:3], other).confidence_interval()))
    assert contrast([(1, losses(one[:1], stored=True)), (-1, losses(other[:1], stored=True))]).images
    assert [intervals.has_interval([losses(one), side]) for side in (losses(other), losses(other[:2]), losses(other[:2], stored=True))] == [True, False, False]
    assert intervals.has_interval([losses(one[:2], stored=True), losses(other[:1], stored=True)]) and intervals.has_interval([bare([0.5], 3)])


def test_two_images_are_enough():
    assert np.isfinite(contrast([(1, sample([1.0, 0.0])), (-1, sample([0.0, 0.0]))])[:3]).all()


def test_the_interval_of_a_mean():
    """By the table of Student's t; along either axis; of one value, which has no deviation, and of values that are all 0."""
    low, high = intervals.interval_of_mean(np.array([[1.0, 2.0, 3.0, 4.0]]))
    assert low[0] == pytest.approx(2.5 - 3.182446 * 1.290994 / 2, abs=1e-5) and high[0] == pytest.approx(5 - low[0])
    values = np.random.default_rng(0).normal(size=(5, 3))
    for axis, rows in ((0, values.T), (1, values)):
        expected = np.array([stats.ttest_1samp(row, 0).confidence_interval() for row in rows]).T
        assert np.stack(intervals.interval_of_mean(values, axis)) == pytest.approx(expected, abs=1e-12)
    assert [float(end) for end in intervals.interval_of_mean(np.array([7.0]))] == [7.0, 7.0]
    assert np.stack(intervals.interval_of_mean(values[:, :1])).tolist() == [values[:, 0].tolist()] * 2
    assert [float(end) for end in intervals.interval_of_mean(np.zeros(4))] == [0.0, 0.0]


def test_three_seeds_are_enough_for_a_variance():
    assert intervals.ENOUGH == 3 and intervals.LEVEL == 0.95


def test_common_seeds_are_those_of_one_origin():
    def some(seeds, origin, stored=True):
        scores_RB = np.arange(len(seeds))[:, None] + np.linspace(0, 1, 5)
        return Sample(seeds, scores_RB.mean(axis=1), 5, scores_RB if stored else None, origin=origin)

    samples = [some((0, 1, 2, 3), "a"), some((1, 2, 3, 4), "a", False), some((0, 1), "b"), some((1, 2), "b"), some((0, 1, 2, 3), None)]
    found = intervals.on_common_seeds(samples)
    assert [sample.seeds for sample in found] == [(1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (0, 1, 2, 3)]
    assert found[0].means.tolist() == samples[0].means[1:].tolist() and (found[0].scores == samples[0].scores[1:]).all()
    assert found[1].means.tolist() == samples[1].means[:3].tolist() and found[1].scores is None
