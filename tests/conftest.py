"""Makes the packages importable from a checkout; appended, so that an installed wheel wins."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))
