"""The presentation: numbers come from files; in a browser without network every slide fits, every plugin works, and it can be printed."""

import json
import os
import re
import shutil
import subprocess

import pytest

from experiments.deck import HERE, LIBRARIES, RESULTS, build
from experiments.deck.slides import PLACEHOLDER, Slide, fill, split
from tests import test_docs
from tests.browser import open_browser

TEXT = (HERE / "slides.md").read_text()
SLIDES = split(TEXT)
NO_NETWORK = re.compile(r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|ERR_SOCKET_TIMEOUT|ENOTCACHED|E503")


ROWS = [{"factors": {"way": "probe", "masks": masks}, "mean": masks / 4} for masks in (1, 3)]


@pytest.fixture
def results(tmp_path):
    (tmp_path / "run.json").write_text(
        json.dumps({"loss": 1.23456, "layers": [{"test": 0.5}], "none": None, "rows": ROWS, "commit": "abc", "hardware": "2 cores"})
    )
    (tmp_path / "run_curve.png").write_bytes(b"picture")
    return tmp_path


def filled(markdown, results):
    return fill(Slide(1, f"## Title\n\n{markdown}\n\nNote:\nSay it."), results)


def test_a_number_is_formatted_and_says_where_it_stands(results):
    slide = filled("{{run.json: loss | .2f}} and {{run.json: layers.0.test | .0%}}", results)
    assert '<span class="value" title="run.json: loss">1.23</span> and <span class="value" title="run.json: layers.0.test">50%</span>' in slide.markdown
    assert slide.sources == ("run.json",) and not slide.missing
    assert "<footer>run.json (commit abc, 2 cores)</footer>" in slide.markdown


def test_a_recipe_gives_its_values_and_the_count_of_its_model(results):
    slide = filled("{{configs/digits.py: model.width}} {{configs/digits.py: parameters | ,}}", results)
    assert ">64<" in slide.markdown and ">400,512<" in slide.markdown and slide.sources == ("configs/digits.py",)


@pytest.mark.parametrize(
    ("placeholder", "message"),
    [
        ("{{run.json: lost | .2f}}", "run.json has no lost: it has loss, layers, none, rows, commit, hardware"),
        ("{{run.json: layers.3.test}}", "run.json has no layers.3.test: layers has 0"),
        ("{{run.json: layers}}", "layers of run.json is not one value but 1"),
        ("{{run.json: rows.[way=probe].mean}}", "[way=probe] fits 2 of 2 rows, not 1"),
        ("{{run.json: rows.[way=kNN,masks=1].mean}}", "[way=kNN,masks=1] fits 0 of 2 rows, not 1"),
        ("{{run.json: none | .2f}}", "unsupported format string"),
        ("{{run.json: loss | Q}}", "Unknown format code"),
        ("{{configs/huge.py: parameters}}", "there is no recipe configs/huge.py"),
        ("{{configs/s.py: model.depth}}", "configs/s.py has no model.depth: model has"),
        ("{{table: prices}}", "there is no such table, only models, speed, pods"),
    ],
)
def test_a_wrong_placeholder_is_an_error_of_one_line_with_the_slide(placeholder, message, results):
    with pytest.raises(ValueError, match=re.escape(f"slides.md, slide 1 (Title), {placeholder}: ")) as error:
        filled(placeholder, results)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_says_not_run(results):
    slide = filled("{{other.json: loss | .2f}}\n\n{{picture: other.png | A curve}}\n\n{{table: pods}}", results)
    assert '<span class="not-run" title="not run: there is no experiments/results/other.json">not run</span>' in slide.markdown
    assert '<div class="not-run">not run: there is no experiments/results/other.png</div>' in slide.markdown
    assert '<div class="not-run">not run: there is no experiments/results/plan.json</div>' in slide.markdown
    assert slide.missing == ("other.json", "other.png", "plan.json") and not slide.sources


def test_the_first_picture_that_exists_is_shown_with_the_origin_of_its_numbers(results):
    slide = filled("{{picture: curve.png or run_curve.png | A curve}}", results)
    assert '<img src="pictures/run_curve.png" alt="A curve"' in slide.markdown and slide.pictures == ("run_curve.png",) and not slide.missing
    assert "<footer>run_curve.png (commit abc, 2 cores)</footer>" in slide.markdown


def test_a_row_is_found_by_its_factors(results):
    assert ">75%<" in filled("{{run.json: rows.[way=probe,masks=3].mean | .0%}}", results).markdown


@pytest.mark.parametrize("slide", SLIDES, ids=lambda slide: str(slide.number))
def test_every_slide_is_filled_from_the_results_of_the_repository(slide):
    assert not fill(slide, RESULTS).missing


def test_no_number_is_typed_in():
    """Names hold digits (GPT-2, CIFAR-10, 9-bit, a year); nothing else outside placeholders, formulas and code does."""
    text = PLACEHOLDER.sub("", re.sub(r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|<[^>]*>", "", TEXT, flags=re.DOTALL))
    assert not re.findall(r"(?<![\w-])(?!(?:19|20)\d\d\b)\d[\d.,]*%?(?!-bit)", text)


def test_every_slide_has_one_title_and_notes():
    assert len({slide.title for slide in SLIDES}) == len(SLIDES)
    for slide in SLIDES:
        assert slide.title and slide.markdown.partition("\nNote:\n")[2].strip(), slide


@pytest.mark.parametrize("command", re.findall(r"^python -m .+", TEXT, re.MULTILINE))
def test_commands_on_slides_exist(command):
    test_docs.test_commands_name_modules_recipes_and_flags_that_exist("slides.md", command)


def test_libraries_are_pinned_and_name_no_registry():
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]
    assert wanted == {name: locked[f"node_modules/{name}"]["version"] for name in LIBRARIES}
    assert all("resolved" not in one and ("integrity" in one) == bool(name) for name, one in locked.items())


def test_missing_libraries_are_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="reveal.js is missing: run make deck, or npm ci --prefix experiments/deck"):
        build(tmp_path / "deck", libraries=tmp_path)
    assert not (tmp_path / "deck").exists()


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    """The folder that `make deck` filled, or one filled here."""
    if all((HERE / "node_modules" / name).exists() for name in LIBRARIES):
        return HERE / "node_modules"
    if not shutil.which("npm"):
        pytest.skip("needs npm: apt-get install npm")
    place = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json", ".npmrc"):
        shutil.copy(HERE / name, place)
    done = subprocess.run(["npm", "ci", "--prefer-offline"], cwd=place, capture_output=True, text=True, env=os.environ | {"npm_config_fetch_retries": "0"})
    if done.returncode and (unreachable := NO_NETWORK.search(done.stderr)):
        pytest.skip(f"needs experiments/deck/node_modules, or a network to fetch them: {unreachable.group()}")
    assert not done.returncode, done.stderr
    return place / "node_modules"


@pytest.fixture(scope="module")
def deck(libraries, tmp_path_factory):
    """Address of a presentation of today's results, and its slides."""
    place = tmp_path_factory.mktemp("deck")
    return (place / "index.html").as_uri(), build(place, RESULTS, libraries)


@pytest.fixture(scope="module")
def opened(deck):
    """(the presentation in a browser without network, errors, addresses asked for)."""
    with open_browser(1280, 720) as (context, errors):
        context.set_offline(True)
        asked = []
        context.on("request", lambda request: asked.append(request.url))
        page = context.new_page()
        show(page, deck[0])
        page.wait_for_selector(".katex", state="attached")
        page.wait_for_selector(".slide-menu-button .fa-bars", state="attached")
        page.evaluate("document.fonts.ready")
        yield page, errors, asked


def show(page, address):
    page.goto(address)
    page.wait_for_function("window.Reveal && Reveal.isReady()")


def pages_of(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


MEASURE = """() => Reveal.getSlides().map((section, index) => {
  Reveal.slide(index);
  const frame = section.querySelector(".slide"), edges = frame.getBoundingClientRect(), footer = frame.querySelector("footer").getBoundingClientRect();
  const drawn = [...frame.querySelectorAll("*")].filter(one => one.getClientRects().length && !one.closest(".katex-mathml"));
  const outside = drawn.filter(one => { const box = one.getBoundingClientRect(); return box.bottom > edges.bottom + 1 || box.right > edges.right + 1; });
  const content = [...frame.children].filter(one => one.tagName != "FOOTER");
  return {
    title: frame.querySelector("h1, h2").textContent, height: edges.height, width: edges.width, outside: outside.map(one => one.tagName + "." + one.className),
    content: Math.max(...content.map(one => one.getBoundingClientRect().bottom)), footer: footer.top, bottom: footer.bottom,
    cut: drawn.filter(one => one.tagName == "CODE" && one.scrollWidth > one.clientWidth + 1).length,
    pictures: [...frame.querySelectorAll("img")].map(one => [one.complete && one.naturalWidth, one.getBoundingClientRect().height]),
  };
})"""


@pytest.mark.slow
def test_every_slide_fits_and_shows_its_pictures(opened, deck):
    page, errors, _ = opened
    measured = page.evaluate(MEASURE)
    assert [box["title"] for box in measured] == [slide.title for slide in deck[1]]
    for slide, box in zip(deck[1], measured, strict=True):
        assert (box["width"], box["height"]) == (1280, 720)
        assert not box["outside"] and not box["cut"], box
        assert box["content"] <= box["footer"] + 1 and box["bottom"] <= 721 or "# Image GPT" in slide.markdown, box
        assert len(box["pictures"]) == len(slide.pictures) and all(natural > 0 and height > 150 for natural, height in box["pictures"]), box
    assert not errors


@pytest.mark.slow
def test_nothing_comes_from_the_network(opened):
    assert all(address.startswith(("file:", "data:", "about:", "blob:")) for address in opened[2])
    assert any(address.endswith("katex.min.js") for address in opened[2])


@pytest.mark.slow
def test_formulas_are_typeset_and_code_is_coloured(opened):
    page, _, _ = opened
    shown = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert page.locator(".slide .katex").count() == len(re.findall(r"\$\$.*?\$\$|\$[^$]+\$", shown))
    assert not page.locator(".katex-error").count()
    assert page.evaluate("[...document.fonts].some(font => font.family == 'KaTeX_Math' && font.status == 'loaded')")
    assert page.locator("code.hljs .hljs-comment").count() and page.locator("code.hljs .hljs-keyword").count()


@pytest.mark.slow
def test_the_notes_window_shows_the_notes(opened):
    page, errors, _ = opened
    page.evaluate("Reveal.slide(2)")
    with page.context.expect_page() as popup:
        page.keyboard.press("s")
    popup.value.wait_for_function("document.querySelector('.speaker-controls-notes .value')?.textContent.includes('The surprise of the paper')")
    popup.value.close()
    assert not errors


@pytest.mark.slow
def test_the_menu_lists_the_slides_and_leads_to_one(opened, deck):
    page, errors, _ = opened
    page.evaluate("Reveal.slide(0)")
    page.keyboard.press("m")
    page.wait_for_selector("nav.slide-menu.active")
    items = page.locator(".slide-menu-item .slide-menu-item-title")
    assert items.all_text_contents() == [slide.title for slide in deck[1]]
    items.nth(3).click()
    page.wait_for_function("Reveal.getIndices().h == 3 && !document.querySelector('nav.slide-menu.active')")
    page.wait_for_selector(".slide-menu-overlay", state="hidden")  # it takes clicks while it fades
    assert not errors


@pytest.mark.slow
def test_alt_and_click_zooms_in_and_out(opened):
    page, errors, _ = opened
    page.evaluate("Reveal.slide(3)")
    for zoomed in ("true", "false"):
        page.keyboard.down("Alt")
        page.mouse.click(400, 300)
        page.keyboard.up("Alt")
        page.wait_for_function(f"document.documentElement.classList.contains('zoomed') == {zoomed}")
    page.wait_for_function("new DOMMatrix(getComputedStyle(document.body).transform).a == 1")
    assert not errors


@pytest.mark.slow
def test_the_pointer_comes_and_goes(opened):
    page, errors, _ = opened
    page.keyboard.press("q")
    page.mouse.move(300, 200)
    page.mouse.move(320, 220)
    page.wait_for_function("getComputedStyle(document.querySelector('.cursor-dot')).opacity > 0.7")
    assert page.locator(".cursor-dot").bounding_box()["x"] == pytest.approx(311, abs=2)
    page.keyboard.press("q")
    page.wait_for_function("getComputedStyle(document.querySelector('.cursor-dot')).opacity == 0")
    assert not errors


@pytest.mark.slow
def test_it_prints_a_page_for_each_slide(opened, deck):
    page, errors, _ = opened
    show(page, f"{deck[0]}?print-pdf")
    page.wait_for_selector(".pdf-page")
    assert page.locator(".pdf-page").count() == len(deck[1])
    assert pages_of(page.pdf(prefer_css_page_size=True, print_background=True)) == len(deck[1])
    assert not errors
