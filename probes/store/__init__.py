"""Features of many layers on disk, extracted in one pass over the data that can be killed and continued."""

from .estimate import Estimate
from .feature_store import FeatureStore

__all__ = ["Estimate", "FeatureStore"]
