"""Every figure: python -m tests.bench [--strict]. See tests.bench.measures for the exit codes."""

from __future__ import annotations

import sys

from tests.bench import journal, migrate, plan, scale
from tests.bench.measures import Tally, asked_strict


def main() -> int:
    strict = asked_strict()
    tally = Tally()
    for part in (plan, journal, scale, migrate):
        part.run(tally)
    return tally.exit_code(strict=strict)


sys.exit(main())
