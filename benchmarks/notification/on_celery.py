"""The contender: Celery, whose task sends a mail by smtplib over a connection of its own, as Django's `send_mail` does.

Run as `python -m benchmarks.notification.on_celery REDIS_URL THREADS SMTP_PORT`, it is a worker.
"""

from __future__ import annotations

import smtplib
import sys
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from typing import Any

from benchmarks.pipeline.jobs.on_celery import app_on, run_worker

TASK = "send_code"
_SENDER = "stories@storymesh.localhost"
_BODY = """Hello {first_name},

your code is {code}. It is valid for 10 minutes.

If you did not ask for it, ignore this mail.
"""


def send_code(email: str, first_name: str, code: str, *, port: int) -> None:
    """The job."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = f"Storymesh <{_SENDER}>", email, f"{code} is your code"
    mail["Date"], mail["Message-ID"] = formatdate(), make_msgid(domain="storymesh.localhost")
    mail.set_content(_BODY.format(first_name=first_name, code=code))
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.send_message(mail)


def main() -> None:
    url, slots, port = sys.argv[1:]
    app: Any = app_on(url)

    def task(email: str, first_name: str, code: str) -> None:
        send_code(email, first_name, code, port=int(port))

    app.task(task, name=TASK)
    run_worker(app, int(slots))


if __name__ == "__main__":
    main()
