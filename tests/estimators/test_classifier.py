"""FenchelClassifier: scikit-learn's own checks, LogisticRegression as an oracle, and the laws that objectives bring with them."""

import pickle
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

import fenchel
from fenchel.estimators import FenchelClassifier, predictions

EXACT = {"tol": 1e-9, "max_iter": 5000}


def scaled(load):
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


IRIS, WINE, CANCER = scaled(load_iris), scaled(load_wine), scaled(load_breast_cancer)

# all of scikit-learn's checks but check_array_api_input, which runs only where an environment variable asks scipy for the array API
CHECKS = [
    check
    for _, check in estimator_checks_generator(FenchelClassifier("alpha:1.5"))
    if "array_api" not in str(getattr(check, "func", check))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: getattr(check, "func", check).__name__)
def test_scikit_learn_checks(check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        check(FenchelClassifier("alpha:1.5", max_iter=50))


def test_kl_is_logistic_regression():
    X, y = WINE
    weights = np.random.RandomState(0).uniform(0.1, 2, len(y))
    l2 = 1e-2
    ours = FenchelClassifier(l2=l2, **EXACT).fit(X, y, weights)
    theirs = LogisticRegression(C=1 / (l2 * weights.sum()), tol=1e-9, max_iter=5000).fit(X, y, weights)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(ours.coefs_[0].T, theirs.coef_, atol=1e-5)


def test_kl_of_two_classes_is_logistic_regression_with_half_the_penalty():
    X, y = CANCER
    l2 = 1e-2
    ours = FenchelClassifier(l2=l2, **EXACT).fit(X, y)
    theirs = LogisticRegression(C=2 / (l2 * len(y)), tol=1e-9, max_iter=5000).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-4)


def test_sparsemax_against_a_minimiser_of_its_own():
    X, y = IRIS
    l2, n, classes = 0.1, len(y), 3
    onehot = np.eye(classes)[y]

    def simplex(z):  # by sorting
        u = -np.sort(-z, 1)
        c = (u.cumsum(1) - 1) / np.arange(1, classes + 1)
        k = (u > c).sum(1)
        return np.maximum(z - c[np.arange(len(z)), k - 1][:, None], 0)

    def loss(flat):  # the regulariser is ||p||^2 / 2
        w, b = flat[:-classes].reshape(4, classes), flat[-classes:]
        z = X @ w + b
        p = simplex(z)
        value = ((p - onehot) * z).sum(1) - (p**2).sum(1) / 2 + 0.5
        slope = (p - onehot) / n
        return value.mean() + l2 / 2 * (w**2).sum(), np.r_[(X.T @ slope + l2 * w).ravel(), slope.sum(0)]

    found = scipy.optimize.minimize(loss, np.zeros(5 * classes), jac=True, options={"gtol": 1e-9})
    ours = FenchelClassifier("alpha:2", l2=l2, **EXACT).fit(X, y)
    p = ours.predict_proba(X)
    w, b = found.x[:-classes].reshape(4, classes), found.x[-classes:]
    np.testing.assert_allclose(p, simplex(X @ w + b), atol=1e-5)
    assert (p == 0).any()
    np.testing.assert_allclose(p.sum(1), 1)


@pytest.mark.parametrize(
    "objective",
    ["js", "alpha:1.5", "gce:0.7", "mae", "focal:2", "nce + 0.5*rce", "ldr", "taylor", "stablemax", "spherical", "z_loss", "binary",
     "cross_entropy + 0.1*log_partition", "candidates"],
)  # fmt: skip
def test_objectives_by_name_learn(objective):
    X, y = IRIS
    model = FenchelClassifier(objective, random_state=0, max_iter=2000).fit(X, y)
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1)
    assert model.score(X, y) > 0.88  # taylor and spherical are not monotone in a score
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)
    by_name = clone(model).fit(X, names[y])
    assert (by_name.predict(X) == names[model.predict(X)]).all()


def test_an_object_and_a_generator_are_objectives():
    X, y = IRIS
    mine = fenchel.Generator.from_f(lambda u: u * u.log(), name="mine")
    by_name = FenchelClassifier(l2=0.1).fit(X, y).predict_proba(X)
    for objective in (mine, fenchel.supervised_objective("comp_sum:1")):
        np.testing.assert_allclose(FenchelClassifier(objective, l2=0.1).fit(X, y).predict_proba(X), by_name, atol=1e-3)


def test_stablemax_and_its_kin_predict_with_what_their_loss_is_the_log_of():
    z = torch.randn(5, 4, dtype=torch.float64)
    s = torch.where(z >= 0, z + 1, 1 / (1 - z))
    torch.testing.assert_close(predictions(z, "stablemax"), s / s.sum(-1, keepdim=True))
    s = 1 + z + z.square() / 2
    torch.testing.assert_close(predictions(z, "taylor"), s / s.sum(-1, keepdim=True))
    q = torch.rand(4, dtype=torch.float64)
    torch.testing.assert_close(predictions(z, "mae", q=q), (z + q.log()).softmax(-1))


def test_a_sum_predicts_with_the_operator_of_its_terms():
    z = torch.randn(3, 4)
    torch.testing.assert_close(
        predictions(z, "2*fenchel_young:alpha:1.5 + 0.1*logit_penalty"),
        fenchel.softargmax(z, "alpha:1.5"),
        rtol=0,
        atol=0,
    )
    # before a generator's name, a factor is part of the generator
    scaled = fenchel.softargmax(z, "alpha:1.5", temperature=2.0)
    torch.testing.assert_close(predictions(z, "2*alpha:1.5 + 0.1*logit_penalty"), scaled)
    torch.testing.assert_close(predictions(z, "kl + mae"), z.softmax(-1))
    with pytest.raises(ValueError, match=r"predict with softargmax of alpha:1.5 and softmax"):
        FenchelClassifier("alpha:1.5 + mae").fit(*IRIS)


@pytest.mark.parametrize("objective", ["kl", "alpha:1.5"])
def test_priors_are_the_reference_measure(objective):
    X, y = IRIS
    keep = np.r_[0:50, 50:80, 100:110]
    X, y = X[keep], y[keep]
    plain = FenchelClassifier(objective, priors="frequencies", l2=1e3, **EXACT).fit(X, y)
    q = np.array([50, 30, 10]) / 90
    np.testing.assert_allclose(plain.priors_, q)
    # no feature counts under such a penalty, and the intercepts have nothing left to learn under "kl"
    np.testing.assert_allclose(plain.predict_proba(X), np.tile(q, (90, 1)), atol=2e-2)
    moved = clone(plain).set_params(predict_priors=None, l2=1e-2).fit(X, y)
    z = torch.tensor(X @ moved.coefs_[0] + moved.intercepts_[0])
    np.testing.assert_allclose(moved.predict_proba(X), fenchel.softargmax(z, objective).numpy(), atol=1e-12)
    moved.set_params(predict_priors="same")
    expected = fenchel.softargmax(z, objective, q=torch.tensor(q)).numpy()
    np.testing.assert_allclose(moved.predict_proba(X), expected, atol=1e-12)


def test_under_kl_priors_move_the_intercepts_alone():
    X, y = IRIS
    a = FenchelClassifier(l2=1e-2, **EXACT).fit(X, y)
    b = FenchelClassifier(l2=1e-2, priors=[1, 2, 4], **EXACT).fit(X, y)
    np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), atol=1e-6)
    moved = a.intercepts_[0] - b.intercepts_[0] - np.log([1, 2, 4])
    np.testing.assert_allclose(moved, moved.mean(), atol=1e-5)


def test_class_weights_are_sample_weights():
    X, y = WINE
    by_class = FenchelClassifier(class_weight={0: 1, 1: 2, 2: 5}, **EXACT).fit(X, y)
    by_row = FenchelClassifier(**EXACT).fit(X, y, np.array([1, 2, 5])[y])
    np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), atol=1e-6)


def test_partial_fit_learns_and_goes_on_where_it_was():
    X, y = WINE
    model = FenchelClassifier("alpha:1.5", random_state=0)
    for _ in range(10):
        model.partial_fit(X, y, classes=[0, 1, 2])
    assert model.score(X, y) > 0.97
    assert model.n_iter_ == 10
    again = pickle.loads(pickle.dumps(model))
    model.partial_fit(X, y)
    again.partial_fit(X, y)
    np.testing.assert_array_equal(model.coefs_[0], again.coefs_[0])
    # a fit is not forgotten by the next batch
    fitted = FenchelClassifier(random_state=0).fit(X, y)
    before = fitted.score(X, y)
    assert fitted.partial_fit(X, y).score(X, y) >= before - 0.02


def test_partial_fit_of_a_label_that_comes_later():
    X, y = IRIS
    names = np.array(["a", "b", "c"])
    model = FenchelClassifier(random_state=0).partial_fit(X[y < 2], names[y[y < 2]], classes=names)
    assert model.predict_proba(X).shape == (150, 3)
    with pytest.raises(ValueError, match="got 'd', none of the classes"):
        model.partial_fit(X[:2], ["a", "d"])


def test_adam_and_hidden_layers():
    X, y = scaled(load_digits)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = FenchelClassifier("alpha:1.5", hidden_layer_sizes=(32,), solver="adam", max_iter=6, random_state=0)
        model.fit(X[:1200], y[:1200])
    assert [w.shape for w in model.coefs_] == [(64, 32), (32, 10)]
    assert model.score(X[1200:], y[1200:]) > 0.85
    with pytest.warns(ConvergenceWarning, match="max_iter=2"):
        clone(model).set_params(max_iter=2).fit(X[:300], y[:300])


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_early_stopping_keeps_the_best_round(solver):
    X, y = WINE
    rng = np.random.RandomState(0)
    noisy = np.where(rng.uniform(size=len(y)) < 0.4, rng.randint(3, size=len(y)), y)
    options = {"hidden_layer_sizes": (30,), "l2": 0.0, "solver": solver, "random_state": 0, "max_iter": 100}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        whole = FenchelClassifier(**options).fit(X, noisy)
    stopped = FenchelClassifier(early_stopping=True, validation_fraction=0.3, **options).fit(X, noisy)
    assert stopped.n_iter_ < whole.n_iter_
    assert stopped.score(X, y) > whole.score(X, y)


def test_warm_start_goes_on():
    X, y = WINE
    model = FenchelClassifier(warm_start=True, l2=1e-2).fit(X, y)
    first = model.n_iter_
    assert model.fit(X, y).n_iter_ < first / 2
    with pytest.raises(ValueError, match="warm_start: got the classes"):
        model.fit(X[y < 2], y[y < 2])


def test_it_leaves_the_random_state_of_torch_alone():
    torch.manual_seed(3)
    FenchelClassifier(hidden_layer_sizes=(4,), random_state=1, l2=1e-2).fit(*IRIS)
    left = torch.rand(1)
    torch.manual_seed(3)
    assert left == torch.rand(1)


def test_in_a_grid_search():
    X, y = load_iris(return_X_y=True)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), FenchelClassifier(l2=1e-2)),
        {"fenchelclassifier__objective": ["kl", "alpha:1.5"]},
        cv=3,
        scoring="neg_brier_score",
    )
    assert search.fit(X, y).best_params_["fenchelclassifier__objective"] in ("kl", "alpha:1.5")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "no_such"}, "objective: got 'no_such'; known"),
        ({"objective": "tv"}, "no operator or loss"),
        ({"objective": "entropy_penalty"}, "objective: got 'entropy_penalty', and a penalty alone learns no label"),
        ({"objective": "0.1*log_partition + logit_penalty"}, "a penalty alone learns no label"),
        ({"objective": "focal:-1"}, "gamma: got -1"),
        ({"l2": -1.0}, "l2: got -1.0"),
        ({"solver": "sgd"}, "solver: got 'sgd'; pass one of lbfgs, adam"),
        ({"max_iter": 0}, "max_iter: got 0"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes: got 0"),
        ({"priors": [1, 0, 1]}, "priors: got .* pass 3 positive numbers"),
        ({"priors": [1, 1]}, "priors: got .* pass 3 positive numbers"),
        ({"priors": "equal"}, "priors: got 'equal'"),
        ({"predict_priors": "equal"}, "predict_priors: got 'equal'"),
        ({"early_stopping": True, "validation_fraction": 1.5}, "validation_fraction: got 1.5"),
        ({"early_stopping": True, "validation_fraction": 1}, "validation_fraction: got 1"),
        ({"class_weight": {7: 1.0}}, "class"),
    ],
)
def test_bad_parameters_are_refused_before_training(parameters, message):
    with pytest.raises((ValueError, TypeError), match=message):
        FenchelClassifier(**parameters).fit(*IRIS)


def test_bad_rows_are_refused():
    X, y = IRIS
    with pytest.raises(ValueError, match="one class"):
        FenchelClassifier().fit(X[:50], y[:50])
    with pytest.raises(ValueError, match="NaN"):
        FenchelClassifier().fit(np.where(X > 1, np.nan, X), y)
    with pytest.raises(ValueError, match="sum to 0|non-zero"):
        FenchelClassifier().fit(X, y, np.zeros(150))
    with pytest.raises(ValueError, match="too few to hold some out"):
        FenchelClassifier(early_stopping=True).fit(X[::15], y[::15])
    with pytest.raises(ValueError, match="first call of partial_fit"):
        FenchelClassifier().partial_fit(X, y)
    for options in ({"early_stopping": True}, {"class_weight": "balanced"}, {"priors": "frequencies"}):
        with pytest.raises(ValueError, match="needs all rows at once"):
            FenchelClassifier(**options).partial_fit(X, y, classes=[0, 1, 2])
