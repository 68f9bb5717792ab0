"""Assembles the mesh: every component, in display order."""

from collections.abc import Collection, Iterator
from dataclasses import replace

from deploy import buckets
from local.failures import LocalError
from local.layout import Layout
from local.mesh import writers
from local.mesh.components import envoy, mailsink, postgres, redis, s3, services
from local.settings import users_settings
from local.supervision.component import Mesh
from mesh.catalog import manifests

SERVERS = (postgres.NAME, redis.NAME, mailsink.NAME, s3.NAME)


def assemble(layout: Layout, only: Collection[str] = ()) -> Mesh:
    """The components of this mesh, or those named in `only`. Raises LocalError when a program or package is missing."""
    if only and set(only) <= set(SERVERS):
        servers = {
            postgres.NAME: lambda: postgres.component(layout),
            redis.NAME: lambda: redis.component(layout),
            mailsink.NAME: lambda: mailsink.component(layout),
            s3.NAME: lambda: s3.component(layout),
        }
        return Mesh([servers[name]() for name in SERVERS if name in only], ())
    writer = writers.choose(layout.settings)
    components = [
        postgres.component(layout),
        redis.component(layout),
        mailsink.component(layout),
        # Not in a mesh none of whose services keeps objects.
        *([s3.component(layout)] if buckets.holders(manifests()) else []),
        *services.components(layout, writer),
        envoy.component(layout),
    ]
    for component in components:
        if missing := set(component.needs) - {other.name for other in components}:
            raise LocalError(
                f"{component.name} needs {', '.join(sorted(missing))}, which the runner does not know: "
                "see `needs` in its service's manifest.py."
            )
    if only:
        unknown = set(only) - {component.name for component in components}
        if unknown:
            raise LocalError(
                f"There is no component {', '.join(sorted(unknown))}: "
                f"there are {', '.join(component.name for component in components)}."
            )
        components = [
            replace(component, needs=tuple(need for need in component.needs if need in only))
            for component in components
            if component.name in only
        ]
    return Mesh(components, tuple(_notes(writer)), writer.name)


def _notes(writer: writers.LocalWriter) -> Iterator[str]:
    if writer.note:
        yield writer.note
    if ineffective := sorted(services.DECIDED & users_settings().keys()):
        yield f"The runner itself decides {', '.join(ineffective)}: what is set has no effect."
