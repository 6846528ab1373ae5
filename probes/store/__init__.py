"""Features of many layers on disk, extracted in one pass over the data that can be killed and continued."""

from .feature_store import FeatureStore
from .one_pass import Estimate

__all__ = ["Estimate", "FeatureStore"]
