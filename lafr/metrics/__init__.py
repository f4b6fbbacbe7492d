"""Numbers that say how good restored images are: against the ground truth, alone, or as a set."""

from lafr.metrics.registry import HIGHER, LOWER, METRICS, MetricRecord, describe, register

__all__ = ["HIGHER", "LOWER", "METRICS", "MetricRecord", "describe", "register"]
