"""Losses taken in chunks of positions are those taken at once, in value and gradients, in a bounded memory."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
)

from penstock.compress.distill.losses import divergence
from penstock.compress.distill.objective import Distillation, DistillSettings
from penstock.compress.training import chunked
from penstock.compress.training.batches import IGNORE, Batch
from penstock.compress.training.halves import split
from penstock.compress.training.objective import CrossEntropy

VOCAB_SIZE = 320  # of tiny_llama


def load(folder, dtype=torch.float64):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def batch(rows: int = 3, length: int = 20) -> Batch:
    torch.manual_seed(1)
    ids = torch.randint(VOCAB_SIZE - 4, (rows, length + 1))
    labels = torch.where(torch.rand(rows, length) < 0.7, ids[:, 1:], IGNORE)
    return Batch(ids[:, :-1], labels)


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-9, atol=1e-12, msg=name)


def test_cross_entropy_is_that_of_all_logits_at_once(tiny_llama, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 0)  # the smallest chunks
    model, data = load(tiny_llama), batch()
    loss = CrossEntropy()(split(model), data)
    found = gradients(model, loss.value)
    logits = model(input_ids=data.ids).logits
    plain = functional.cross_entropy(logits.flatten(0, 1), data.labels.flatten(), ignore_index=IGNORE)
    assert loss.positions == (data.labels != IGNORE).sum() > 16
    torch.testing.assert_close(loss.value, plain, rtol=1e-12, atol=0)
    assert_same(found, gradients(model, plain))


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd"])
def test_distillation_is_the_plain_formula(tiny_llama, other_llama, kind, monkeypatch):
    """The teacher's vocabulary is padded to another size than the student's."""
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 0)
    student, teacher, data = load(tiny_llama), load(other_llama), batch()
    settings = DistillSettings(kind, temperature=2.0, beta=0.3, cross_entropy=0.25)
    loss = Distillation(teacher, 64, settings)(split(student), data)
    found = gradients(student, loss.value)

    wanted = data.labels != IGNORE
    logits = student(input_ids=data.ids).logits[wanted][:, : VOCAB_SIZE - 4]
    with torch.no_grad():
        p = (teacher(input_ids=data.ids).logits[wanted] / 2).softmax(-1)
    q = (logits / 2).softmax(-1)
    m = 0.3 * p + 0.7 * q
    away = {
        "forward-kl": (p * (p / q).log()).sum(-1),
        "reverse-kl": (q * (q / p).log()).sum(-1),
        "jsd": 0.3 * (p * (p / m).log()).sum(-1) + 0.7 * (q * (q / m).log()).sum(-1),
    }[kind].mean()
    plain = functional.cross_entropy(logits, data.labels[wanted])
    expected = 0.75 * 4 * away + 0.25 * plain
    torch.testing.assert_close(loss.value, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(loss.parts["cross_entropy"], plain.detach(), rtol=1e-10, atol=0)
    assert_same(found, gradients(student, expected))


def test_what_the_student_wrote_is_no_truth(tiny_llama, other_llama):
    data = batch()
    own = Batch(data.ids, data.labels, written_by_student=True)
    student = split(load(tiny_llama))
    mixed = Distillation(load(other_llama), 64, DistillSettings(cross_entropy=0.5))
    pure = Distillation(load(other_llama), 64, DistillSettings())
    assert mixed(student, own).value == pure(student, data).value != mixed(student, data).value


def test_the_ends_of_the_jensen_shannon_divergence_are_the_two_kl():
    torch.manual_seed(0)
    a, b = torch.randn(2, 5, 40, dtype=torch.float64)
    near = 1e-6
    for kind, beta, scale in (("forward-kl", near, near), ("reverse-kl", 1 - near, near)):
        jsd = divergence("jsd", a, b, beta=beta) / scale
        torch.testing.assert_close(jsd, divergence(kind, a, b), rtol=1e-4, atol=0)
    assert divergence("jsd", a, a).abs().max() < 1e-15


class Largest(TorchDispatchMode):
    """The most numbers in any tensor made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self.elements = max(self.elements, made.numel())
        return out


def test_no_tensor_of_a_step_holds_logits_of_all_positions(tiny_llama, other_llama, monkeypatch):
    monkeypatch.setattr(chunked, "CHUNK_ELEMENTS", 32 * VOCAB_SIZE)
    student, data = load(tiny_llama, torch.float32), batch(16, 64)
    objective = Distillation(load(other_llama, torch.float32), 64, DistillSettings("jsd"))
    with Largest() as largest:
        objective(split(student), data).value.backward()
    positions = int((data.labels != IGNORE).sum())
    widest = data.ids.numel() * 128  # the MLP's activations, of all positions, learnt from or not
    assert largest.elements <= widest < positions * VOCAB_SIZE


@pytest.mark.parametrize(
    "model",
    [
        CohereForCausalLM(CohereConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                       num_attention_heads=2, num_key_value_heads=1, logit_scale=0.0625)),
        GraniteForCausalLM(GraniteConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=1, logits_scaling=8.0)),
        Gemma2ForCausalLM(Gemma2Config(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                                       num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                                       final_logit_softcapping=2.0)),
        GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=32)),
    ],
    ids=lambda model: model.config.model_type,
)  # fmt: skip
def test_heads_that_scale_or_bend_their_logits(model):
    model.eval()
    halves, ids = split(model), torch.arange(20)[None]
    with torch.no_grad():
        hidden = halves.backbone(input_ids=ids).last_hidden_state
        torch.testing.assert_close(halves.head(hidden), model(input_ids=ids).logits)


def test_a_head_that_does_something_else_is_refused(tiny_llama):
    from penstock.errors import CompressError

    model = load(tiny_llama, torch.float32)
    model.lm_head.register_forward_hook(lambda module, args, out: out * 1.1)
    with pytest.raises(CompressError, match="LlamaForCausalLM makes its logits"):
        split(model)


def test_broken_weights_are_told_for_what_they_are(tiny_llama):
    from penstock.errors import CompressError

    model = load(tiny_llama, torch.float32)
    torch.nn.init.constant_(model.model.layers[1].mlp.up_proj.weight, torch.nan)
    with pytest.raises(CompressError, match=f"{tiny_llama} gives logits that are not numbers"):
        split(model)
