"""The last requests of this process, by their ids: for a page that asks what became of its own."""

from collections import OrderedDict

from .record import RequestRecord

KEPT = 256


class Recent:
    """A sink of records that named a model."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, RequestRecord] = OrderedDict()

    def ended(self, record: RequestRecord) -> None:
        if record.model_asked is None:
            return
        self._records[record.request_id] = record
        if len(self._records) > KEPT:
            self._records.popitem(last=False)

    def find(self, request_id: str) -> RequestRecord | None:
        return self._records.get(request_id)
