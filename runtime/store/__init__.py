"""Models: references, catalogue, downloads, GGUF facts, memory plans."""

from runtime.store.catalog import CatalogEntry, Sampling
from runtime.store.limits import Limits
from runtime.store.local import FileCheck, LocalModel, PullProgress, RemovalPlan, VerifyResult
from runtime.store.recommend import Recommendation
from runtime.store.store import ModelStore

__all__ = [
    "CatalogEntry",
    "FileCheck",
    "Limits",
    "LocalModel",
    "ModelStore",
    "PullProgress",
    "Recommendation",
    "RemovalPlan",
    "Sampling",
    "VerifyResult",
]
