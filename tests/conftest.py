"""Settings of the whole suite."""

from __future__ import annotations

import os

from hypothesis import settings

# In CI the examples follow from the tests alone, so that a red run is about the change; elsewhere they are
# new every time and go on searching.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
