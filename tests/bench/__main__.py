"""Every figure: python -m tests.bench. JSON lines on stdout, one per measure; 0 = every goal met."""

from __future__ import annotations

import sys

from tests.bench import journal, migrate, plan

sys.exit(plan.main() | journal.main() | migrate.main())
