"""The names that a study trains with: each objective once, under one name, and nothing that trains nothing."""

import pytest

from fenchel.objectives.names import split_names
from fenchel.objectives.supervised import supervised_names
from fenchel.study import objectives
from fenchel.study.errors import StudyError
from fenchel.study.objectives import checked_objectives

PENALTIES = {"entropy_penalty", "confidence_penalty", "log_partition", "logit_penalty"}


def test_every_name_of_the_library_but_penalties_is_an_objective_of_a_study():
    for name in set(supervised_names()) - PENALTIES - {"alpha:A", "js:BETA", "tv"}:
        assert checked_objectives([name])
    for name in PENALTIES:
        with pytest.raises(StudyError, match=f"a penalty alone learns no label; pass cross_entropy \\+ {name}"):
            checked_objectives([name])
        assert checked_objectives([f"cross_entropy + 0.1*{name}"])
    for name in ("entropy_penalty + 0.1*logit_penalty", "0*mae + entropy_penalty"):
        with pytest.raises(StudyError, match="learns no label"):
            checked_objectives([name])


def test_generators_have_one_spelling_and_others_keep_theirs():
    assert checked_objectives(["alpha:1.50", "alpha:1", "js:0.5", "fenchel_young:alpha:2"]) == (
        "alpha:1.5",
        "kl",
        "js",
        "alpha:2",
    )
    kept = ("2*js", "kl:temperature=2", "gce:q=0.70", "nce + 0.5*rce", "alpha:1.5 + 1e-4*log_partition")
    assert checked_objectives(kept) == kept
    assert checked_objectives(["nce  +   rce "]) == ("nce + rce",)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("gce:0.5", "comp_sum:1.5"),
        ("focal", "focal:gamma=2"),
        ("kl", "cross_entropy"),
        ("fenchel_young:js,temperature=2", "2*js"),
        ("nce + 0.5*rce", "0.5*rce:A=4 + nce"),
        ("sce:alpha=0.1,beta=1", "0.1*cross_entropy + rce"),
        ("mae + mae", "2*mae"),
        ("sce:alpha=1,beta=0", "cross_entropy"),
        ("alpha:1.50 + 0.1*logit_penalty", "alpha:1.5 + 0.1*logit_penalty"),
    ],
)
def test_two_names_of_one_objective_are_refused(one, other):
    with pytest.raises(StudyError, match="are one objective") as refused:
        checked_objectives([one, "spherical", other])
    assert f"{one} and {other}" in str(refused.value)
    assert checked_objectives([one]) != checked_objectives([other])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2*fenchel_young:kl", "2*kl"),  # twice the loss, and that at temperature 2
        ("mae", "2*mae"),
        ("dft", "mae"),
        ("alpha:1.5", "alpha:1.5 + 0.1*entropy_penalty"),
        ("spherical:0.1", "spherical:0.2"),
    ],
)
def test_objectives_that_differ_may_stand_beside_each_other(one, other):
    assert checked_objectives([one, other]) == (one, other)


def test_objectives_that_would_be_recorded_in_one_place_are_refused(monkeypatch):
    monkeypatch.setattr(objectives, "run_directory", lambda out, name, seed: out / name[:3])
    with pytest.raises(StudyError, match=r"focal and focal:3 would share a directory"):
        checked_objectives(["kl", "focal", "focal:3"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("kl,alpha:1.5", ("kl", "alpha:1.5")),
        ("kl,sce:alpha=0.1,beta=1, js:0.3,temperature=2", ("kl", "sce:alpha=0.1,beta=1", "js:0.3,temperature=2")),
        ("probability:1,0.05,gce", ("probability:1,0.05", "gce")),
        ("probability:1,0.05 + 0.1*log_partition,mae", ("probability:1,0.05 + 0.1*log_partition", "mae")),
        ("nce + agce:1,q=2 + 0.1*logit_penalty,kl", ("nce + agce:1,q=2 + 0.1*logit_penalty", "kl")),
        ("kl,,js", ("kl", "", "js")),
    ],
)
def test_commas_separate_names_and_parameters(text, names):
    assert split_names(text) == names
