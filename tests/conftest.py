"""The same examples in every run: a failure found elsewhere is found here."""

import os

import hypothesis

hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("explore")  # HYPOTHESIS_PROFILE=explore: other examples each time
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
