"""A request asked once more, for nobody: no client waits for its answer, and no tenant's account has what it takes."""

import time
from typing import TYPE_CHECKING

import msgspec
import orjson

from .cascade.attempt import Attempt
from .observe.record import RequestRecord
from .tenants.admission import Admission
from .tenants.standing import Ask

if TYPE_CHECKING:
    from .answering import Asked


def unseen(asked: "Asked") -> "Asked":
    """The same without a stream, with a record of its own, which no sink is told of."""
    record = RequestRecord(
        request_id=asked.record.request_id,
        method="",
        route="",
        started=time.perf_counter(),
        time=time.time(),
    )
    fields = {name: value for name, value in asked.fields.items() if name != "stream_options"}
    fields["stream"] = False
    return msgspec.structs.replace(
        asked,
        record=record,
        body=orjson.dumps(fields),
        fields=fields,
        stream=False,
        attempt=Attempt(unseen=True),
        unaccounted=Admission(asked.caller.account, Ask(), None, None),
    )
