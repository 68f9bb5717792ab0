"""Manifest of the notification service."""

from mesh.manifest import ERASURE, INBOX, LIMITER, Manifest

_MAIL_FROM = "Storymesh <stories@storymesh.localhost>"

MANIFEST = Manifest(
    port=30,
    database=True,
    workers=1,
    calls=("auth", LIMITER, "story"),
    keys=("cursor_key", "unsubscribe_key", "address_key"),
    shared_keys=("mesh_key", "seal_key"),
    takes={
        "notification": (
            "AccountDeleted",
            "AddressClaimed",
            "CodeIssued",
            "EmailChangeBegun",
            "EmailChangeStopped",
            "EmailChanged",
            "NewDeviceSignedIn",
            "PasswordChanged",
            "PasswordDisabled",
            "RegistrationRepeated",
            "SessionRevoked",
            "StoryCompleted",
            "StoryFailed",
            "UserDeleted",
            "UserRegistered",
            "UsernameChanged",
        )
    },
    kit_tables=(INBOX, ERASURE),
    redis_keys=("mail-rate",),
    private_settings=(
        "SMTP_",
        "MAIL_FROM",
        "PUBLIC_URL",
        "DEFAULT_LANGUAGE",
        "BRAND_",
        "BOUNCE_",
        "DKIM_",
        "FEEDBACK_",
        "WEBHOOK",
        "SYSTEM_WEBHOOKS",
    ),
    needs=("mail",),
    local_settings={
        "SMTP_HOST": "127.0.0.1",
        "SMTP_PORT": "{mail_port}",
        "MAIL_FROM": _MAIL_FROM,
        "PUBLIC_URL": "{edge_url}",
    },
    container_settings={"MAIL_FROM": _MAIL_FROM},
    worker_container_settings={
        "SMTP_HOST": "mailpit",
        "SMTP_PORT": "1025",
        # Whoever still sets the former setting is refused at the start; it would go unheard here otherwise.
        "SMTP_TLS": "${STORYMESH_SMTP_START_TLS:-opportunistic}",
        "PUBLIC_URL": "http://127.0.0.1:${STORYMESH_PORT:-8080}",
    },
)
