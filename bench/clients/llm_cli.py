"""The `llm` command with a model of its extra-openai-models.yaml, as a user sets it up: a streamed answer.

Prints what came as one line of JSON. The command tells neither why an answer ended nor how many tokens it had.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

MODELS = """\
- model_id: penstock
  model_name: {model}
  api_base: {url}
  api_key_name: penstock
"""

with tempfile.TemporaryDirectory() as home:
    Path(home, "extra-openai-models.yaml").write_text(
        MODELS.format(model=os.environ["CLIENT_MODEL"], url=os.environ["CLIENT_URL"])
    )
    Path(home, "keys.json").write_text(json.dumps({"penstock": os.environ["CLIENT_KEY"]}))
    command = [
        *(sys.executable, "-m", "llm", "--model", "penstock", "--option", "temperature", "0"),
        *("--option", "max_tokens", os.environ["CLIENT_MAX_TOKENS"], os.environ["CLIENT_QUESTION"]),
    ]
    asked = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"LLM_USER_PATH": home})
    assert asked.stdout
    pieces = list(iter(lambda: os.read(asked.stdout.fileno(), 65536), b""))
    if asked.wait():
        raise SystemExit(f"llm ended with {asked.returncode}")
text = b"".join(pieces).decode().removesuffix("\n")
print(json.dumps({"pieces": len(pieces), "text": text, "finish": None, "tokens": None}))
