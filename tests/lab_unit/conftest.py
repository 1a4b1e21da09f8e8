"""The lab's modules are not installed with migrd: they run from deploy/lab with Debian's own python3."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

# Instances of the tests lie apart from those of this machine; labkit reads this once, when imported.
os.environ["MIGRD_LAB_ROOT"] = tempfile.mkdtemp(prefix="migrd-lab-unit-")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "deploy" / "lab"))
