"""The notification service's operations. They open and end the transactions."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from kit.data.paging import Pages
from kit.identity.sealing import Seal
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.watch_leases import watch_leases
from kit.rpc.watches import OpenWatches

from ..adapters.bounce_folder import BounceFolder
from ..adapters.dkim_signing import DkimSigner, read_key
from ..adapters.refusals import Refusals
from ..adapters.smtp import MailServer, Smtp
from ..adapters.webhooks import WebhookSender
from ..config import (
    BounceSettings,
    LetterSettings,
    NotificationSettings,
    NotificationWorkerSettings,
    WebhookSettings,
)
from ..model.deliveries import WEBHOOKS, Channel
from ..model.letters import Brand, Letters, languages
from ..model.preferences import KINDS, Throttle
from ..model.rendering import Sender
from ..model.return_paths import ReturnPaths
from ..model.suppressions import AddressDigests
from ..model.unsubscribing import UnsubscribeLinks
from ..store.deliveries import WAKE_FOR_WEBHOOKS
from ..store.mail_rates import MailRates
from .bounces import BounceReader, Bounces, ProviderBounces
from .channels import StoryPages
from .deliveries import Deliveries
from .delivering import Delivering, DeliveryTuning
from .digests import Digests
from .email import EmailChannel, FindAccount
from .erasing import Erasing
from .facts import FactReader
from .notices import Notices
from .notifications import Notifications
from .preference_changes import PreferenceChanges
from .preference_gate import PreferenceGate
from .pruning import Pruning
from .record_keeping import RecordKeeping
from .suppressions import SuppressionList, Suppressions
from .unsubscribing import Unsubscribing
from .watch_positions import WatchPositions
from .watching import Watches
from .webhook_channel import WebhookChannel
from .webhook_deliveries import WebhookDeliveries
from .webhook_seals import WebhookSeals
from .webhooks import Webhooks

_SLOW_OF_A_DOMAIN = 4
"""How many times as many deliveries as there are places one domain or receiver may hold: a quarter of what may be in flight."""


@dataclass(frozen=True)
class Operations:
    """The operations that the servicer calls."""

    notifications: Notifications
    watches: Watches
    preferences: PreferenceChanges
    unsubscribing: Unsubscribing
    deliveries: Deliveries
    suppressions: Suppressions
    provider_bounces: ProviderBounces
    webhooks: Webhooks
    webhook_deliveries: WebhookDeliveries


@dataclass(frozen=True)
class WorkerOperations:
    """The operations that the worker calls."""

    notices: Notices
    delivering: Delivering
    webhooks: Delivering
    """Delivers by webhook: receivers that hang hold no mail back."""
    erasing: Erasing
    pruning: Pruning
    records: RecordKeeping
    smtp: Smtp


def _links(settings: NotificationSettings | NotificationWorkerSettings) -> UnsubscribeLinks:
    return UnsubscribeLinks(settings.unsubscribe_key.get_secret_value())


def operations(settings: NotificationSettings, resources: Resources) -> Operations:
    db, clock, signer = resources.db, resources.clock, Signer(settings.cursor_key.get_secret_value())
    key = settings.bounce_webhook_key
    positions = WatchPositions(signer)
    watches = Watches(
        db,
        positions,
        OpenWatches(
            per_person=settings.watches_per_person,
            altogether=settings.watches,
            leases=watch_leases(resources, settings.ratelimit_target, "notifications"),
        ),
        database_url=resources.database_url,
        heartbeat_seconds=settings.heartbeat_seconds,
    )
    webhooks = Webhooks(
        db,
        Pages(signer),
        WebhookSeals(Seal(settings.seal_key.get_secret_value())),
        clock,
        sender=_sender(settings),
        rules=settings.webhook_rules,
        random=resources.random,
        most=settings.webhooks_per_person,
        most_of_the_installation=settings.system_webhooks,
    )
    return Operations(
        Notifications(db, Pages(signer), positions, clock),
        watches,
        PreferenceChanges(db, clock, KINDS, languages()),
        Unsubscribing(db, clock, KINDS, _links(settings)),
        Deliveries(db, signer, clock),
        Suppressions(db, _digests(settings), Pages(signer), clock),
        ProviderBounces(_bounces(settings, resources, Refusals()), key.get_secret_value() if key else None, clock),
        webhooks,
        WebhookDeliveries(db, Pages(signer), clock),
    )


def worker_operations(
    settings: NotificationWorkerSettings,
    resources: Resources,
    find_account: FindAccount,
    stories: StoryPages,
    *,
    tuning: DeliveryTuning | None = None,
) -> WorkerOperations:
    refusals = Refusals()
    smtp = Smtp(
        MailServer(
            settings.smtp_host,
            settings.smtp_port,
            username=settings.smtp_username,
            password=settings.smtp_password.get_secret_value(),
            tls=settings.smtp_tls,
            password_in_clear=settings.smtp_password_in_clear,
            ca_file=settings.smtp_ca_file,
            ehlo_name=settings.smtp_ehlo_name or Sender(settings.mail_from).domain,
            seconds=settings.smtp_seconds,
            final_reply_seconds=settings.smtp_final_reply_seconds,
        ),
        rates=MailRates(
            resources.redis,
            mails_per_second=settings.smtp_mails_per_second,
            domain_mails_per_second=settings.smtp_domain_mails_per_second,
        ),
        refusals=refusals,
    )
    resources.when_closing(smtp.close)
    db, clock, letters = resources.db, resources.clock, letters_of(settings)
    suppressed = SuppressionList(db, _digests(settings), clock)
    bounces = _bounces(settings, resources, refusals)
    seal = Seal(settings.seal_key.get_secret_value())
    facts = FactReader(seal)
    webhook_tuning = tuning or DeliveryTuning(
        lease_seconds=settings.lease_seconds,
        concurrency=settings.webhook_concurrency,
        max_failures=settings.max_failures,
    )
    tuning = tuning or DeliveryTuning(
        lease_seconds=settings.lease_seconds, concurrency=settings.mail_concurrency, max_failures=settings.max_failures
    )
    # A further channel is one line here.
    channels = {
        Channel.EMAIL: EmailChannel(
            smtp,
            find_account,
            stories,
            letters,
            clock,
            suppressed=suppressed,
            sender=settings.mail_from,
            public_url=settings.public_url,
            feedback_sender=settings.feedback_sender,
            return_paths=_return_paths(settings),
            signer=_signer(settings),
            links=_links(settings),
            most_to_a_domain=_SLOW_OF_A_DOMAIN * tuning.concurrency,
        ),
    }
    digests = Digests(db, facts, stories, clock, key=settings.address_key.get_secret_value())
    throttles = [Throttle(settings.mails_per_hour, timedelta(hours=1))] if settings.mails_per_hour else []
    gate = PreferenceGate(db, digests, clock, throttles)
    delivering = Delivering(
        db,
        channels,
        facts,
        clock,
        gate=gate,
        digests=digests,
        database_url=resources.database_url,
        tuning=tuning,
    )
    webhook_channel = WebhookChannel(
        db,
        _sender(settings),
        settings.webhook_rules,
        WebhookSeals(seal),
        clock,
        letters=letters,
        patience=timedelta(days=settings.webhook_failing_days),
        most_to_a_receiver=_SLOW_OF_A_DOMAIN * webhook_tuning.concurrency,
    )
    webhooks = Delivering(
        db,
        dict.fromkeys(WEBHOOKS, webhook_channel),
        facts,
        clock,
        gate=gate,
        digests=digests,
        database_url=resources.database_url,
        tuning=webhook_tuning,
        wake_name=WAKE_FOR_WEBHOOKS,
    )
    pruning = Pruning(
        db,
        clock,
        notifications_kept=timedelta(days=settings.notification_days),
        changes_kept=timedelta(days=settings.notification_change_days),
    )
    notices = Notices(db, facts, letters, delivering, clock)
    folder = BounceFolder(Path(settings.bounce_folder)) if settings.bounce_folder else None
    records = RecordKeeping(
        db, BounceReader(bounces, folder) if folder else None, clock, kept=timedelta(days=settings.delivery_days)
    )
    return WorkerOperations(notices, delivering, webhooks, Erasing(db, clock=clock), pruning, records, smtp)


def _digests(settings: BounceSettings) -> AddressDigests:
    return AddressDigests(settings.address_key.get_secret_value())


def _return_paths(settings: BounceSettings) -> ReturnPaths | None:
    key = settings.address_key.get_secret_value()
    return ReturnPaths(settings.bounce_address, key) if settings.bounce_address else None


def _signer(settings: NotificationWorkerSettings) -> DkimSigner | None:
    if not settings.dkim_key_file:
        return None
    domain = Sender(settings.mail_from).domain
    return DkimSigner(domain, settings.dkim_selector, read_key(settings.dkim_key_file))


def _bounces(settings: BounceSettings, resources: Resources, refusals: Refusals) -> Bounces:
    digests = _digests(settings)
    return Bounces(
        resources.db,
        SuppressionList(resources.db, digests, resources.clock),
        digests,
        refusals,
        resources.clock,
        domain=Sender(settings.mail_from).domain,
        return_paths=_return_paths(settings),
    )


def letters_of(settings: LetterSettings) -> Letters:
    brand = Brand(settings.brand_name, settings.brand_color, settings.brand_logo_url, settings.brand_address)
    return Letters(brand, public_url=settings.public_url, default_language=settings.default_language)


def _sender(settings: WebhookSettings) -> WebhookSender:
    return WebhookSender(
        settings.webhook_rules,
        ca_file=settings.webhook_ca_file,
        connect_seconds=settings.webhook_connect_seconds,
        seconds=settings.webhook_seconds,
    )
