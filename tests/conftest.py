"""What every test may use: golden files, rewritten with ``pytest --overwrite``."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest

LONGEST = (
    "test_readme",
    "test_max_batch",
    "test_compiled",
    "test_inductor",
    "test_activations",
    "test_examples",
    "test_fit_sharded",
    "test_apply_sharded",
    "test_accumulation",
    "test_published",
    "test_commands",
    "test_loss_chunks",
)
"""Files that take longest: begun first, so that no process waits for another in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--overwrite", action="store_true", help="rewrite the golden files")


def pytest_collection_finish() -> None:
    gc.freeze()  # modules and tests are never garbage; looking for it takes a tenth of the time


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file ``golden/NAME`` beside the test."""

    def check(name: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / name
        if request.config.getoption("--overwrite"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert text == path.read_text(), f"{path} differs; look at it, then rerun with --overwrite"

    return check
