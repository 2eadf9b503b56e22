"""README's generated blocks are those that the stored results make."""

import pytest

from experiments import readme


def test_the_blocks_are_todays():
    written = (readme.ROOT / "README.md").read_text()
    assert readme.rewritten(written) == written, "run python -m experiments.readme"


def test_the_table_of_studies_is_todays_and_names_each_result():
    written = (readme.ROOT / "experiments/README.md").read_text()
    assert readme.rewritten(written, readme.studies()) == written, "run python -m experiments.readme"
    assert {path.stem for path in readme.RESULTS.glob("*.json")} <= {name for _, name, *_ in readme.STUDIES}


def test_a_missing_marker_is_named():
    with pytest.raises(ValueError, match="<!-- aot:begin --> and <!-- aot:end --> are missing: write both"):
        readme.rewritten("nothing")
