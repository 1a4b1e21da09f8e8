"""Every figure: python -m tests.bench. JSON lines on stdout, one per measure; 0 = every goal met."""

from __future__ import annotations

import sys

from tests.bench import migrate, plan

sys.exit(plan.main() | migrate.main())
