"""README's generated blocks are those that the stored results make."""

import pytest

from experiments import readme


def test_the_blocks_are_todays():
    written = (readme.ROOT / "README.md").read_text()
    assert readme.rewritten(written) == written, "run python -m experiments.readme"


def test_a_missing_marker_is_named():
    with pytest.raises(ValueError, match="<!-- aot:begin --> and <!-- aot:end -->: write both"):
        readme.rewritten("nothing")
