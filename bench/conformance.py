"""Does the server do what its /openapi.json says, whatever it is sent? Asks schemathesis, which invents the requests.

    python -m venv /tmp/schemathesis && /tmp/schemathesis/bin/pip install schemathesis
    python bench/conformance.py --schemathesis /tmp/schemathesis/bin/schemathesis

Starts `penstock serve` with a tiny random model and a key. Exit code 1: a 5xx, or a reply that its description does not
allow; each is printed with a curl command that repeats it. 0 with a word when schemathesis is not installed.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from penstock_command import start
from tiny_model import write_tiny_model

KEY = "conformance"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--schemathesis", default="schemathesis", metavar="PATH", help="its command")
    parser.add_argument(
        "--examples", type=int, default=100, metavar="N", help="requests per endpoint and phase"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--url", help="a running server that takes the key 'conformance', instead of starting one"
    )
    arguments = parser.parse_args()
    command = shutil.which(arguments.schemathesis)
    if command is None:
        print(f"{arguments.schemathesis} is not installed; nothing was checked.")
        return 0
    if arguments.url:
        return run(command, arguments.url, arguments)
    with tempfile.TemporaryDirectory() as folder:
        model = write_tiny_model(Path(folder) / "tiny")
        worst = 0
        for unsupported in ("refuse", "drop"):
            options = ("--model", str(model), "--model-aliases", "*=tiny", "--unsupported", unsupported)
            process, url = start(*options, "--no-cache", "--api-keys", KEY, "--log-level", "error")
            try:
                worst = max(worst, run(command, url, arguments))
            finally:
                process.terminate()
                process.wait()
        return worst


def run(command: str, url: str, arguments: argparse.Namespace) -> int:
    options = {
        "--checks": ",".join(CHECKS),
        "--max-examples": str(arguments.examples),
        "--seed": str(arguments.seed),
        "--request-timeout": "30",
        "--header": f"Authorization: Bearer {KEY}",
        "--generation-database": "none",
    }
    flat = [word for option in options.items() for word in option]
    with tempfile.TemporaryDirectory() as folder:  # it leaves its notes where it runs
        done = subprocess.run([command, "run", f"{url}/openapi.json", *flat], cwd=folder, check=False)
    return done.returncode


if __name__ == "__main__":
    raise SystemExit(main())
