"""Tokenizers and chat templates as model folders bring them."""

import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tokenizers
from tiny_model import SPECIAL, write_tiny_model
from tokenizers import decoders, models, pre_tokenizers, processors

from penstock.errors import InvalidRequestError, ModelLoadError
from penstock.models.location import model_name, resolve_model
from penstock.models.tokenizer import Tokenizer

CHAT: list[dict[str, object]] = [{"role": "user", "content": "héllo"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tokenizer") / "tiny")


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(str(folder))


def test_text_there_and_back(tokenizer: Tokenizer) -> None:
    for text in ("", "plain", "häß 漢字 🙂\n\t", "\x00\x7f"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_bytes_of_tokens_spell_the_text(tokenizer: Tokenizer) -> None:
    text = "漢字 🙂 and <|end|>"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert {tokenizer.token_bytes(token_id) for token_id in range(256)} == {
        bytes([byte]) for byte in range(256)
    }
    assert tokenizer.token_bytes(99_999) == b""


def test_special_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 256 + len(SPECIAL)
    assert tokenizer.eos_token_id == 256
    assert tokenizer.decode([256]) == ""
    assert tokenizer.decode([256], skip_special_tokens=False) == "<|end|>"


def test_chat(tokenizer: Tokenizer) -> None:
    assert tokenizer.render_chat(CHAT) == "<|user|>héllo<|end|><|assistant|>"
    assert tokenizer.encode_chat(CHAT, add_generation_prompt=False)[-1] == tokenizer.eos_token_id


def with_template(folder: Path, target: Path, template: object, **extra: object) -> Tokenizer:
    target.mkdir()
    (target / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = {"eos_token": {"content": "<|end|>"}, "chat_template": template, **extra}
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    return Tokenizer.load(str(target))


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": "héllo"}]'),
        ("{{ eos_token }}{{ bos_token }}", "<|end|>"),
        ("{% generation %}{{ messages[0]['content'] }}{% endgeneration %}", "héllo"),
        ("{% for m in messages %}{% if true %}{% break %}{% endif %}x{% endfor %}.", "."),
        ("{{ strftime_now('%Y')|length }}", "4"),
        ("{% if tools is none %}none{% endif %}", "none"),
        ("{{ flavour }}", "sweet"),
    ],
)
def test_what_templates_rely_on(folder: Path, tmp_path: Path, template: str, rendered: str) -> None:
    tokenizer = with_template(folder, tmp_path / "m", template)
    assert tokenizer.render_chat(CHAT, flavour="sweet") == rendered


def test_where_templates_are_kept(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    assert with_template(folder, tmp_path / "named", named).render_chat(CHAT) == "yes"
    (tmp_path / "named" / "chat_template.jinja").write_text("file")
    assert Tokenizer.load(str(tmp_path / "named")).render_chat(CHAT) == "file"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_refusals_and_escapes_are_the_callers_error(folder: Path, tmp_path: Path, template: str) -> None:
    tokenizer = with_template(folder, tmp_path / "m", template)
    with pytest.raises(InvalidRequestError, match="template refuses"):
        tokenizer.render_chat(CHAT)


def test_no_template(folder: Path, tmp_path: Path) -> None:
    tokenizer = with_template(folder, tmp_path / "m", None)
    with pytest.raises(InvalidRequestError, match="/v1/completions"):
        tokenizer.render_chat(CHAT)


def test_broken_folders_name_the_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="not valid Jinja"):
        with_template(folder, tmp_path / "a", "{% if %}")
    (tmp_path / "a" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json"):
        Tokenizer.load(str(tmp_path / "a"))
    (tmp_path / "a" / "tokenizer_config.json").write_text("[")
    with pytest.raises(ModelLoadError, match="not valid JSON"):
        Tokenizer.load(str(tmp_path / "a"))


def test_sentencepiece_style_vocabularies(tmp_path: Path) -> None:
    """Llama's: a space is U+2581, bytes outside the vocabulary are <0x..> pieces, and a BOS goes in front."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "h", "i", "\u2581hi"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            {piece: place for place, piece in enumerate(pieces)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
            ignore_merges=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(str(tmp_path))
    with_bos = tokenizer.encode("hi é")
    assert with_bos[0] == 1
    assert tokenizer.encode("hi é", add_special_tokens=False) == with_bos[1:]
    assert b"".join(map(tokenizer.token_bytes, with_bos[1:])) == "hi é".encode()
    assert tokenizer.decode(with_bos) == "hi é"


def test_a_folder_without_tokenizer_json_goes_through_transformers(tmp_path: Path) -> None:
    """GPT-2's older files: a vocabulary and its merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: place for place, piece in enumerate([*alphabet, "ab", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": "<|endoftext|>"}')
    tokenizer = Tokenizer.load(str(tmp_path))
    assert tokenizer.eos_token_id == 257
    assert tokenizer.encode("ab c")[0] == vocabulary["ab"]
    assert tokenizer.decode(tokenizer.encode("ab ç")) == "ab ç"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("ab ç"))) == "ab ç".encode()


def test_a_folder_without_any_tokenizer_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelLoadError, match="no tokenizer"):
        Tokenizer.load(str(tmp_path))


def test_where_models_are(folder: Path) -> None:
    assert resolve_model(str(folder)) == folder
    assert model_name(str(folder)) == "tiny"
    assert model_name("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
    for nowhere in ("./nowhere", "/no/such/folder", "nowhere", "a/b/c"):
        with pytest.raises(ModelLoadError, match="no such folder"):
            resolve_model(nowhere)


def test_a_folder_without_a_tokenizer_says_what_to_add(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "config.json", tmp_path)
    with pytest.raises(
        ModelLoadError, match=r"has no tokenizer\.json, and .* installed .* Add the tokenizer"
    ) as raised:
        Tokenizer.load(str(tmp_path))
    assert "\n" not in raised.value.message


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("GatedRepo", r"'acme/model' is gated: ask for access at https://huggingface\.co/acme/model, then log in"),
        ("RepoNotFound", "'acme/model' is neither a folder here nor a repository of the hub that may be read"),
    ],
)  # fmt: skip
def test_what_the_hub_refuses_is_told_apart(code: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refused(*arguments: object, **others: object) -> None:
        kind = {"GatedRepo": errors.GatedRepoError, "RepoNotFound": errors.RepositoryNotFoundError}[code]
        raise kind("401 Client Error.\n\nMore of it.", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refused)
    with pytest.raises(ModelLoadError, match=says):
        resolve_model("acme/model")


def test_importing_it_loads_neither_torch_nor_transformers() -> None:
    import subprocess
    import sys

    code = "import sys, penstock.models.tokenizer as t; print({'torch', 'transformers'} & {*sys.modules})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_a_long_text_lets_other_threads_run(tokenizer: Tokenizer) -> None:
    """The server's event loop among them: every stream would stand still otherwise."""
    text = "a b c " * 150_000
    pauses, done = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    tokenizer.encode(text)
    spent = time.perf_counter() - started
    done.set()
    watcher.join()
    assert max(pauses) < spent / 2, (max(pauses), spent)
