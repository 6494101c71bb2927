"""For all tests: property tests draw the same examples each time, so that a failure is the change's, not chance's.

``HYPOTHESIS_PROFILE=search`` draws new ones, for a developer who looks for trouble.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("steady", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))
