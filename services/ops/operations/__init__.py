"""The operators' service's operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kit.events.dead_letter_model import DeadLetterStore
from kit.identity.signing import Signer
from kit.rpc.resources import Resources

from ..config import OpsSettings
from .dead_letters import DeadLetterAggregator


@dataclass(frozen=True)
class Operations:
    """The operations that the servicer calls."""

    dead_letters: DeadLetterAggregator


def operations(settings: OpsSettings, resources: Resources, stores: Mapping[str, DeadLetterStore]) -> Operations:
    """Build the operations over a store per service, by name. The stores are passed in, because they are peers."""
    return Operations(DeadLetterAggregator(stores, Signer(settings.cursor_key.get_secret_value())))
