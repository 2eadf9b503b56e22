"""Progress of long passes: what a log says, and that the first part, which compiles, is not in the speed."""

import pytest

from igpt_jax import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_time_left_is_said_after_the_second_part_without_the_first_one(clock, capsys):
    with progress.Progress("features", 1000) as bar:
        clock[0] = 90.0
        bar.advance(10)
        assert "features: 10 of 1000 images, 9 s each, 2.5 h left" in capsys.readouterr().err  # all that is known is one part
        clock[0] = 95.0
        bar.advance(10)
        assert capsys.readouterr().err == "features: 20 of 1000 images, 2 images/s, 8.2 min left\n"
        clock[0] = 100.0
        bar.advance(10)
        assert not capsys.readouterr().err  # a line every ten seconds


def test_a_short_pass_says_its_end_alone(clock, capsys):
    with progress.Progress("train", 30) as bar:
        for _ in range(3):
            clock[0] += 0.5
            bar.advance(10)
    assert capsys.readouterr().err == "train: 30 of 30 images, 20 images/s, 0 s left\n"
    with progress.Progress("one part", 30) as bar:
        clock[0] += 90
        bar.advance(30)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (89.4, "89 s"), (90, "1.5 min"), (5399, "90.0 min"), (5400, "1.5 h"), (172800, "2.0 days")])
def test_durations_are_said_as_people_say_them(seconds, text):
    assert progress.duration(seconds) == text
