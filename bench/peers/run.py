"""Penstock's speed on a CPU beside vLLM, llama.cpp and OpenVINO GenAI, each in an environment of its own, in one run:

    python bench/peers/run.py                                     both shapes, all peers, all rows
    python bench/peers/run.py --shape qwen05 --peers vllm --rows single concurrent16

Installs what is missing under .work/peers (the first time takes gigabytes, and compiles llama.cpp), converts the same random
weights for each engine, and measures every row of all engines in turn, so that a drift of the machine hits all. A sample
during which others used the machine is taken again, up to a limit. Penstock runs without speculation: it would gain from
the loops that random weights fall into. What could not be installed or run is listed with its reason.
"""

import argparse
import contextlib
import datetime
import fcntl
import functools
import json
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

BENCH = Path(__file__).parents[1]
sys.path.insert(0, str(BENCH))

import rows  # noqa: E402
from compare import hardware  # noqa: E402
from engines import PEERS, PENSTOCK, Engine  # noqa: E402
from environments import ROOT, NotAvailable  # noqa: E402
from processes import Meanwhile, Server, Worker  # noqa: E402
from table import Sample, markdown, median, ratio  # noqa: E402

SHAPES = {
    "qwen05": ("Qwen2.5-0.5B shape, random weights", ("single", "concurrent16", "ttft1024", "shared_prefix")),
    "builtin": ("built-in model (8M)", ("single", "concurrent16", *rows.CLIENTS)),
}
"""What each is called, and its rows beside cold_start."""
HOW = """\
Medians; the same prompts of random tokens for each, greedy, lengths forced; 2 threads. Penstock (without speculation), vLLM
and OpenVINO are called in process, llama.cpp through its own server. Over HTTP each has its own server, and the client of
`bench/load_client.py` takes its share of the same cores."""


EXTRA_TURNS = 2
"""In which those samples are repeated that others disturbed."""
Measure = Callable[[int], rows.Figures]
"""Gives the figures of the n-th sample."""


class Bench:
    """Takes samples, in turn, under a lock if there is one.

    Attributes:
        samples: by engine and figure.
        missing: "engine" or "engine, row" to the reason why there are none.
    """

    def __init__(self, lock: Path | None, repeats: int) -> None:
        self._lock, self._repeats = lock, repeats
        self.samples: dict[str, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
        self.missing: dict[str, str] = {}

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        if self._lock is None:
            yield
            return
        with self._lock.open("w") as opened:
            fcntl.flock(opened, fcntl.LOCK_EX)
            yield

    def take(self, row: str, measures: dict[str, Measure]) -> None:
        """`repeats` samples of each engine, and some more in place of those that others disturbed."""
        wanted = dict.fromkeys(measures, self._repeats)
        with self.alone():
            for turn in range(self._repeats + EXTRA_TURNS):
                for name, count in wanted.items():
                    if count and f"{name}, {row}" not in self.missing:
                        wanted[name] -= self._sample(row, name, functools.partial(measures[name], turn))

    def _sample(self, row: str, name: str, measure: Callable[[], rows.Figures]) -> bool:
        """Takes one sample; says whether it was quiet. False too where the engine failed."""
        with Meanwhile() as meanwhile:
            try:
                figures = measure()
            except (NotAvailable, ValueError) as reason:
                self.give_up(f"{name}, {row}", reason)
                return False
        for figure, value in figures.items():
            self.samples[name][figure].append(Sample(value, meanwhile.others))
            print(f"{name:>10} {figure:<22}{value:10.4g}   others {meanwhile.others:.2f}", flush=True)
        return self.samples[name][figure][-1].quiet

    def give_up(self, what: str, reason: Exception) -> None:
        print(f"{what}: {reason}", flush=True)
        self.missing[what] = str(reason)


def prepared(engines: Sequence[Engine], folder: Path, shape: str, bench: Bench) -> dict[str, Path]:
    """The path of each engine's form of the model; who has none is told in `bench.missing`."""
    paths = {}
    print("installing and converting what is not there yet", flush=True)
    for engine in engines:
        try:
            engine.prepare()
            paths[engine.name] = engine.convert(folder, shape)
        except NotAvailable as reason:
            bench.give_up(engine.name, reason)
    return paths


def sample_of_worker(worker: Worker, row: str, turn: int) -> rows.Figures:
    """Every engine gets the same prompts in the same turn."""
    return rows.IN_PROCESS[row](worker, random.Random(f"{row}/{turn}"))


def sample_of_start(engine: Engine, model: Path, _turn: int) -> rows.Figures:
    return rows.cold_start(engine, model)


def measure_in_process(
    engines: Sequence[Engine], paths: dict[str, Path], names: Sequence[str], bench: Bench
) -> dict[str, dict[str, str]]:
    """Rows of workers, which stay loaded meanwhile, for engines in `paths`. Returns what they say of themselves."""
    workers: dict[str, Worker] = {}
    try:
        with bench.alone():
            for engine in engines:
                try:
                    workers[engine.name] = Worker(engine, paths[engine.name])
                    rows.warm_up(workers[engine.name])
                except NotAvailable as reason:
                    bench.give_up(engine.name, reason)
        for name in names:
            bench.take(
                name,
                {
                    engine: functools.partial(sample_of_worker, worker, name)
                    for engine, worker in workers.items()
                    if engine not in bench.missing
                },
            )
        return {name: worker.about for name, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def measure_over_http(
    engines: Sequence[Engine], paths: dict[str, Path], names: Sequence[str], bench: Bench
) -> None:
    """Rows of servers, which all stay up meanwhile."""
    servers: dict[str, Server] = {}
    words: dict[str, int] = {}
    try:
        with bench.alone():
            for engine in engines:
                try:
                    servers[engine.name] = Server(engine, paths[engine.name])
                    words[engine.name] = rows.warm_up_server(servers[engine.name])
                except (NotAvailable, ValueError) as reason:
                    bench.give_up(f"{engine.name}, over HTTP", reason)
        for name in names:
            bench.take(
                name,
                {
                    engine: functools.partial(
                        rows.over_http, servers[engine], words[engine], rows.CLIENTS[name]
                    )
                    for engine in words
                },
            )
    finally:
        for server in servers.values():
            server.close()


def measure_shape(
    shape: str, engines: Sequence[Engine], wanted: Sequence[str], bench: Bench
) -> dict[str, dict[str, str]]:
    folder = ROOT / "models" / "builtin" if shape == "builtin" else random_weights()
    paths = prepared(engines, folder, shape, bench)
    able = [engine for engine in engines if engine.name in paths]
    names = [name for name in rows.ROWS if name in wanted and name in (*SHAPES[shape][1], "cold_start")]
    about = {}
    if in_process := [name for name in names if name in rows.IN_PROCESS]:
        about = measure_in_process(able, paths, in_process, bench)
    able = [engine for engine in able if engine.name not in bench.missing]
    if "cold_start" in names:
        bench.take(
            "cold_start",
            {engine.name: functools.partial(sample_of_start, engine, paths[engine.name]) for engine in able},
        )
    if over_http := [name for name in names if name in rows.CLIENTS]:
        measure_over_http(able, paths, over_http, bench)
    return about


def random_weights() -> Path:
    """Made in a process of its own, which gives its memory back."""
    made = subprocess.run(
        [sys.executable, BENCH / "shapes.py"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return ROOT / made.stdout.strip().splitlines()[-1]


def report(
    engines: Sequence[Engine], about: dict[str, dict[str, str]], bench: Bench
) -> tuple[dict[str, object], str]:
    """What of one shape goes into the JSON, and its table."""
    samples = bench.samples
    medians = {
        engine.name: {figure: median(taken) for figure, taken in samples[engine.name].items()}
        for engine in engines
    }
    noisy = frozenset(
        (name, figure)
        for name, taken in samples.items()
        for figure, values in taken.items()
        if not any(sample.quiet for sample in values)
    )
    titles = {engine.name: title(engine, about.get(engine.name)) for engine in engines}
    figures = medians[PENSTOCK.name]
    data = {
        "date": datetime.date.today().isoformat(),
        "engines": about,
        "missing": bench.missing,
        "medians": medians,
        "ratio_to_best_peer": {figure: ratio(figure, medians, PENSTOCK.name) for figure in figures},
        "samples": {
            name: {figure: [asdict(sample) for sample in values] for figure, values in taken.items()}
            for name, taken in samples.items()
        },
    }
    return data, markdown(medians, titles, bench.missing, noisy)


def title(engine: Engine, about: dict[str, str] | None) -> str:
    return f"{engine.title} {about['version']}, {about['precision']}" if about else engine.title


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, help="one shape instead of both")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="instead of all")
    parser.add_argument("--rows", nargs="+", choices=rows.ROWS, default=rows.ROWS, help="instead of all")
    parser.add_argument("--repeats", type=int, default=3, help="samples of each row")
    parser.add_argument("--lock", type=Path, help="file to hold a lock on (flock) while a row is measured")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "peers-cpu.json")
    args = parser.parse_args()
    results = json.loads(args.out.read_text()) if args.out.is_file() else {}
    engines = [PENSTOCK, *(PEERS[name] for name in args.peers)]
    for shape in [args.shape] if args.shape else SHAPES:
        bench = Bench(args.lock, args.repeats)
        machine = hardware()
        about = measure_shape(shape, engines, args.rows, bench)
        data, table = report(engines, about, bench)
        results[shape] = {"hardware": machine} | data | {"markdown": f"## {SHAPES[shape][0]}\n\n{table}\n"}
        print(table, flush=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        tables = [results[name]["markdown"] for name in SHAPES if name in results]
        args.out.with_suffix(".md").write_text("\n".join([HOW, "", *tables]))


if __name__ == "__main__":
    main()
