"""Folders that others quantized: what the library of the format writes and computes, and what is refused, by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from library_artefact import read_by_the_library, write_as_the_library_does
from safetensors.torch import load_file, save_file

from penstock.compress.evaluate.scorers import ServedScorer
from penstock.errors import ModelLoadError
from penstock.models.loading import load_model
from penstock.models.packed_integers import pack, unpack
from penstock.models.quantized_linear import QuantizedLinear, SharedLinearPart

IDS = [(7 * place) % 300 + 5 for place in range(60)]
WEIGHTS_W4 = {"num_bits": 4, "strategy": "group", "group_size": 32}
WEIGHTS_W8 = {"num_bits": 8, "strategy": "channel"}
PER_TOKEN = {"num_bits": 8, "strategy": "token", "dynamic": True}
GROUPS: dict[str, dict[str, Any]] = {
    "w8a8": {"all": {"targets": ["Linear"], "weights": WEIGHTS_W8, "input_activations": PER_TOKEN}},
    "w8a16": {"all": {"targets": ["Linear"], "weights": WEIGHTS_W8}},
    "w4a16": {"all": {"targets": ["Linear"], "weights": WEIGHTS_W4}},
    "w4a16 zeros": {"all": {"targets": ["Linear"], "weights": WEIGHTS_W4 | {"symmetric": False}}},
    "mixed": {
        "attention": {"targets": ["re:.*self_attn.*"], "weights": WEIGHTS_W8, "input_activations": PER_TOKEN},
        "mlp": {"targets": ["re:.*(gate|up)_proj$"], "weights": WEIGHTS_W4},
        # A name goes before a pattern, and a pattern before a class.
        "one": {"targets": ["model.layers.1.mlp.up_proj"], "weights": WEIGHTS_W8},
    },
}


@pytest.fixture(scope="module")
def artefacts(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, torch.dtype], Path] = {}

    def artefact(kind: str, dtype: torch.dtype = torch.float32) -> Path:
        if (kind, dtype) not in made:
            target = tmp_path_factory.mktemp("stored") / kind
            made[kind, dtype] = write_as_the_library_does(tiny_llama, target, GROUPS[kind], dtype=dtype)
        return made[kind, dtype]

    return artefact


@pytest.fixture
def copied(artefacts: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    return lambda kind: Path(shutil.copytree(artefacts(kind), tmp_path / kind))


def theirs(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = read_by_the_library(folder, own_activations=True)(torch.tensor([IDS])).logits[
            0
        ]
    return logits.float()


def ours(folder: Path, ids: list[int] = IDS, **settings: Any) -> torch.Tensor:
    scorer = ServedScorer(load_model(str(folder), **settings), "ours")
    return torch.cat([part.clone() for part in scorer.logits(ids, 64)])


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("kind", "dtype", "error"),
    [
        ("w8a8", torch.float32, 1e-4),
        # Elsewhere one side rounds activations to 16 bits.
        ("w8a8", torch.bfloat16, 0.06),
        ("w8a16", torch.float32, 0.02),
        ("w4a16", torch.float32, 0.02),
        ("w4a16", torch.float16, 0.02),
        ("w4a16 zeros", torch.float32, 0.02),
        ("w4a16 zeros", torch.float16, 0.02),
        ("mixed", torch.float32, 0.03),
    ],
    ids=str,
)
def test_what_the_library_writes_is_served_as_it_computes_it(kind, dtype, error, artefacts):
    folder = artefacts(kind, dtype)
    assert relative(ours(folder), theirs(folder)) < error


def test_a_gpu_serves_it_too(artefacts):
    for kind in ("mixed", "w4a16", "w4a16 zeros"):
        folder = artefacts(kind)
        assert relative(ours(folder, IDS[:12], device="interpreter"), theirs(folder)[:12]) < 1e-4


@pytest.mark.parametrize(("bits", "columns"), [(4, 64), (4, 61), (8, 64), (8, 30)])
def test_words_are_packed_as_the_library_packs_them(bits, columns):
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, columns), dtype=torch.int8)
    packed = pack(values, bits)
    assert torch.equal(packed, pack_to_int32(values, bits))
    assert torch.equal(unpack(packed, bits, columns), values)
    assert torch.equal(unpack_from_int32(packed, bits, torch.Size(values.shape)), values)


def test_each_layer_has_the_precision_that_its_most_specific_target_gives_it(artefacts):
    model = load_model(str(artefacts("mixed")))
    assert model.precision == "mixed" and model.linears == {"w8a8": 8, "w4a16": 3, "w8a16": 1, "none": 3}
    shared = {
        name.rpartition(".")[2] for name, m in model.module.named_modules() if isinstance(m, SharedLinearPart)
    }
    alone = {name for name, m in model.module.named_modules() if isinstance(m, QuantizedLinear)}
    assert shared == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert {"model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"} <= alone
    assert model.num_parameters == load_model(str(artefacts("w8a8"))).num_parameters


def test_whole_layers_of_int8_are_computed_by_the_c_library(artefacts):
    there = load_model(str(artefacts("w8a8")))
    rounded_here = load_model(str(artefacts("w8a8").parent / "w8a8"))
    assert there.fused == rounded_here.fused
    if there.fused:
        assert there.fused["layers"] == 2


def test_another_precision_than_the_stored_one_is_refused(artefacts):
    assert load_model(str(artefacts("w8a8")), quantize="w8a8").precision == "w8a8"
    with pytest.raises(ModelLoadError, match=r"quantize is 'w4a16', but .* is stored in w8a8"):
        load_model(str(artefacts("w8a8")), quantize="w4a16")


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A change of `quantization_config`."""

    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            config = config[parent]
        config[last] = value

    return change


REFUSED = {
    "quant_method": ("gptq", "by 'gptq', of which Penstock reads 'compressed-tensors' only"),
    "format": ("marlin-24", "the format 'marlin-24'"),
    "quantization_status": ("frozen", "the quantization status 'frozen'"),
    "sparsity_config": ({"format": "sparse-24-bitmask"}, "a sparsity_config"),
    "transform_config": ({"config_groups": {"u": {}}}, "a transform_config"),
    "kv_cache_scheme": ({"num_bits": 8, "type": "float"}, r"a kv_cache_scheme \(float8\)"),
    "shiny": (1, "unknown field `shiny`"),
    "config_groups/group_0/weights/type": ("float", "float 8-bit weights"),
    "config_groups/group_0/weights/num_bits": (3, "int 3-bit weights"),
    "config_groups/group_0/weights/symmetric": (False, "asymmetric 8-bit weights"),
    "config_groups/group_0/weights/actorder": ("group", "g_idx"),
    "config_groups/group_0/weights/strategy": ("tensor", "8-bit weights per tensor"),
    "config_groups/group_0/weights/colour": ("blue", r"unknown field `colour` - at `\$.config_groups"),
    "config_groups/group_0/input_activations/dynamic": (False, "static activation scales"),
    "config_groups/group_0/input_activations/type": ("float", "float 8-bit activations"),
    "config_groups/group_0/input_activations/strategy": ("group", "activations per group"),
    "config_groups/group_0/output_activations": ({"num_bits": 8}, "quantized output activations"),
    "config_groups/group_0/targets": (
        ["Embedding"],
        "holds .*down_proj.weight, .* I8: no layer takes it",
    ),
    "config_groups": ({}, "names no quantized layer"),
    "ignore": (["lm_head", "re:.*down_proj"], "holds .*down_proj.weight.*no layer takes it"),
}


@pytest.mark.parametrize("path", REFUSED)
def test_what_is_not_served_is_refused_by_name(path, copied):
    folder = copied("w8a8")
    value, message = REFUSED[path]
    file = folder / "config.json"
    config = json.loads(file.read_text())
    _set(path, value)(config["quantization_config"])
    file.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=message):
        load_model(str(folder))


def test_groups_that_no_kernel_has_are_refused(tiny_llama, tmp_path):
    scheme = {"all": {"targets": ["Linear"], "weights": WEIGHTS_W4 | {"group_size": 16}}}
    folder = write_as_the_library_does(tiny_llama, tmp_path / "16", scheme, dtype=torch.float32)
    with pytest.raises(ModelLoadError, match="4-bit weights per group of 16"):
        load_model(str(folder))


LAYER = "model.layers.0.mlp.down_proj"


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.pop(f"{LAYER}.{name}")


def _with(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors.update({f"{LAYER}.{name}": value})


BROKEN: list[tuple[str, Callable[[dict[str, torch.Tensor]], object], str]] = [
    (
        "w8a8",
        _without("weight_scale"),
        f"model.safetensors lacks {LAYER}.weight_scale, which w8a8 layers have",
    ),
    ("w8a8", _without("weight"), f"lacks {LAYER}.weight, which"),
    ("w4a16", _without("weight_shape"), f"lacks {LAYER}.weight_shape, which"),
    (
        "w8a8",
        _with("weight_scale", torch.ones(3, 1)),
        r"weight_scale is \[3, 1\] F32; for this model it must be \[64, 1\]",
    ),
    ("w8a8", _with("weight", torch.ones(64, 128)), r"weight is \[64, 128\] F32; .* \[64, 128\] I8"),
    ("w4a16", _with("weight_packed", torch.ones(64, 4, dtype=torch.int32)), r"must be \[64, 16\] I32"),
    ("w4a16", _with("weight_shape", torch.tensor([64, 96])), r"weight_shape is \[64, 96\]; .* \[64, 128\]"),
    (
        "w4a16 zeros",
        _without("weight_zero_point"),
        f"lacks {LAYER}.weight_zero_point, which w4a16 layers have",
    ),
    (
        "w4a16",
        _with("weight_zero_point", torch.zeros(8, 4, dtype=torch.int32)),
        "holds .*weight_zero_point.*no layer takes it",
    ),
    ("w4a16", _with("weight_g_idx", torch.arange(128)), "holds .*weight_g_idx.*no layer takes it"),
    ("w8a8", _with("weight_scale", torch.full((64, 1), torch.nan)), "weight_scale is not finite"),
    (
        "w8a8",
        lambda tensors: tensors.update({"model.layers.0.mlp.experts.0.w1.weight_scale": torch.ones(1)}),
        "experts stored quantized are not served yet",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_a_broken_file_is_an_error_that_names_file_and_tensor(kind, change, message, copied):
    folder = copied(kind)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=message) as raised:
        load_model(str(folder))
    assert "again" in raised.value.message or "anew" in raised.value.message


def test_a_file_cut_short_or_missing_is_named(copied):
    folder = copied("w8a8")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelLoadError, match=r"model\.safetensors cannot be read"):
        load_model(str(folder))
    file.unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelLoadError, match=r"model-00001-of-00001\.safetensors cannot be read"):
        load_model(str(folder))
    save_file(
        {"other": torch.ones(1)}, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ModelLoadError, match=r"lacks model\.norm\.weight, which .* says it has"):
        load_model(str(folder))
