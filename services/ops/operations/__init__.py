"""What the operators' service does."""

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
    """What the servicer translates to."""

    dead_letters: DeadLetterAggregator


def operations(settings: OpsSettings, resources: Resources, stores: Mapping[str, DeadLetterStore]) -> Operations:
    """`stores` ask peers, one for each service by its name, and peers stand above operations."""
    return Operations(DeadLetterAggregator(stores, Signer(settings.cursor_key.get_secret_value())))
