"""The refusals of the notification service. Their reasons are permanent."""

from __future__ import annotations

from kit.errors import FailedPrecondition, NotFound, Unauthenticated


class NotificationNotFound(NotFound):
    reason = "NOTIFICATION_NOT_FOUND"
    message = "there is no such notification"


class UnsubscribeLinkInvalid(NotFound):
    reason = "UNSUBSCRIBE_LINK_INVALID"
    message = "the link is not whole; open it in the mail again"


class SuppressionNotFound(NotFound):
    reason = "SUPPRESSION_NOT_FOUND"
    message = "there is no such suppression"


class DeliveryNotFound(NotFound):
    reason = "DELIVERY_NOT_FOUND"
    message = "there is no such delivery"


class DeliveryNotUnknown(FailedPrecondition):
    reason = "DELIVERY_NOT_UNKNOWN"
    message = "only a mail of unknown outcome can be sent again or settled"


class DeliveryNotResendable(FailedPrecondition):
    reason = "DELIVERY_NOT_RESENDABLE"
    message = "the delivery's content is deleted: its time is over, or it was not to be sent"


class WebhookSignatureInvalid(Unauthenticated):
    reason = "WEBHOOK_SIGNATURE_INVALID"
    message = "the call is not signed with the webhook's key, or not now"


class WebhookNotFound(NotFound):
    reason = "WEBHOOK_NOT_FOUND"
    message = "there is no such webhook"


class TooManyWebhooks(FailedPrecondition):
    reason = "TOO_MANY_WEBHOOKS"
    message = "there are as many webhooks as there may be; delete one first"


class WebhookDisabled(FailedPrecondition):
    reason = "WEBHOOK_DISABLED"
    message = "nothing is sent to a webhook that is disabled; enable it first"
