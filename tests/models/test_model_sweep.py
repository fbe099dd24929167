"""docs/models.md says what `bench/model_sweep.py` finds: rows of every kind are tried again, the page is compared whole."""

import json

import model_sweep
import pytest
import transformers

# Each with what no architecture of `test_parity.py` has.
AGAIN = [
    "CTRLLMHeadModel",  # positions by sines
    "DbrxForCausalLM",  # one fused and clipped projection; experts stored side by side
    "Gemma4ForCausalLM",  # heads of several sizes
    "LongcatFlashForCausalLM",  # two attentions in a layer, each with a place of its own
    "MiMoV2FlashForCausalLM",  # windows with sinks, other heads for other layers
    "NemotronForCausalLM",  # layers that hand nothing down to attention
    "GPTNeoForCausalLM",  # attention in its own code, with windows by a mask that it holds
    "FalconForCausalLM",  # the same, with one head of keys, in a class per implementation
    "PegasusForCausalLM",  # a decoder without its encoder, which counts positions by itself
    "TrOCRForCausalLM",  # both, and logits of every row
    "DiffLlamaForCausalLM",  # attends twice per layer
    "RobertaForCausalLM",  # positions counted from the padding's
    "MllamaForCausalLM",  # refused: layers without a KV cache
    "HYV4ForCausalLM",  # refused: sparse attention
]
KNOWN = json.loads(model_sweep.RESULTS.read_text())


@pytest.mark.skipif(transformers.__version__ != "5.23.0", reason="the page is about the pinned transformers")
class TestThePage:
    @pytest.mark.parametrize("row", AGAIN)
    def test_a_row_is_what_is_found(self, row: str):
        assert model_sweep.try_model(row) == KNOWN[row]

    def test_the_page_is_that_of_the_results(self):
        assert model_sweep.TABLE.read_text() == model_sweep.table(KNOWN)

    def test_every_architecture_has_a_row(self):
        assert sorted(KNOWN) == model_sweep.architectures()

    def test_nothing_is_served_wrongly(self):
        served = {model_sweep.WORKS, model_sweep.REFUSED, model_sweep.UNTRIED}
        assert not [row for row, found in KNOWN.items() if found["result"] not in served]
