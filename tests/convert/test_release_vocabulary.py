"""The release's pickled vocabulary: read, and nothing else than it."""

import os
import pickle
import sys
import types

import pytest

from cmap_jax.convert import load_release_vocabulary

SPECIAL = ["<pad>", "<start>", "<and>", "<end>", "<unk>"]


def write_pickle(path, words, module="vocab", protocol=4, **changes):
    """Pickle a Vocabulary object of the release's, whose class then goes away."""
    made = types.ModuleType(module)
    made.Vocabulary = type("Vocabulary", (), {"__module__": module})
    before, sys.modules[module] = sys.modules.get(module), made
    try:
        vocabulary = made.Vocabulary()
        vocabulary.word2idx = {word: i for i, word in enumerate(words)}
        vocabulary.idx2word = dict(enumerate(words))
        vocabulary.idx = len(words)
        vars(vocabulary).update(changes)
        path.write_bytes(pickle.dumps(vocabulary, protocol))
    finally:
        if before is None:
            del sys.modules[module]
        else:
            sys.modules[module] = before
    return path


@pytest.mark.parametrize("module", ["vocab", "__main__"])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_read(tmp_path, module, protocol):
    words = [*SPECIAL, "red", "dress"]
    path = write_pickle(tmp_path / "vocab.pkl", words, module, protocol)
    assert load_release_vocabulary(path).words == tuple(words)


class Malicious:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_nothing_else_is_read(tmp_path):
    path, mark = tmp_path / "vocab.pkl", tmp_path / "mark"
    for content in (
        Malicious(mark),
        {"word2idx": Malicious(mark)},
        types.SimpleNamespace(word2idx={}),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(ValueError, match=r"vocab\.pkl: not the release's vocabulary: it names"):
            load_release_vocabulary(path)
    write_pickle(path, SPECIAL, word2idx=Malicious(mark))
    with pytest.raises(ValueError, match="it names"):
        load_release_vocabulary(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "word2idx", [None, {"<pad>": 1}, {"<pad>": "0"}, {3: 0}, {"red": 0, "blue": 1}]
)
def test_wrong_content(tmp_path, word2idx):
    path = write_pickle(tmp_path / "vocab.pkl", SPECIAL, word2idx=word2idx)
    with pytest.raises(ValueError, match=r"vocab\.pkl: not the release's vocabulary"):
        load_release_vocabulary(path)


def test_wrong_files(tmp_path):
    path = write_pickle(tmp_path / "vocab.pkl", SPECIAL)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"vocab\.pkl: not the release's vocabulary"):
        load_release_vocabulary(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_release_vocabulary(tmp_path / "none.pkl")
