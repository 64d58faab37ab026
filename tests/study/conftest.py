"""A corpus and a model small enough to train in a second."""

import json
from pathlib import Path

import pytest

WORDS = "return self value for in if else not None def import class name index result"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A directory of 60 short text files."""
    directory = tmp_path / "corpus"
    directory.mkdir()
    words = WORDS.split()
    for i in range(60):
        lines = [" ".join(words[(i * j + k * k) % len(words)] for k in range(8)) for j in range(1, 12)]
        (directory / f"file{i:02d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A Llama configuration with V = 300 and D = 16."""
    path = tmp_path / "tiny.json"
    path.write_text(
        json.dumps(
            {
                "model_type": "llama",
                "vocab_size": 300,
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "max_position_embeddings": 64,
                "tie_word_embeddings": False,
                "pad_token_id": None,
            }
        ),
        encoding="utf-8",
    )
    return path
