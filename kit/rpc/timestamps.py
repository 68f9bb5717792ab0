"""Times in messages."""

from __future__ import annotations

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp


def set_time(field: Timestamp, moment: datetime | None) -> None:
    """Sets a message's time field; leaves it unset for None, as JSON then leaves it out."""
    if moment is not None:
        field.FromDatetime(moment)
