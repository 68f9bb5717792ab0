"""The mail sink component: an SMTP server that writes every mail into the mesh's mail folder and sends nothing on."""

import importlib.util
import sys

from local.failures import LocalError
from local.layout import Layout
from local.settings import REPOSITORY, inherited_environment
from local.supervision import health
from local.supervision.component import Component

NAME = "mail"


def component(layout: Layout) -> Component:
    if importlib.util.find_spec("aiosmtpd") is None:
        raise LocalError("The mail sink is missing: the package aiosmtpd is not installed, run `make setup`.")
    port = layout.port(NAME)
    return Component(
        name=NAME,
        command=(sys.executable, "-m", "local.mesh.mailsink", "--port", str(port), "--folder", str(layout.mail)),
        environment=inherited_environment(),
        directory=REPOSITORY,
        ports=layout.ports(NAME),
        probe=health.smtp_greets(port),
    )
