"""Reads a process's numbers as Prometheus does."""

from __future__ import annotations

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from kit.runtime.metrics import Metrics


async def fetch(url: str) -> str:
    async with httpx2.AsyncClient(trust_env=False) as client:
        answer = await client.get(url)
        assert answer.status_code == 200
        return answer.text


def parsed(text: str) -> dict[str, float]:
    """Values by name and sorted labels, as in `name{a="1",b="2"}`."""
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            values[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return values


async def numbers(metrics: Metrics) -> dict[str, float]:
    async with metrics.exposed("127.0.0.1:0") as url:
        return parsed(await fetch(url))
