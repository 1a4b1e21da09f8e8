"""For all tests."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

# A shell that starts a job in the background lets it ignore Ctrl-C, and so would every program that is
# started, and interrupted, in here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """What one test says of logs does not hold for the next one, whatever runs in one process."""
    before = structlog.get_config() if structlog.is_configured() else None
    yield
    structlog.reset_defaults()
    if before is not None:
        structlog.configure(**before)


# -- where the fresh seeds of tests/sim begin ------------------------------------------------------
# Here and not there: of the conftests pytest-xdist's controller, which writes the summary, reads only those
# that the command line names, and this one.

_FIRST_SEED = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Whoever runs the tests chooses; a worker of pytest-xdist was told."""
    told = getattr(config, "workerinput", None)
    config.stash[_FIRST_SEED] = (
        random.SystemRandom().randrange(1 << 40) if told is None else told["first_seed"]
    )


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_configure_node(node: Any) -> None:
    node.workerinput["first_seed"] = node.config.stash[_FIRST_SEED]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """A run that passed is told too: what it did not find may be looked for again."""
    reports = (report for kind in terminalreporter.stats.values() for report in kind)
    ran = [report.nodeid for report in reports if isinstance(report, pytest.TestReport)]
    if any("::test_fresh_seeds[" in name for name in ran):
        terminalreporter.write_line(f"fresh seeds: the first one was {config.stash[_FIRST_SEED]}")


@pytest.fixture(scope="session")
def first_seed(pytestconfig: pytest.Config) -> int:
    """The same in every worker of one test run, fresh in the next one."""
    return pytestconfig.stash[_FIRST_SEED]
