"""scikit-learn estimators that train with any supervised objective by name; needs the extra `fenchel[sklearn]`."""

from .classifier import FenchelClassifier
from .predictions import predictions

__all__ = ["FenchelClassifier", "predictions"]
