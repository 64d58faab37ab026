"""The embedded corpus and the split into training and held-out documents."""

from pathlib import Path

from fenchel.study.corpus import SKIPPED, Document, position, split, standard_library


def test_standard_library_is_large_sorted_and_free_of_tests() -> None:
    documents = standard_library()
    names = [document.name for document in documents]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert sum(len(document.text) for document in documents) > 1_000_000
    assert "json/decoder.py" in names
    assert not [name for name in names if SKIPPED.intersection(Path(name).parts)]


def test_standard_library_leaves_out_what_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("x = 1\n")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "blank.py").write_text("\n")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "other.py").write_text("y = 2\n")
    assert standard_library(tmp_path) == [Document("good.py", "x = 1\n")]


def test_split_depends_on_names_alone() -> None:
    documents = [Document(f"d{i}", str(i)) for i in range(400)]
    train, held = split(documents)
    assert len(train) + len(held) == 400
    assert not {d.name for d in train} & {d.name for d in held}
    assert 5 <= len(held) <= 40
    more_train, more_held = split([*documents[::-1], *(Document(f"e{i}", "") for i in range(400))])
    assert {d.name for d in held} <= {d.name for d in more_held}
    assert {d.name for d in train} <= {d.name for d in more_train}


def test_split_of_few_documents_holds_out_the_two_lowest() -> None:
    documents = [Document(f"d{i}", "") for i in range(5)]
    train, held = split(documents)
    assert len(held) == 2
    assert max(position(d.name) for d in held) < min(position(d.name) for d in train)
