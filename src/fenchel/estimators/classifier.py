"""A scikit-learn classifier that is trained with any supervised objective, by name."""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state, compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor

from ..checks import check_number, check_positive, check_weight
from ..generators import Generator
from ..objectives.supervised import LabelObjective, predictions, supervised_objective
from ..objectives.supervised.objective import EVERY
from ..objectives.supervised.predictions import predictor
from .layers import Layers, initial, scores
from .minimise import SOLVERS, epochs, minimised
from .problem import Rows, all_classes, check_count, held_out, measure, penalised

__all__ = ["FenchelClassifier"]


class FenchelClassifier(ClassifierMixin, BaseEstimator):
    """A linear classifier, or one with hidden layers, that minimises any supervised objective L (`fenchel.supervised_names`).

        sum_i w_i L(z_i, y_i; q) / sum_i w_i + l2/2 sum_layers ||W||^2,    z = scores of x, one per class

    `predict_proba` is the objective's own operator (`predictions`): softargmax_f, with exact zeros for alpha > 1; softmax for objectives made of it. The
    linear model under "kl" is scikit-learn's LogisticRegression with C = 1 / (l2 n) for n rows, or with C = 2 / (l2 n) for two classes, which have two
    scores here and one there. Scale the features, as for those.

    Args:
        objective: a name ("kl", "alpha:1.5", "gce:0.7", "nce + 0.5*rce"), a Generator, or an object such as `CompSum(1.7)`.
        hidden_layer_sizes: widths of hidden layers with ReLU; none is the linear model.
        l2: >= 0, the penalty of the weights of all layers.
        class_weight: None, "balanced", or a dict of class and weight; multiplies the sample weights.
        priors: the reference measure q that is trained with: None (1 for every class), "frequencies" (of the classes in y), or positive numbers in the order
            of `classes_`. Logit adjustment: the scores need not learn how frequent a class is.
        predict_priors: q of `predict` and `predict_proba`: "same", or as `priors`: None for balanced classes.
        solver: "lbfgs" (all rows at once) or "adam" (batches); `partial_fit` uses Adam.
        max_iter: iterations of L-BFGS, or epochs of Adam.
        tol: L-BFGS ends when no entry of the gradient is larger; with Adam or early stopping, a round counts as better when the loss is lower by tol.
        batch_size, learning_rate: of Adam.
        early_stopping: hold out `validation_fraction` of the rows, end when their loss has not improved for n_iter_no_change rounds, and keep the best round.
        validation_fraction: in (0, 1).
        n_iter_no_change: rounds >= 1.
        warm_start: `fit` goes on from what was fitted before, for the same classes.
        random_state: of the initial weights, the batches and the held-out rows.

    Attributes:
        classes_: the labels, sorted.
        coefs_, intercepts_: per layer, [D, H] and [H]; the last is [H, V] and [V].
        n_iter_: iterations, or epochs, of the last fit.
        loss_: the minimised loss, of the rows that were trained on.
        priors_: q of the training [V], or None.

    Raises:
        ValueError: from `fit`, before anything is trained: an unknown objective or a penalty alone, one class alone, a prior that is not positive,
            a parameter outside its domain, NaN features or other rows than scikit-learn allows.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> sparse = FenchelClassifier("alpha:1.5").fit(X, y)
        >>> float(sparse.score(X, y)) > 0.95, bool((sparse.predict_proba(X) == 0).any())
        (True, True)

    Source: each objective names its own; priors: Menon et al., arXiv 2007.07314.
    """

    classes_: np.ndarray
    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    n_iter_: int
    loss_: float
    priors_: np.ndarray | None
    n_features_in_: int

    def __init__(
        self,
        objective: str | Generator | LabelObjective = "kl",
        *,
        hidden_layer_sizes: Sequence[int] = (),
        l2: float = 1e-4,
        class_weight: str | dict[Any, float] | None = None,
        priors: str | Sequence[float] | np.ndarray | None = None,
        predict_priors: str | Sequence[float] | np.ndarray | None = "same",
        solver: str = "lbfgs",
        max_iter: int = 500,
        tol: float = 1e-4,
        batch_size: int = 64,
        learning_rate: float = 1e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.objective = objective
        self.hidden_layer_sizes = hidden_layer_sizes
        self.l2 = l2
        self.class_weight = class_weight
        self.priors = priors
        self.predict_priors = predict_priors
        self.solver = solver
        self.max_iter = max_iter
        self.tol = tol
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "FenchelClassifier":
        """Train on rows X [N, D] and labels y [N] of any type, each weighted by sample_weight [N] >= 0.

        Warns:
            ConvergenceWarning: after max_iter rounds.
        """
        objective = self._checked()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        classes, labels = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"y: got one class, {classes.tolist()[0]!r}; pass two classes or more")
        goes_on = self.warm_start and hasattr(self, "classes_")
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(
                f"warm_start: got the classes {classes.tolist()} after {self.classes_.tolist()}; pass the same, or warm_start=False"
            )
        frequencies = np.bincount(labels, weights, len(classes))
        q = measure("priors", self.priors, len(classes), frequencies)
        if not self._predicts_as_trained:
            measure("predict_priors", self.predict_priors, len(classes), frequencies)
        random = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(random.randint(2**31)))
        start = self._layers() if goes_on else self._initial(X.shape[1], len(classes), generator)
        weights = weights * compute_class_weight(self.class_weight, classes=classes, y=y)[labels]
        rows = Rows.of(X, labels, weights)
        held = None
        if self.early_stopping:
            rows, held = held_out(rows, self.validation_fraction, random)
        loss = partial(penalised, objective, q=q, l2=float(self.l2))
        found = minimised(
            loss,
            rows,
            held,
            start,
            generator,
            solver=self.solver,
            max_iter=self.max_iter,
            tol=self.tol,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.n_iter_no_change,
        )
        value = float(loss(found.layers, rows).detach())
        if not math.isfinite(value):
            raise ValueError(
                f"the loss became {value}: scale the features, or pass a larger l2 or a smaller learning_rate"
            )
        self.classes_, self.priors_, self._frequencies = classes, None if q is None else q.numpy(), frequencies
        self._keep(found.layers)
        self.n_iter_, self.loss_, self._progress = found.rounds, value, None
        if not found.converged:
            warnings.warn(
                f"not converged after max_iter={self.max_iter} rounds: pass a larger max_iter, or scale the features",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> "FenchelClassifier":
        """One epoch of Adam over these rows, from what was fitted before.

        Args:
            X, y, sample_weight: as `fit`.
            classes: all classes there will be; needed by the first call.

        Raises:
            ValueError: no classes at the first call or others later, a label that is none of them, options that need all rows at once: early stopping,
                balanced class weights, priors from frequencies.
        """
        objective = self._checked()
        for name, given in (
            ("class_weight", self.class_weight == "balanced"),
            ("early_stopping", bool(self.early_stopping)),
            ("priors", isinstance(self.priors, str)),
        ):
            if given:
                raise ValueError(
                    f"{name}: got {getattr(self, name)!r}, which needs all rows at once; call fit, or leave it out"
                )
        first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=np.float64, reset=first)
        check_classification_targets(y)
        known = all_classes(classes, None if first else self.classes_)
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        labels = np.searchsorted(known, y).clip(max=len(known) - 1)
        if (strange := y[known[labels] != y]).size:
            raise ValueError(
                f"y: got {strange.tolist()[0]!r}, none of the classes {known.tolist()}; pass labels of these"
            )
        q = measure("priors", self.priors, len(known), None)
        if not self._predicts_as_trained:
            measure("predict_priors", self.predict_priors, len(known), None)
        generator = torch.Generator()
        moments, shuffle = (None, None) if first or self._progress is None else self._progress
        if shuffle is None:
            generator.manual_seed(int(check_random_state(self.random_state).randint(2**31)))
        else:
            generator.set_state(shuffle)
        start = self._initial(X.shape[1], len(known), generator) if first else self._layers()
        if self.class_weight is not None:
            weights = weights * compute_class_weight(self.class_weight, classes=known, y=known)[labels]
        rows = Rows.of(X, labels, weights)
        loss = partial(penalised, objective, q=q, l2=float(self.l2))
        found, moments = epochs(
            loss,
            rows,
            start,
            generator,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            most=1,
            state=moments,
        )
        self.classes_, self.priors_, self._frequencies = known, None if q is None else q.numpy(), None
        self._keep(found.layers)
        self.n_iter_ = getattr(self, "n_iter_", 0) + 1
        self.loss_ = float(loss(found.layers, rows).detach())
        self._progress = (moments, generator.get_state())
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The scores z [N, V], without any prior; for two classes the difference of the second and the first [N]."""
        z = self._scores(X).numpy()
        return z[:, 1] - z[:, 0] if len(self.classes_) == 2 else z

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [N, V] in the order of `classes_`: `predictions` of the scores under predict_priors."""
        z = self._scores(X)
        return predictions(z, self.objective, q=self._q()).numpy()

    def predict(self, X: Any) -> np.ndarray:
        """The class with the largest probability [N]; the first in `classes_` of several."""
        best = self.predict_proba(X).argmax(1)
        return self.classes_[best]

    def _checked(self) -> LabelObjective:
        """The objective, once every parameter is in its domain."""
        check_weight("l2", self.l2)
        check_positive("tol", self.tol)
        check_positive("learning_rate", self.learning_rate)
        for name in ("max_iter", "batch_size", "n_iter_no_change"):
            check_count(name, getattr(self, name))
        for width in self.hidden_layer_sizes:
            check_count("hidden_layer_sizes", width)
        if self.solver not in SOLVERS:
            raise ValueError(f"solver: got {self.solver!r}; pass one of {', '.join(SOLVERS)}")
        if not 0 < check_number("validation_fraction", self.validation_fraction) < 1:
            raise ValueError(f"validation_fraction: got {self.validation_fraction}; pass a number between 0 and 1")
        objective = supervised_objective(self.objective)
        if objective.takes == EVERY:
            raise ValueError(
                f"objective: got {self.objective!r}, and a penalty alone learns no label; pass it beside another, as in 'cross_entropy + 0.1*entropy_penalty'"
            )
        predictor(objective)
        return objective

    def _initial(self, features: int, classes: int, generator: torch.Generator) -> Layers:
        return initial((features, *self.hidden_layer_sizes, classes), generator)

    def _layers(self) -> Layers:
        pairs = zip(self.coefs_, self.intercepts_, strict=True)
        return tuple(torch.tensor(x) for pair in pairs for x in pair)

    def _keep(self, layers: Layers) -> None:
        self.coefs_ = [x.numpy().copy() for x in layers[::2]]
        self.intercepts_ = [x.numpy().copy() for x in layers[1::2]]

    def _scores(self, X: Any) -> Tensor:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return scores(self._layers(), torch.tensor(X))

    @property
    def _predicts_as_trained(self) -> bool:
        return isinstance(self.predict_priors, str) and self.predict_priors == "same"

    def _q(self) -> Tensor | None:
        if self._predicts_as_trained:
            return None if self.priors_ is None else torch.tensor(self.priors_)
        return measure("predict_priors", self.predict_priors, len(self.classes_), self._frequencies)
