"""Writes docs/choosing.md: which objective in which situation, each line with the check of the gallery that it rests on.

The numbers are those of src/fenchel/gallery/results, and a line stands in the table of what helped only while its check passes: with new results that say
otherwise this refuses to write the page, and the tests fail.
"""

from dataclasses import dataclass
from pathlib import Path

from fenchel.gallery import find
from fenchel.gallery.page import anchor, interval, number
from fenchel.gallery.result import RESULTS, judge, load

PAGE = Path(__file__).resolve().parent / "choosing.md"


@dataclass(frozen=True)
class Line:
    """A situation, the objective to take or to leave, and the statement of the check, in a paper of the gallery, that says so."""

    situation: str
    objective: str
    paper: str
    statement: str


HELPED = (
    Line(
        "Many labels are wrong",
        "`gce:0.7`",
        "P011",
        "40 % of labels wrong: accuracy gain of generalised cross-entropy (tau = 1.7) over cross-entropy",
    ),
    Line(
        "Many labels are wrong, a few are known to be right, and the wrong ones are to be corrected",
        "`meta_label_gradient`: descent on the labels",
        "P031",
        "share of right labels: gain of correction over the given ones",
    ),
    Line(
        "Which labels are wrong is to be seen",
        "`aldr_rows`: a temperature per example",
        "P018",
        "40 % of labels wrong: temperature of wrong labels less that of right ones",
    ),
    Line(
        "The k likeliest classes are shown, not one",
        "`ldr`, no symmetric loss such as `mae`",
        "P018",
        "minimisers of LDR: share of distributions whose k likeliest classes come first, least k of 1 to 4",
    ),
    Line(
        "A long tail, and all classes count alike",
        "`cross_entropy` with q = the class frequencies",
        "P038",
        "mean recall: gain of the class prior in the loss over cross-entropy",
    ),
    Line(
        "A long tail, whose classes must not be taken for frequent ones",
        "`decision_loss` with utilities",
        "P038",
        "false head rate: utilities less cross-entropy",
    ),
    Line(
        "Each example has a set of candidate labels",
        "`candidates`",
        "P049",
        "accuracy gain of the likelihood of the set over all candidates alike",
    ),
    Line(
        "A fixed predictor may decline to answer",
        "`rejection_loss`",
        "P019",
        "mean cost: surrogate loss less answering always",
    ),
    Line(
        "An input gives the label away in training and may shift later",
        "`cross_entropy + 0.1*logit_penalty`, without weight decay",
        "P016",
        "random colour: accuracy gain over weight decay",
    ),
    Line(
        "Inputs are attacked",
        "`adversarial_comp_sum`",
        "P011",
        "accuracy under attack: gain of smooth adversarial cross-entropy over cross-entropy",
    ),
    Line(
        "Inputs are attacked, and accuracy without attack counts too",
        "`adversarial_comp_sum` instead of cross-entropy of attacked inputs",
        "P011",
        "accuracy without attack: gain over cross-entropy of attacked inputs",
    ),
    Line(
        "Inputs are attacked, and the samples that are hit hardest count most",
        "`worst_inputs`, weighed by `running_weights`",
        "P030",
        "mean loss of the weakest tenth under attack, less that of uniform weights",
    ),
    Line(
        "A shortcut hides what else could be learned",
        "`discovery_risk`: a second network on the groups that the first one makes",
        "P050",
        "agreement with the shape: gain of the second round over the first",
    ),
    Line(
        "Few and imbalanced examples, and probabilities have to be right",
        "`odd_k_out_rows`: cross-entropy of sets",
        "P021",
        "calibration error less that of cross-entropy with classes alike",
    ),
    Line(
        "Few, partly mislabelled examples, and a trained model to refer to",
        "`dro` of `excess_losses`",
        "P042",
        "accuracy gain over the mean at 400 samples",
    ),
    Line(
        "No loss may be large, on unseen examples too",
        "`FeasibleLearning` with slack",
        "P034",
        "mean of the worst tenth on unseen samples, resilient less ERM",
    ),
    Line(
        "A robust risk (CVaR, extremile) to its minimum, a sample at a time",
        "`Prospect`",
        "P028",
        "decades of suboptimality at the end, Prospect less SGD",
    ),
    Line(
        "Environments differ in a feature that copies the target",
        "`conditioned_penalty`, or `irm_penalty`",
        "P020",
        "error with the copy reversed, conditioned less none",
    ),
    Line(
        "The model is asked 16 times and one right answer will do (pass@16)",
        "`coverage` with n = 16",
        "P060",
        "pass@16: gain of the loss with N = 16 over cross-entropy",
    ),
    Line(
        "The model is asked once",
        "`cross_entropy`, no `coverage`",
        "P060",
        "pass@1: gain of cross-entropy over the loss with N = 16",
    ),
    Line(
        "Fine-tuning a base model that does not know the text",
        "`cross_entropy`, nothing that leans on the model's own probabilities",
        "P057",
        "weak base: accuracy gain of -log p over 1 - p",
    ),
    Line(
        "Fine-tuning a base model that knows the kind of text",
        "`asft`",
        "P056",
        "accuracy on the task: gain of ASFT over SFT",
    ),
    Line(
        "Fine-tuning that must not drift from the base model",
        "`asft`",
        "P056",
        "KL to the base, nats: ASFT less DFT",
    ),
    Line(
        "Fine-tuning, and what the base model could do is to be kept",
        "`asft` over `cross_entropy`",
        "P056",
        "accuracy on the base's own text: gain of ASFT over SFT",
    ),
    Line(
        "Few examples, classes alike, and probabilities have to be right",
        "`cross_entropy`, no label smoothing",
        "P021",
        "few digits, log-loss: cross-entropy less label smoothing",
    ),
    Line(
        "Few examples, classes alike, and probabilities have to be right",
        "`cross_entropy`, no `focal`",
        "P021",
        "few digits, calibration error: cross-entropy less focal",
    ),
    Line(
        "The least recall counts, and there are labelled examples of every class to validate on",
        "`pair_distribution` of `pair_gains`: mixtures of chosen classes, over single examples",
        "P062",
        "least recall: gain of SelMix, least recall over classes alike",
    ),
    Line(
        "Fine-tuning, a stage of preferences after it",
        "`cross_entropy` at a tenth of the rate of pre-training",
        "P058",
        "accuracy after preferences: gain of a tenth of the rate",
    ),
    Line(
        "Fine-tuning on passages some of which are garbled, and an aligned model to refer to",
        "`preference_sft`",
        "P059",
        "negative log-likelihood, nats: PoFT less SFT",
    ),
    Line(
        "One of several candidates is to be chosen by its likelihood",
        "`ranking_loss` besides the likelihood",
        "P061",
        "quality of the likeliest of 4 candidates: gain of the ranking",
    ),
    Line(
        "One language model is to fill gaps, short and long, and to continue text",
        "`DenoisingCollator` with `UL2`",
        "P063",
        "worst of the three kinds, nats: mixture less the best single kind",
    ),
    Line(
        "Many classes, and the true one is to be among the 20 likeliest",
        "`z_loss:0.2`",
        "P023",
        "top-20: gain of Z-loss over cross-entropy",
    ),
    Line(
        "Each example has the scores of several raters, and their spread counts",
        "`score_distribution` as the target of cross-entropy",
        "P022",
        "error of the deviation, in levels: distribution less one-hot",
    ),
    Line(
        "Scored sets whose raters use the scale differently are trained on together",
        "`fidelity` of `thurstone` on pairs of one set, beside the distributions",
        "P022",
        "two sets: rank correlation, gain of the fidelity loss over none",
    ),
    Line(
        "Several labels for each example, many of them missing",
        "`recalled` labels, beside `binary`",
        "P037",
        "average precision of all classes: gain of recalled labels over binary cross-entropy alone",
    ),
    Line(
        "Embeddings of the classes that are trained on are to lie far apart",
        "`UNPG`",
        "P055",
        "gap of trained classes: gain of UNPG over the margin softmax",
    ),
    Line(
        "Few classes to train on, and others to tell apart by five examples each",
        "cross-entropy of `cosine_logits`",
        "P017",
        "accuracy on unseen classes, 4 seen, 5 shots: gain of the softmax of cosines over softmax",
    ),
    Line(
        "A mixture is fitted to objects, and each is to have one component",
        "`RegularizedMixture(1.0)`",
        "P014",
        "components that share a digit: with MCM less without",
    ),
    Line(
        "A network distils itself, with true targets at hand",
        "`self_distilled` with `optimal_weight`",
        "P068",
        "test error of a network: weight by formula less the first fit",
    ),
    Line(
        "No teacher, labels alone, and soft targets are wanted",
        "`USKD`",
        "P071",
        "accuracy gain of USKD over the labels alone",
    ),
    Line(
        "Rewards, and a teacher that knows most answers",
        "`kdrl`",
        "P072",
        "log of the answers until a reward of 0.7: KDRL less GRPO",
    ),
    Line(
        "Rewards, and a teacher with flaws",
        "`trrd`",
        "P074",
        "final reward: TRRD 0.9 less GRPO",
    ),
    Line(
        "Layers of a deep student are distilled from layers of the teacher",
        "`stable_kd`: blocks apart, then merged",
        "P076",
        "accuracy gain",
    ),
    Line(
        "Several domains to train on, and one not seen in the test",
        "`domain_specific_risk`, heads mixed by a classifier of the domains as gap",
        "P029",
        "new angle: accuracy gain of heads by angle over ERM",
    ),
    Line(
        "A model of a long tail meets a shifted stream, without labels",
        "cross-entropy on predictions that are `reliable`, over all predictions",
        "P045",
        "rare classes of the stream: recall gained by reliable over all pseudo-labels",
    ),
    Line(
        "A model adapts to a stream, and not where nothing shifted",
        "`needs_update` before each step",
        "P045",
        "share of unshifted batches with an update",
    ),
)

DID_NOT = (
    Line(
        "Several domains to train on, and one not seen in the test",
        "heads mixed by their entropy over one head for all",
        "P029",
        "new angle: accuracy gain of heads by entropy over ERM",
    ),
    Line(
        "Several domains to train on, and one not seen in the test",
        "steps down the entropy of predictions as samples arrive, over heads as trained",
        "P029",
        "new angle: accuracy gain of steering, heads by angle",
    ),
    Line(
        "A long tail, and all classes count alike",
        "`balanced_contrast` beside cross-entropy",
        "P045",
        "rare classes of the source: recall gained by the contrast in pre-training",
    ),
    Line(
        "Several labels for each example, most classes rare",
        "`multi_focal` over binary cross-entropy",
        "P037",
        "average precision of the tail: gain of the multi-focal loss over binary cross-entropy",
    ),
    Line(
        "Embeddings for classes not seen in training, few to train on",
        "`UNPG` over the margin softmax",
        "P055",
        "gap of unseen classes: gain of UNPG over the margin softmax",
    ),
    Line(
        "Each text has several labels",
        "`decoupled` over `cross_entropy` of the uniform distribution on them",
        "P012",
        "precision at 1: gain of decoupled softmax over InfoNCE",
    ),
    Line(
        "Many labels are wrong",
        "`aldr_rows` over `ldr`",
        "P018",
        "40 % of labels wrong: accuracy gain of ALDR over LDR",
    ),
    Line(
        "Many labels are wrong, a few are known to be right",
        "training on labels that `meta_label_gradient` corrected, over the given ones",
        "P031",
        "40 % of labels wrong: accuracy gain of corrected labels over the given ones",
    ),
    Line(
        "Inputs are attacked",
        "`adversarial_comp_sum` over cross-entropy of attacked inputs",
        "P011",
        "accuracy under attack: gain over cross-entropy of attacked inputs",
    ),
    Line(
        "Inputs are attacked",
        "`running_weights` over the mean of the attacked losses",
        "P030",
        "accuracy under attack: gain of the running weights over uniform ones",
    ),
    Line(
        "Known classes are labelled in part, others are to be found among the unlabelled samples",
        "`local_entropy` and `dual_view_divergence` over agreement of views alone",
        "P051",
        "unlabelled samples of known classes: accuracy gain of both terms",
    ),
    Line(
        "Environments differ in a shortcut",
        "`irm_penalty` from features that `synthesis_risk` made rich, over a random start",
        "P050",
        "colours reversed: gain of IRM from rich features over a random start",
    ),
    Line(
        "Only the shares of classes in bags of 16 are known",
        "`proportion_losses` over matching the shares",
        "P013",
        "accuracy from bags of 16 less that of matching the shares",
    ),
    Line(
        "A linear program is decided by predicted costs, and its true costs are known",
        "`optimality_margin` over least squares",
        "P039",
        "relative regret from 300 programs, less that of least squares",
    ),
    Line(
        "One threshold of similarity for classes not seen in training",
        "`TCM` over none",
        "P024",
        "OPIS on unseen classes times 1000, less that without TCM",
    ),
    Line(
        "The model is asked 4 times (pass@4)",
        "`coverage` with n = 4 over `cross_entropy`",
        "P060",
        "pass@4: gain of the loss with N = 4 over cross-entropy",
    ),
    Line(
        "Each example has a set of candidate labels",
        "`purified` sets over `candidates` alone",
        "P049",
        "accuracy gain of purification over the same loss without",
    ),
    Line(
        "A fixed predictor may decline to answer",
        "`rejection_loss` over a threshold on confidence",
        "P019",
        "mean cost: surrogate loss less the best threshold on confidence",
    ),
    Line(
        "Fine-tuning a base model that knows the text, on noisy text",
        "`probability:1` over `cross_entropy`",
        "P057",
        "strong base: accuracy gain of 1 - p over -log p",
    ),
    Line(
        "Many classes, and the true one is to be among the 10 likeliest",
        "`z_loss:0.2` over `cross_entropy`",
        "P023",
        "top-10: gain of Z-loss over cross-entropy",
    ),
    Line(
        "The least recall counts, and there are labelled examples of every class to validate on",
        "`pair_distribution` of `pair_gains` over training on those examples too",
        "P062",
        "least recall: gain of SelMix, least recall over validation digits too",
    ),
    Line(
        "Fine-tuning, a stage of preferences after it",
        "`f_divergence:hellinger` over `cross_entropy`, each at its best rate",
        "P058",
        "accuracy after preferences: gain of Hellinger over KL",
    ),
    Line(
        "Fine-tuning on passages some of which are garbled",
        "`preference_sft` over leaving out what the aligned model holds to be unlikely",
        "P059",
        "accuracy: gain of PoFT over SFT on filtered passages",
    ),
    Line(
        "Greedy continuations are to be better",
        "`ranking_loss` over the likelihood alone",
        "P061",
        "quality of greedy continuations: gain of the ranking",
    ),
    Line(
        "A long tail",
        "an ensemble of three over one network",
        "P038",
        "mean recall: gain of three particles over one, rebalanced",
    ),
    Line(
        "A teacher and a smaller student, digits",
        "`pld` over `kl` with a temperature",
        "P065",
        "accuracy gain over KL distillation",
    ),
    Line(
        "A teacher and a smaller student, digits",
        "`SinKD` over `kl`",
        "P075",
        "accuracy gain of both together over KL",
    ),
)

_HEAD = """\
# Choosing an objective

From a situation to an objective. Every line rests on one check of [the gallery](gallery.md): the number is its estimate, with the 95 % interval over
seeds, and the link leads to the experiment. They are small experiments, on scikit-learn's digits for the most part: a line says where to begin, and
`fenchel compare` and `fenchel distill` say what holds on your data. This page is made of the recorded results (`python docs/build_choosing.py`), and a
line whose check no longer says so fails the tests.

Without any of these situations, take cross-entropy (`kl`); with a large vocabulary take its fused head, or that of a sparse generator such as `alpha:1.5`
([benchmarks](benchmarks.md)).
"""


def page() -> str:
    """The text of the page.

    Raises:
        ValueError: a line whose check is not in the results, or came out the other way.
    """
    parts = [_HEAD, "## What helped\n", table(HELPED, passes=True), "## What did not show\n"]
    parts.append("A claim of a paper that these experiments did not bear out. It may well hold at the paper's scale.\n")
    return "\n".join([*parts, table(DID_NOT, passes=False)])


def table(lines: tuple[Line, ...], *, passes: bool) -> str:
    """The lines as a table, each with its number."""
    rows = ["| Situation | Objective | What was measured | Estimate | 95 % interval | |", "|---|---|---|---|---|---|"]
    rows += [row(line, passes=passes) for line in lines]
    return "\n".join(rows) + "\n"


def row(line: Line, *, passes: bool) -> str:
    """One line with the estimate of its check."""
    paper = find(line.paper)
    results = load(RESULTS, [paper.id])
    checks = judge(paper, results[paper.id])[0] if paper.id in results else []
    check = next((check for check in checks if check.statement == line.statement), None)
    if check is None or check.passes is not passes:
        raise ValueError(
            f"got no check of {line.paper} that says {line.statement!r} and {'passes' if passes else 'fails'}: change the line in docs/build_choosing.py"
        )
    link = f"[{paper.id}](gallery.md#{anchor(paper)})"
    return f"| {line.situation} | {line.objective} | {check.statement} | {number(check.estimate)} | {interval(check)} | {link} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.name}")
