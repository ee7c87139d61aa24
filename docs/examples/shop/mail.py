"""E-mail, through SMTP."""

from __future__ import annotations

import smtplib
from dataclasses import dataclass
from email.message import EmailMessage


@dataclass(frozen=True)
class Mailer:
    """Sends through the mail server at `host:port`."""

    host: str
    port: int
    sender: str = "The Shop <shop@example.org>"

    @classmethod
    def at(cls, address: str) -> Mailer:
        """Make a mailer for an address written as `host:port`."""
        host, _, port = address.rpartition(":")
        return cls(host, int(port))

    def send(self, to: str, subject: str, text: str) -> None:
        """Send one e-mail. Blocks, so plain functions call it, which run in a thread."""
        message = EmailMessage()
        message["From"], message["To"], message["Subject"] = self.sender, to, subject
        message.set_content(text)
        with smtplib.SMTP(self.host, self.port, local_hostname="localhost", timeout=10) as server:
            server.send_message(message)
