"""pyroute2 without what a runner has no use for, which was a sixth of its start."""

from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec


def pyroute2() -> None:
    """Makes the package `pyroute2` without running it: it imports all of the library, some 160 modules, of which the
    drivers need 19. Those are imported as ever; of the package itself nothing else can be had in this process.

    ImportError if it is not installed. Nothing happens where it has been imported.
    """
    spec = find_spec("pyroute2")
    if spec is None:
        raise ImportError("pyroute2 is not installed", name="pyroute2")
    sys.modules.setdefault("pyroute2", module_from_spec(spec))
