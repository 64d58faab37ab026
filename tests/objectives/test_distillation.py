"""The front doors of distillation: names, orientation, what is not mixed in, what is refused; bugs that other libraries had, by the number of the report."""

import pytest
import torch
from two_models import N, V, heads, logits, same

from fenchel import Generator, divergence, generator, generator_names
from fenchel.objectives.distillation import (
    Mixture,
    Renyi,
    Term,
    distillation,
    distillation_names,
    distillation_objective,
    front,
    gjsd,
    linear_distillation,
)
from fenchel.objectives.distillation.dkd import DKD
from fenchel.objectives.names import makers


def pair(n=8, v=6, scale=1.0, dtype=torch.float64):
    return [(scale * torch.randn(n, v, dtype=torch.float64)).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js:0.3", "alpha:1.5", "hellinger", "2*chi2", "tv"])
def test_a_generators_name_is_the_divergence_of_the_student_from_the_teacher(name):
    t, s = pair()
    torch.testing.assert_close(distillation(name, t, s, reduction="none"), divergence(t, s, name), rtol=0, atol=0)
    torch.testing.assert_close(distillation(generator(name), t, s), divergence(t, s, name).mean(), rtol=0, atol=0)


def test_nothing_is_mixed_in():
    """TRL #5731: a fused JSD that was 0.5 CE + 0.5 JSD, at the sampling temperature. The value is the divergence, by hand."""
    t, s = pair()
    p, q = t.softmax(-1), s.softmax(-1)
    m = (p + q) / 2
    by_hand = 0.5 * (p * (p / m).log() + q * (q / m).log()).sum(-1).mean()
    torch.testing.assert_close(distillation("js", t, s), by_hand)
    p, q = (t / 2).softmax(-1), (s / 2).softmax(-1)
    torch.testing.assert_close(distillation("kl:temperature=2", t, s), (p * (p / q).log()).sum(-1).mean())
    torch.testing.assert_close(distillation("kl:temperature=2,factor=4", t, s), 4 * (p * (p / q).log()).sum(-1).mean())
    assert distillation_objective("kl") == Mixture((Term("kl", "teacher", 0.0, 1.0, 1.0),))


def test_the_orientation_is_in_the_name():
    """TRL #3043 and #4935: mixtures and directions swapped. A student that misses a mode: only KL(t||s) is infinite."""
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    assert float(distillation("kl", teacher, student)) == torch.inf
    torch.testing.assert_close(distillation("reverse_kl", teacher, student), torch.tensor(2.0).log())
    torch.testing.assert_close(distillation("skew_kl:0.5", teacher, student), torch.tensor(0.1438), rtol=0, atol=1e-4)
    # the first argument is what is mixed in: half of what the student lacks is still missing, and then all is there
    assert float(distillation("skew_reverse_kl:0.5", teacher, student)) < float(
        distillation("reverse_kl", teacher, student)
    )
    t, s = pair()
    one = Mixture((Term("js:0.3", first="teacher"),)).rows(t, s)
    torch.testing.assert_close(one, Mixture((Term("js:0.7", first="student"),)).rows(t, s))


def test_the_ends_of_the_generalised_jsd_are_limits():
    """TRL #6780: beta -> 0 is a switch there. Here JSD_beta / beta tends to KL(t||s), and the ends are refused unless scaled."""
    t, s = pair()
    forward, reverse = divergence(t, s).mean(), divergence(s, t).mean()
    for b in (1e-4, 1e-6):
        torch.testing.assert_close(distillation(gjsd(b), t, s) / b, forward, rtol=10 * b, atol=0)
        torch.testing.assert_close(distillation(gjsd(1 - b), t, s) / b, reverse, rtol=10 * b, atol=1e-9)
    for b, limit in ((0, forward), (1, reverse)):
        torch.testing.assert_close(distillation(gjsd(b, scaled=True), t, s), limit)
        torch.testing.assert_close(distillation(gjsd(abs(b - 1e-6), scaled=True), t, s), limit, rtol=1e-4, atol=0)
        with pytest.raises(ValueError, match=r"gjsd: got beta = .; pass 0 < beta < 1 .*pass kl for GKD's beta = 0"):
            gjsd(b)
    with pytest.raises(ValueError, match=r"beta: got -0.1"):
        distillation_objective("gjsd:-0.1")
    with pytest.raises(TypeError, match="scaled: got 1; pass True or False"):
        gjsd(0.5, scaled=1)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", ["kl", "js + 0.5*reverse_kl", "dkd:1,8", "adaptive_kl"])
def test_upstream_gradients_of_single_rows(name):
    """Liger #968: every gradient times the first upstream one. Rows one by one give the same as rows together."""
    x, upstream = heads(), torch.randn(N, dtype=torch.float64)
    student = x[3:]
    teacher = tuple(t.detach() for t in x[:3])
    y = torch.arange(N) % V if distillation_objective(name).needs_target else None
    together = linear_distillation(name, teacher, tuple(student), y, reduction="none")
    got = torch.autograd.grad((together * upstream).sum(), student)
    want = [torch.zeros_like(p) for p in student]
    for i in range(N):
        row = [t[i : i + 1] for t in (teacher[0], student[0])]
        label = None if y is None else y[i : i + 1]
        one = linear_distillation(name, (row[0], *teacher[1:]), (row[1], *student[1:]), label)
        for w, g in zip(want, torch.autograd.grad(one * upstream[i], student), strict=True):
            w += g
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["kl", "reverse_kl", "js:0.1", "dkd:1,8", "adaptive_kl", "bd_kd"])
def test_never_negative_in_float32(name):
    """TRL's ChunkedDivergence: KL down to -7.6e-6 where the truth is 3.4e-8, at logits of size 20."""
    t = 20 * torch.randn(50, 300)
    y = torch.arange(50) if distillation_objective(name).needs_target else None
    for step in (1e-7, 1e-6, 1e-5, 1e-4):
        s = t * (1 + step * torch.randn_like(t))
        rows = distillation(name, t, s, y, reduction="none")
        assert bool((rows >= 0).all())
        exact = distillation(name, t.double(), s.double(), y, reduction="none")
        # logits of size 20 carry 1e-6 each: a KL of 1e-12 beside one of that change in logits
        torch.testing.assert_close(rows.double(), exact, rtol=0.02, atol=1e-6 * float(1 + 9 * ("dkd" in name)))


def test_dtypes():
    """TRL returns float32 for float64."""
    for dtype, out in ((torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)):
        t, s = pair(dtype=dtype)
        for name, y in (("js", None), ("dkd", torch.zeros(8, dtype=torch.int64))):
            assert distillation(name, t, s, y).dtype == out
            w = torch.eye(6).to(dtype)
            assert linear_distillation(name, (t, w), (s, w), y).dtype == out


def test_the_teacher_is_a_constant():
    x = heads()
    for out in (
        linear_distillation("js", tuple(x[:3]), tuple(x[3:])),
        linear_distillation("pld", tuple(x[:3]), tuple(x[3:]), torch.zeros(N, dtype=torch.int64)),
        distillation("js", *logits(x)),
    ):
        grads = torch.autograd.grad(out, x, allow_unused=True)
        assert [g is None for g in grads] == [True] * 3 + [False] * 3


@pytest.mark.parametrize("name", ["skew_reverse_kl:0.1", "kl + reverse_kl:temperature=2", "renyi:2"])
def test_softcap_and_scale_go_with_their_heads(name):
    x = heads()
    teacher = tuple(t.detach() for t in x[:3])

    def dense(*s):
        t, z = logits((*teacher, *s))
        return distillation(name, 2 * torch.tanh(t / 2), 0.5 * z, reduction="none")

    fused = lambda *s: linear_distillation(
        name, teacher, s, softcap=(2.0, None), scale=(1.0, 0.5), reduction="none", memory=1000
    )
    same(fused, dense, x[3:], torch.randn(N, dtype=torch.float64))


def test_mixtures_take_the_kernel_of_divergences(monkeypatch):
    x = [t.detach() for t in heads()]
    want = linear_distillation("js + 0.5*kl", x[:3], x[3:])
    monkeypatch.delattr(front, "linear_pair_rows")
    torch.testing.assert_close(linear_distillation("js + 0.5*kl", x[:3], x[3:]), want)


def test_leading_dimensions():
    t, s = pair(n=12)
    y, mask = torch.arange(12) % 6, torch.arange(12) % 3 > 0
    fold = lambda z: z.view(3, 4, *z.shape[1:])
    for reduction in ("none", "mean"):
        got = distillation("dkd", fold(t), fold(s), fold(y), mask=fold(mask), reduction=reduction)
        want = distillation("dkd", t[mask], s[mask], y[mask], reduction=reduction)
        torch.testing.assert_close(got[fold(mask)] if reduction == "none" else got, want)


def test_names():
    assert len(set(distillation_names())) == len(distillation_names())
    assert set(generator_names()) <= set(distillation_names())
    heads_of = {name.partition(":")[0] for name in generator_names()}
    assert not heads_of & set(makers("fenchel.objectives.distillation"))
    for name in makers("fenchel.objectives.distillation"):
        assert name in distillation_names()


@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("dkd", DKD()),
        ("dkd:1,8", DKD(1, 8)),
        ("dkd: alpha=2, beta=0.5", DKD(2, 0.5)),
        ("js:0.3", Mixture((Term("js:0.3"),))),
        ("js:0.3,temperature=2", Mixture((Term("js:0.3", temperature=2),))),
        ("0.5*kl + 2*reverse_kl", Mixture((Term("0.5*kl"), Term("2*reverse_kl")))),
        ("kl:first=student,factor=4", Mixture((Term("kl", first="student", factor=4),))),
        ("skew_kl:0.1 + js", Mixture((Term("kl", skew=0.1), Term("js")))),
        ("renyi:order=0.5", Renyi(0.5)),
    ],
)
def test_names_are_parsed(name, objective):
    assert distillation_objective(name) == objective
    assert distillation_objective(objective) is objective


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such", r"objective: got 'no_such'; known: kl, .*dkd"),
        ("", r"objective: got ''; known: kl"),
        (
            "dkd:gamma=1",
            r"objective 'dkd:gamma=1': got an unexpected keyword argument 'gamma'; parameters: alpha, beta,",
        ),
        ("dkd:1,2,3,4,5", r"too many positional arguments; parameters: alpha"),
        ("dkd:alpha=x", r"alpha: got str"),
        ("dkd:alpha=-1", r"alpha: got -1"),
        ("renyi", r"missing a required argument: 'order'; parameters: order"),
        ("kl:2", r"unknown generator 'kl:2'"),
        ("js:0.3,0.4", r"objective: got 'js:0.3,0.4'; known: kl"),
        ("alpha", r"unknown generator 'alpha'"),
        ("kl:temperature=0", r"temperature: got 0"),
        ("kl:first=both", r"first: got 'both'; pass 'teacher' or 'student'"),
        ("kl:order=2", r"got an unexpected keyword argument 'order'"),
        ("kl + dkd", r"objective 'kl \+ dkd': 'dkd' is not a divergence; only divergences add by name"),
    ],
)
def test_names_that_are_not(name, message):
    with pytest.raises((ValueError, TypeError), match=message):
        distillation_objective(name)


def test_what_is_no_objective():
    with pytest.raises(TypeError, match=r"objective: got int; pass a name \(kl, .*a Generator, or an object with rows"):
        distillation_objective(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"terms: got \(\); pass a tuple of one Term or more"):
        Mixture(())


def test_an_f_of_ones_own():
    mine = Generator.from_f(lambda u: u * u.log(), name="mine")
    t, s = pair()
    torch.testing.assert_close(distillation(mine, t, s), distillation("kl", t, s), rtol=0, atol=1e-9)
    both = Mixture((Term(mine, factor=0.5), Term(mine, first="student")))
    torch.testing.assert_close(both.rows(t, s), distillation("0.5*kl + reverse_kl", t, s, reduction="none"))


def test_an_objective_of_ones_own():
    class Squared:
        needs_target = False

        def rows(self, teacher, student, target):
            return (teacher - student).square().mean(-1)

    x = heads()
    teacher = tuple(t.detach() for t in x[:3])
    same(
        lambda *s: linear_distillation(Squared(), teacher, s, reduction="none", memory=1000),
        lambda *s: (logits((*teacher, *s))[0] - logits((*teacher, *s))[1]).square().mean(-1),
        x[3:],
    )


Y = torch.arange(8) % 6


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("dkd", {"target": None}, r"target: got None; DKD needs class indices \[8\] \(int64\)"),
        ("kl", {}, r"target: got one, but Mixture does not use it; leave it out"),
        ("dkd", {"target": Y.float()}, r"target: got torch.float32; pass class indices \[8\]"),
        ("dkd", {"target": Y[:4]}, r"target: got shape \[4\] on cpu; pass \[8\]"),
        ("dkd", {"target": Y - 1}, r"target: got class -1; pass classes in \[0, 6\), and leave rows out with mask"),
        ("dkd", {"target": Y + 1}, r"target: got class 6; pass classes in \[0, 6\)"),
        ("dkd", {"reduction": "average"}, r"reduction: got 'average'"),
        ("dkd", {"mask": torch.ones(3, dtype=torch.bool)}, r"mask: got shape \[3\] on cpu; pass \[8\]"),
    ],
)
def test_what_does_not_fit_is_refused(name, change, message):
    t, s = pair()
    options = {"target": Y} | change
    with pytest.raises((TypeError, ValueError), match=message):
        distillation(name, t, s, **options)
    with pytest.raises((TypeError, ValueError), match=message):
        linear_distillation(name, (t, torch.eye(6).double()), (s, torch.eye(6).double()), **options)


def test_ignored_labels_are_legal_where_rows_do_not_count():
    t, s = pair()
    y = torch.where(Y == 2, -100, Y)
    got = distillation("dkd", t, s, y, mask=y != -100, reduction="sum")
    torch.testing.assert_close(got, distillation("dkd", t[Y != 2], s[Y != 2], Y[Y != 2], reduction="sum"))


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (torch.zeros(8, 7).double(), r"student_logits: got shape \[8, 7\], the teacher's have \[8, 6\]; .* cut both"),
        (torch.zeros(8, 6, dtype=torch.int64), r"student_logits: got dtype torch.int64; pass a floating tensor"),
        (torch.zeros(8, 0).double(), r"student_logits: got shape \(8, 0\)"),
    ],
)
def test_logits_that_do_not_fit_are_refused(student, message):
    with pytest.raises((TypeError, ValueError), match=message):
        distillation("kl", pair()[0], student)
