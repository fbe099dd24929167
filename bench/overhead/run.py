"""What a proxy adds to a request, Penstock beside others and beside the floor, all against one mock upstream in one run:

    python bench/overhead/run.py                                 all peers
    python bench/overhead/run.py --peers litellm --repeats 3

Installs what is missing under .work/peers. The proxy is held to one core, the upstream and this client to another; samples
of all proxies take turns, so that a drift of the machine hits all. What could not be installed or run is listed with its
reason.
"""

import argparse
import datetime
import json
import os
import shutil
import signal
import socket
import sys
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path

HERE, BENCH = Path(__file__).parent, Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(BENCH), str(BENCH / "peers")]

from client import LoadFailed, Target  # noqa: E402
from compare import hardware  # noqa: E402
from environments import SCRATCH, NotAvailable  # noqa: E402
from measures import BUSY_CONNECTIONS, QUIET_PAUSE, ROWS, Sampled, first_token  # noqa: E402
from peers.table import QUIET  # noqa: E402
from processes import Meanwhile, Process, kill_all  # noqa: E402
from proxies import FILES, FLOOR, PEERS, PENSTOCK, PENSTOCK_2, PENSTOCK_KEEPING, Proxy  # noqa: E402
from report import DIRECT, RATIOS, Samples, markdown  # noqa: E402

PROXY_CORE, CLIENT_CORE = 0, 1
WARM_UP_TURNS = 1
START_SECONDS = 120.0
HOW = """\
`python bench/overhead/run.py`. Medians of {repeats} samples of some {seconds:g} s, the proxies taking turns, against one
mock upstream that answers at once. The proxy is held to one core; client and upstream share the other (several workers share
all). CPU is user and system time of all its processes, by the kernel's clock. Busy: {connections} connections, each with the
next request at once. Quiet: one, with {pause:g} ms between requests and between chunks, each of which wakes an idle process.
Answers in one piece have 300 bytes; chunks arrive one by one, each sent after the client has had the one before. TTFT is of
one stream at a time, less that of the same request to the upstream itself. Ratios are of samples of the same turn. Samples
while others used more than {quiet:g} of a core are left out, unless all were (starred); at most they used {others:.2f}."""


def free_port() -> int:
    """A port that nothing listens on, nor on the next, which a proxy's metrics may take."""
    while True:
        with socket.socket() as chosen, socket.socket() as beside:
            chosen.bind(("127.0.0.1", 0))
            port: int = chosen.getsockname()[1]
            with suppress(OSError, OverflowError):
                beside.bind(("127.0.0.1", port + 1))
                return port


class Running:
    """A proxy's process, ready for requests."""

    def __init__(self, proxy: Proxy, upstream: int) -> None:
        if proxy.environment:
            proxy.environment.prepare()
        port = free_port()
        cores = str(PROXY_CORE) if proxy.workers == 1 else f"0-{os.cpu_count() - 1}"
        log = SCRATCH / "logs" / f"overhead-{proxy.name}.log"
        self._process = Process(
            ["taskset", "--cpu-list", cores, *proxy.command(port, upstream)], proxy.variables, log
        )
        self.group = self._process.child.pid
        self.target = Target(port=port, acknowledge=upstream, headers=proxy.headers())
        self._process.wait_until_ready(f"http://127.0.0.1:{port}{proxy.ready}", START_SECONDS)

    def close(self) -> None:
        self._process.close()


class Bench:
    """Takes samples of all proxies in turn.

    Attributes:
        missing: proxy to the reason why it has no figures.
        pushed: chunks that the upstream sent though the one before had not arrived, by proxy.
        others: the most cores that others used during a sample.
    """

    def __init__(self, upstream: int, repeats: int, seconds: float) -> None:
        self._upstream, self._repeats, self._seconds = upstream, repeats, seconds
        self.samples, self.missing, self.pushed = Samples(), {}, {}
        self.others = 0.0

    def measure(self, proxies: Sequence[Proxy]) -> None:
        with ExitStack() as stack:
            running: dict[str, Running] = {}
            for proxy in proxies:
                try:
                    running[proxy.name] = Running(proxy, self._upstream)
                    stack.callback(running[proxy.name].close)
                except NotAvailable as reason:
                    self._give_up(proxy.name, reason)
            for turn in range(-WARM_UP_TURNS, self._repeats):
                for row in ROWS:
                    self._take_direct(row, turn)
                    for name, one in running.items():
                        if name not in self.missing:
                            self._take(name, row, one, turn)

    def _take(self, name: str, row: str, one: Running, turn: int) -> None:
        before = self._count_pushed()
        try:
            with Meanwhile() as meanwhile:
                sampled = ROWS[row](one.target, one.group, self._seconds)
        except LoadFailed as reason:
            self._give_up(name, reason)
            return
        self.pushed[name] = self.pushed.get(name, 0) + self._count_pushed() - before
        self._add(name, row, sampled, turn, meanwhile.others)

    def _take_direct(self, row: str, turn: int) -> None:
        """The same request with no proxy between: what TTFT is compared with."""
        if ROWS[row] is first_token:
            with Meanwhile() as meanwhile:
                sampled = first_token(
                    Target(port=self._upstream, acknowledge=self._upstream), os.getpgid(0), self._seconds
                )
            self._add(DIRECT, row, sampled, turn, meanwhile.others)

    def _add(self, name: str, row: str, sampled: Sampled, turn: int, others: float) -> None:
        told = ", ".join(f"{figure} {value:.4g}" for figure, value in sampled.figures.items())
        print(f"{turn:>3} {name:<20} {row:<12} others {others:.2f}  {told}", flush=True)
        if turn >= 0:
            self.others = max(self.others, others)
            self.samples.add(name, sampled.figures, sampled.first, others)

    def _give_up(self, name: str, reason: Exception) -> None:
        print(f"{name}: {reason}", flush=True)
        self.missing[name] = str(reason)

    def _count_pushed(self) -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._upstream}/pushed") as answer:
            return int(answer.read())


def title(proxy: Proxy) -> str:
    return f"{proxy.name} {proxy.version()}"


def report(bench: Bench, proxies: Sequence[Proxy], how: str) -> tuple[dict[str, object], str]:
    """What goes into the JSON, and the page."""
    measured = [proxy for proxy in proxies if proxy.name not in bench.missing]
    grown = bench.samples.scaling(PENSTOCK.name, PENSTOCK_2.name)
    titles = {proxy.name: title(proxy) for proxy in measured}
    data = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(),
        "proxies": titles,
        "medians": {name: bench.samples.medians(name) for name in titles},
        "over_the_floor": {
            name: {figure: bench.samples.ratio(figure, name) for figure in RATIOS} for name in titles
        },
        "scaling_of_2_workers": grown,
        "missing": bench.missing,
        "pushed": bench.pushed,
        "others_at_most": bench.others,
        "samples": {
            name: {figure: [asdict(sample) for sample in taken] for figure, taken in figures.items()}
            for name, figures in bench.samples.figures.items()
        },
    }
    page = [f"# What a proxy adds to a request\n\n{how}\n", markdown(bench.samples, titles), ""]
    if grown is not None and not bench.samples.disturbed(PENSTOCK_2.name, "crowd_cpu_us"):
        page.append(
            f"Two workers of Penstock serve {grown:.2f}x what one does, by CPU time and the shares of the two; client and "
            "upstream need a core themselves here, so that the clock cannot show it.\n"
        )
    page += ["What each does:\n", *(f"- {proxy.name}: {proxy.does}" for proxy in measured)]
    page += [f"- {name}: not measured: {reason}" for name, reason in bench.missing.items()]
    page += [
        f"- {name}: {count} chunks were sent before the one before had arrived, after a quarter of a second of silence."
        for name, count in bench.pushed.items()
        if count
    ]
    return data, "\n".join(page) + "\n"


def _stop(*_: object) -> None:
    """At once: an exception would end up in the client's event loop."""
    kill_all()
    os._exit(128 + signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="instead of all")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each row")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a sample")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "overhead.json")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    if (os.cpu_count() or 1) < 2:
        raise SystemExit("This machine has one core; the proxy needs one of its own beside the client's.")
    os.sched_setaffinity(0, {CLIENT_CORE})
    shutil.rmtree(FILES, ignore_errors=True)
    FILES.mkdir(parents=True)
    proxies = [FLOOR, PENSTOCK, PENSTOCK_KEEPING, *(PEERS[name] for name in args.peers), PENSTOCK_2]
    port = free_port()
    upstream = Process(
        [sys.executable, str(HERE / "mock_upstream.py"), str(port)],
        {},
        SCRATCH / "logs" / "overhead-upstream.log",
    )
    try:
        upstream.wait_until_ready(f"http://127.0.0.1:{port}/health", START_SECONDS)
        bench = Bench(port, args.repeats, args.seconds)
        bench.measure(proxies)
    finally:
        upstream.close()
    how = HOW.format(
        repeats=args.repeats,
        seconds=args.seconds,
        connections=BUSY_CONNECTIONS,
        pause=QUIET_PAUSE * 1e3,
        others=bench.others,
        quiet=QUIET,
    )
    data, page = report(bench, proxies, how)
    print(page, flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(data, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(page)


if __name__ == "__main__":
    main()
