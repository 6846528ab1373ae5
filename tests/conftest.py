"""What holds for every test: the same examples in every run, and one thread where tests run side by side."""

import os

import hypothesis

hypothesis.settings.register_profile("fixed", derandomize=True)  # a failure found elsewhere is found here
hypothesis.settings.register_profile("explore")  # HYPOTHESIS_PROFILE=explore: other examples each time
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")
