"""scikit-learn estimators that train with any supervised objective by name; needs the extra `fenchel[sklearn]`."""

from ..objectives.supervised import predictions
from .classifier import FenchelClassifier

__all__ = ["FenchelClassifier", "predictions"]
