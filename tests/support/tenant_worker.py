"""A process of its own that shares a tenants' folder, driven line by line: one JSON command in, one JSON answer out.

    {"admit": N, "tokens": T, "cost": C}   tries N requests at once, not before the moment "at"; keeps what is admitted
    {"spin": N}                            N tasks that take and give back a place, many times
    {"settle": {...}}                      settles all that are kept
    {"find": KEY}                          the name of its tenant

They are the tenant "acme"'s, or that of "tenant".
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from penstock.errors import AuthenticationError, BudgetExceededError, RateLimitError
from penstock.proxy.tenants.admission import Admission
from penstock.proxy.tenants.spend import Spend
from penstock.proxy.tenants.tenants import Tenants, TenantStore


class Worker:
    """The other end."""

    def __init__(self, path: Path, now: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(path), str(now)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def send(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask(self, **command: Any) -> Any:
        self.send(**command)
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


async def admit_at_once(
    tenants: Tenants, store: TenantStore, name: str, command: dict[str, Any]
) -> list[Admission]:
    tenant = store.directory.tenant(name)

    async def one() -> Admission | None:
        await asyncio.sleep(0)
        try:
            return tenants.admit(
                tenant, model="m", tokens=command.get("tokens", 1), cost=command.get("cost", 0.0)
            )
        except (RateLimitError, BudgetExceededError):
            return None

    found = await asyncio.gather(*(one() for _ in range(command["admit"])))
    return [admission for admission in found if admission is not None]


async def spin(tenants: Tenants, store: TenantStore, name: str, tasks: int) -> dict[str, int]:
    """Most that ran at once, as this process saw it, and how many were admitted and refused."""
    tenant = store.directory.tenant(name)
    figures = {"most": 0, "admitted": 0, "refused": 0}

    async def one() -> None:
        for _ in range(20):
            try:
                with tenants.admit(tenant, model="m", tokens=1, cost=0.0) as admission:
                    figures["most"] = max(figures["most"], store.counters.standing(tenant).running)
                    figures["admitted"] += 1
                    await asyncio.sleep(0)
                    admission.call("m").settle(
                        Spend(model="m", prompt_tokens=1, completion_tokens=1, cost=0.0)
                    )
            except RateLimitError:
                figures["refused"] += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(one() for _ in range(tasks)))
    return figures


def main(path: str, now: float) -> None:
    store = TenantStore(Path(path), clock=lambda: now)
    tenants = Tenants(store)
    kept: list[Admission] = []
    print("ready", flush=True)
    for line in sys.stdin:
        command, answer = json.loads(line), None
        name = command.get("tenant", "acme")
        if "admit" in command:
            while time.time() < command.get("at", 0.0):
                pass
            admitted = asyncio.run(admit_at_once(tenants, store, name, command))
            kept += admitted
            answer = len(admitted)
        elif "spin" in command:
            answer = asyncio.run(spin(tenants, store, name, command["spin"]))
        elif "settle" in command:
            answer = len(kept)
            for admission in kept:
                admission.call("m").settle(Spend(model="m", **command["settle"]))
                admission.close()
            kept.clear()
        elif "find" in command:
            try:
                answer = tenants.authenticate({"x-api-key": command["find"]}).name
            except AuthenticationError as error:
                answer = error.message
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
