"""The engine's own loop: read requests, step, send what the step added. One thread, no locks.

Runs in a child process (`python -m penstock.scheduler.engine_server`) or in a thread; its clients are the same.
"""

import gc
import logging
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import msgspec

from ..errors import ModelLoadError, PenstockError
from ..models.light_import import light_import
from .engine_config import EngineConfig
from .host import inherited, remove_address, report_failure
from .outputs import Delta
from .protocol import (
    Abort,
    Add,
    FrameDecoder,
    Hello,
    Refused,
    StepDone,
    Suggest,
    ToClient,
    ToEngine,
    encode,
)
from .step_record import StepRecord

if TYPE_CHECKING:
    from .engine import Engine
    from .scheduler import ScheduledSequence

log = logging.getLogger(__name__)

RECEIVE_BYTES = 1 << 18


class Client:
    """One connected socket: what it has sent so far, what it has not read yet, and which requests are its own."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.decoder: FrameDecoder[ToEngine] = FrameDecoder(ToEngine)
        self.unsent = bytearray()
        self.request_ids: set[str] = set()


class EngineServer:
    """Serves one engine to any number of clients until `stop` is called or `lifeline` closes.

    `lifeline` is a file descriptor whose other end the owner holds: when the owner is gone, so is the engine.
    """

    def __init__(self, engine: "Engine", listener: socket.socket, lifeline: int) -> None:
        self.engine = engine
        self._listener = listener
        self._lifeline = lifeline
        self._selector = selectors.DefaultSelector()
        self._owner: dict[str, Client] = {}
        self._clients: set[Client] = set()
        self._stopped = False
        self._record = StepRecord(listener.getsockname())
        engine.on_schedule = self._on_schedule

    def run(self) -> None:
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._lifeline, selectors.EVENT_READ, self._stop)
        try:
            while not self._stopped:
                idle = not self.engine.has_work()
                for key, events in self._selector.select(None if idle else 0):
                    handle: Callable[[int], None] = key.data
                    handle(events)
                if self.engine.has_work():
                    self._send_deltas(self.engine.step())
                    self._send_refusals()
        finally:
            for client in list(self._clients):
                self._drop(client)
            self._selector.close()
            self._record.close()

    def _on_schedule(self, scheduled: "list[ScheduledSequence]") -> None:
        self._record.write(dict.fromkeys(item.seq.request_id for item in scheduled))

    def _stop(self, _events: int) -> None:
        self._stopped = True

    def _accept(self, _events: int) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        client = Client(connection)
        self._clients.add(client)
        self._selector.register(
            connection, selectors.EVENT_READ, lambda events: self._on_socket(client, events)
        )
        self._send(client, Hello(self.engine.info, self.engine.stats))

    def _on_socket(self, client: Client, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._flush(client)
        if not events & selectors.EVENT_READ:
            return
        try:
            data = client.connection.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        aborted = False
        try:
            for message in client.decoder.feed(data):
                if isinstance(message, Add):
                    self._add(client, message)
                elif isinstance(message, Suggest):
                    self._suggest(client, message)
                else:
                    self._abort(client, message)
                    aborted = True
        except (msgspec.MsgspecError, PenstockError) as error:
            log.error("a client sent what is no message (%s); its connection is closed", error)
            self._drop(client)
            return
        if aborted and not self.engine.has_work():
            # Nothing will step soon: tell the clients that the pool is free again.
            self._broadcast_stats()

    def _add(self, client: Client, message: Add) -> None:
        try:
            self.engine.add_request(
                message.request_id,
                message.prompt_token_ids,
                message.params,
                tenant=message.tenant,
                draft_token_ids=message.draft_token_ids,
                urgency=message.urgency,
                weight=message.weight,
                resume=message.resume,
            )
        except PenstockError as error:
            self._send(client, Refused.of(message.request_id, error))
            return
        self._owner[message.request_id] = client
        client.request_ids.add(message.request_id)

    def _suggest(self, client: Client, message: Suggest) -> None:
        if message.request_id not in client.request_ids:
            return  # finished in the meantime
        try:
            self.engine.suggest(message.request_id, message.token_ids)
        except PenstockError as error:
            log.warning(
                "request %s goes on without the draft suggested for it: %s", message.request_id, error
            )

    def _abort(self, client: Client, message: Abort) -> None:
        if message.request_id not in client.request_ids:
            return  # finished in the meantime
        if message.index is None:
            self.engine.abort(message.request_id)
            self._forget(message.request_id)
        else:
            self.engine.finish_sequence(message.request_id, message.index)
            if not self.engine.is_live(message.request_id):
                self._forget(message.request_id)

    def _send_deltas(self, deltas: list[Delta]) -> None:
        by_client: dict[Client, list[Delta]] = {client: [] for client in self._clients}
        for delta in deltas:
            by_client[self._owner[delta.request_id]].append(delta)
        stats = self.engine.stats
        for client, own in by_client.items():
            self._send(client, StepDone(own, stats))
        for delta in deltas:
            if delta.finish_reason is not None and not self.engine.is_live(delta.request_id):
                self._forget(delta.request_id)

    def _send_refusals(self) -> None:
        for request_id, error in self.engine.take_refused():
            self._send(self._owner[request_id], Refused.of(request_id, error))
            self._forget(request_id)

    def _broadcast_stats(self) -> None:
        for client in list(self._clients):
            self._send(client, StepDone([], self.engine.stats))

    def _forget(self, request_id: str) -> None:
        client = self._owner.pop(request_id, None)
        if client is not None:
            client.request_ids.discard(request_id)

    def _send(self, client: Client, message: ToClient) -> None:
        client.unsent += encode(message)
        self._flush(client)

    def _flush(self, client: Client) -> None:
        if client not in self._clients:
            return
        try:
            sent = client.connection.send(client.unsent) if client.unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(client)
            return
        del client.unsent[:sent]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        key = self._selector.get_key(client.connection)
        if key.events != events:
            self._selector.modify(client.connection, events, key.data)

    def _drop(self, client: Client) -> None:
        if client not in self._clients:
            return
        self._clients.discard(client)
        for request_id in list(client.request_ids):
            self.engine.abort(request_id)
            self._forget(request_id)
        self._selector.unregister(client.connection)
        client.connection.close()
        self._broadcast_stats()


def serve_engine(
    config: EngineConfig,
    listener: socket.socket,
    lifeline: int,
    *,
    loading: AbstractContextManager[None] | None = None,
) -> int:
    """Load the model, inside `loading` where given, and serve it; returns the exit status.

    A model that cannot load is reported to every client.
    """
    # Importing torch and transformers makes a million objects that live as long as the process: collecting among them costs
    # a sixth of the cold start (measured: 4.4 against 5.2 s), and every later collection would walk them again.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with loading or nullcontext():
            from .engine import Engine

            engine = Engine(config)
        gc.freeze()
    except ModelLoadError as error:
        report_failure(error.message, listener)
        return 1
    except Exception as error:
        log.exception("loading %s failed", config.model)
        report_failure(f"{config.model} cannot be loaded: {type(error).__name__}: {error}", listener)
        return 1
    finally:
        if collecting:
            gc.enable()
    try:
        EngineServer(engine, listener, lifeline).run()
    except Exception:
        log.exception("the engine failed and stops; its requests go on in the next one")
        return 1
    return 0


def main() -> int:
    """Entry of the child process: argv is the listener's descriptor; stdin carries the config, then is the lifeline."""
    # Ctrl-C reaches the whole terminal group; the owner decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    config, lifeline, listener = inherited(EngineConfig)
    status = serve_engine(config, listener, lifeline, loading=light_import())
    if status == 0:
        remove_address(listener)  # the owner is gone, or has us stop
    return status


if __name__ == "__main__":
    sys.exit(main())
