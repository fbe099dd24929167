"""Students made of a teacher's layers work as models, and vocabularies are compared token by token."""

import json

import pytest
import torch
from tiny_model import write_tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from penstock.compress.distill.students import evenly_spaced, from_config, take_layers
from penstock.compress.distill.vocabulary import check_rows, check_same_vocabulary
from penstock.compress.plain_model import load_plain
from penstock.errors import CompressError
from penstock.models.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("count", "depth", "kept"),
    [(1, 4, [0]), (2, 4, [0, 3]), (3, 5, [0, 2, 4]), (3, 4, [0, 2, 3]), (7, 8, [0, 1, 2, 4, 5, 6, 7])],
)
def test_layers_are_evenly_spaced(count, depth, kept):
    assert evenly_spaced(count, depth) == kept


GEMMA = Gemma2Config(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=5,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    sliding_window=4,
)
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=5, n_head=2, n_positions=64)


@pytest.mark.parametrize("make", [lambda: Gemma2ForCausalLM(GEMMA), lambda: GPT2LMHeadModel(GPT2)])
def test_a_student_of_layers_writes_and_reads_back(make, tmp_path):
    """Gemma's layers take turns in their kind of attention, of which the config keeps a list."""
    torch.manual_seed(0)
    teacher = make().eval()
    student = take_layers(teacher, 3).eval()
    assert student.config.num_hidden_layers == 3 and teacher.config.num_hidden_layers == 5
    ids = torch.arange(20)[None]
    with torch.no_grad():
        expected = student(ids).logits
        student.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded(ids).logits, expected)
        # Token by token, through a KV cache, which goes by the layers' own numbers.
        told = student.generate(ids[:, :8], max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert told[0, 8] == student(ids[:, :8]).logits[0, -1].argmax()
        assert told[0, 13] == student(told[:, :13]).logits[0, -1].argmax()


@pytest.mark.parametrize("count", [0, 2, 5])
def test_a_student_is_smaller_than_its_teacher(tiny_llama, count):
    with pytest.raises(CompressError, match=rf"layers is {count}; the teacher has 2, .* has 1 to 1\."):
        take_layers(load_plain(str(tiny_llama)).module, count)


def test_a_student_from_a_configuration_is_the_same_for_a_seed(tiny_llama, tmp_path):
    file = tmp_path / "config.json"
    config = json.loads((tiny_llama / "config.json").read_text()) | {"hidden_size": 32, "head_dim": 8}
    file.write_text(json.dumps(config))
    one, same, other = (from_config(file, seed) for seed in (1, 1, 2))
    assert torch.equal(one.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert one.lm_head.weight.shape == (320, 32) and one.dtype == torch.float32


@pytest.mark.parametrize("text", ["{", '{"model_type": "bert-of-nobody"}', None])
def test_a_configuration_of_no_model_is_told_in_a_line(tmp_path, text):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(CompressError, match="describes no causal language model") as raised:
        from_config(file, 0)
    assert "\n" not in raised.value.message


def test_vocabularies_of_one_size_may_differ(tmp_path):
    one, other, more = (
        Tokenizer.load(str(write_tiny_model(tmp_path / name, special=special)))
        for name, special in (("a", ["<|x|>"]), ("b", ["<|y|>"]), ("c", ["<|x|>", "<|z|>"]))
    )
    check_same_vocabulary(one, one)
    with pytest.raises(CompressError, match=r"'<\|x\|>' is unknown in the one and id 260 in the other"):
        check_same_vocabulary(one, other)
    with pytest.raises(CompressError, match=r"'<\|z\|>' is id 261 in the one and unknown in the other"):
        check_same_vocabulary(one, more)


def test_a_model_has_a_row_for_every_token(tiny_llama, other_llama):
    tokenizer = Tokenizer.load(str(tiny_llama))
    check_rows(load_plain(str(tiny_llama)).module, tokenizer, "The student")
    with pytest.raises(
        CompressError, match="The student has a vocab_size of 316, and the teacher's tokenizer 320 tokens"
    ):
        check_rows(load_plain(str(other_llama)).module, tokenizer, "The student")
