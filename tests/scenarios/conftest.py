"""`--rewrite`: write what happened into the scenario files instead of comparing with it."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write what happened into tests/scenarios/**/*.txt"
    )
