"""A small, made-up study on disk, in the format of the real one: numbers are drawn, not measured."""

import json
import math
import zlib
from pathlib import Path

import numpy as np

from fenchel.study.record import run_directory

BINS = 15
CODE = 'def walk(top, <script>alert("x")</script>):\n    if a < b && c > d:\n        return top\n'


def make_study(
    out: Path,
    objectives=("kl", "alpha:1.5", "alpha:2", "js"),
    seeds=(0, 1, 2),
    *,
    documents=12,
    steps=40,
    evals=5,
    unfinished=(),
    vocab=4096,
    head_share=0.22,
    effects=None,
) -> Path:
    effects = effects or {"alpha:1.5": 0.012, "alpha:2": 0.004, "js": -0.010}
    out.mkdir(parents=True, exist_ok=True)
    model = {"hidden_size": 128, "num_hidden_layers": 2, "vocab_size": vocab, "parameters": 1_445_248}
    data = {
        "name": "Python standard library",
        "documents_train": 573,
        "documents_heldout": documents,
        "tokens_train": 2_804_112,
        "tokens_heldout": 20_480,
        "bytes": 11_204_331,
    }
    config = {"model": model, "data": data, "steps": steps, "batch_size": 16, "context": 128, "lr": 3e-3}
    info = {
        "version": 1,
        "created": "2025-11-22T00:12:00+00:00",
        "objectives": list(objectives),
        "seeds": list(seeds),
        "config": config | {"vocab_size": vocab},
        "machine": {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "cpu_count": 2, "threads": 2},
        "preset": "small",
        "calibration": {"budget_minutes": 5, "seconds_per_step": 0.089},
        "command": "fenchel compare --objectives " + ",".join(objectives),
    }
    (out / "study.json").write_text(json.dumps(info))
    for objective in objectives:
        for seed in seeds:
            where = run_directory(out, objective, seed)
            _run(
                where,
                objective,
                seed,
                info,
                effects.get(objective, 0.0),
                (objective, seed) not in unfinished,
                **{
                    "documents": documents,
                    "steps": steps,
                    "evals": evals,
                    "vocab": vocab,
                    "head_share": head_share,
                },
            )
    return out


def _run(where, objective, seed, info, effect, finished, *, documents, steps, evals, vocab, head_share):
    where.mkdir(parents=True, exist_ok=True)
    sparse = objective.startswith("alpha")
    draw = np.random.default_rng([seed, zlib.crc32(objective.encode())])
    shared = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).normal(size=documents)
    pace = {"kl": 0.089, "alpha:1.5": 0.081, "alpha:2": 0.079}.get(objective, 0.094) * (1 + 0.02 * draw.normal())
    bump = 0.003 * shared.normal()

    last = steps if finished else steps // 2
    with (where / "train.jsonl").open("w") as file:
        for step in range(1, last + 1):
            loss = (1.2 if sparse else 5.0) * math.exp(-3 * step / steps) + (0.5 if sparse else 3.0)
            row = {"step": step, "loss": loss + 0.05 * draw.normal(), "lr": 3e-3, "seconds": pace * step}
            file.write(json.dumps(row | {"tokens": 2048 * step, "head_seconds": head_share * pace * step}) + "\n")
    with (where / "eval.jsonl").open("w") as file:
        for step in sorted({round(t) for t in np.linspace(0, steps, evals)}):
            if step <= last:
                _, per_document, summary = _measure(step / steps, effect, bump, difficulty, sparse, vocab, draw)
                file.write(json.dumps({"step": step, "seconds": pace * step, "metrics": summary}) + "\n")
    if not finished:
        return
    reliability, per_document, summary = _measure(1.0, effect, bump, difficulty, sparse, vocab, draw)
    final = {
        "summary": summary,
        "per_document": per_document,
        "documents": [f"lib/module_{d}.py" for d in range(documents)],
        "reliability": reliability,
        "tokens_per_second": 2048 / pace,
        "head_seconds_share": head_share * (0.8 if sparse else 1.0),
        "head_peak_bytes": 9_437_184 if sparse else 16_777_216,
        "dense_logits_bytes": 2048 * vocab * 4,
        "init_hash": f"init{seed}",
        "data_hash": f"data{seed}",
        "continuation": {"prompt": "import os\n\n\ndef walk(top", "text": CODE},
    }
    (where / "final.json").write_text(json.dumps(final))
    (where / "done.json").write_text("{}")


def _measure(progress, effect, bump, difficulty, sparse, vocab, draw):
    documents = len(difficulty)
    grown = 1 - math.exp(-3 * progress)
    accuracy = np.clip(grown * (0.33 + effect + bump) + 0.05 * grown * difficulty, 0, 1)
    accuracy = np.clip(accuracy + 0.004 * draw.normal(size=documents), 0, 1)
    nll = math.log(vocab) * (1 - 0.48 * grown) - 2.5 * (effect + bump) * grown - 0.2 * difficulty * grown
    tokens = np.full(documents, 20_480 // documents)
    columns = {
        "tokens": tokens,
        "accuracy_1": accuracy,
        "accuracy_5": np.clip(accuracy * 1.6, 0, 1),
        "log_eps_perplexity": nll + 0.01 * draw.normal(size=documents),
        "brier": 1 - 0.75 * accuracy,
        "js_target": math.log(2) * (1 - 0.8 * accuracy),
        "zero_target_share": np.full(documents, 0.06 * grown if sparse else 0.0),
        "support": np.full(documents, vocab * (0.02 + 0.06 * grown) if sparse else float(vocab)),
    }
    reliability = []
    for b in range(BINS):
        share = math.exp(-b / 4) / sum(math.exp(-c / 4) for c in range(BINS))
        gap = (0.03 if sparse else -0.02) * b / BINS + 0.002 * draw.normal()
        columns[f"ece_gap_{b:02d}"] = np.full(documents, share * gap)
        confidence = (b + 0.5) / BINS
        count = int(share * tokens.sum()) if progress > 0 or b == 0 else 0
        row = {"bin": b, "low": b / BINS, "high": (b + 1) / BINS, "count": count}
        seen = {"confidence": confidence, "accuracy": min(max(confidence - gap, 0.0), 1.0)}
        reliability.append(row | (seen if count else dict.fromkeys(seen)))
    mean = {name: float(np.average(column, weights=tokens)) for name, column in columns.items()}
    summary = {k: mean[k] for k in ("accuracy_1", "accuracy_5", "brier", "js_target", "zero_target_share")}
    summary |= {
        "eps_perplexity": math.exp(mean["log_eps_perplexity"]),
        "eps_perplexity_mass_0.1": math.exp(mean["log_eps_perplexity"] * 0.98),
        "eps_perplexity_mass_0.001": math.exp(mean["log_eps_perplexity"] * (1.05 if sparse else 1.001)),
        "ece": sum(abs(mean[f"ece_gap_{b:02d}"]) for b in range(BINS)),
        "support_mean": mean["support"],
        "support_median": mean["support"] * 0.8,
        "nll_softmax": mean["log_eps_perplexity"] * (1.3 if sparse else 1.0),
        "tokens": float(tokens.sum()),
    }
    return reliability, {name: np.asarray(c, dtype=float).tolist() for name, c in columns.items()}, summary
