"""Every method that the edge serves. Generated from the contracts by proto/generate.py; do not edit."""

from typing import Literal, NamedTuple


class Method(NamedTuple):
    """Access and idempotency of a method, as its contract names them."""

    access: Literal["PUBLIC", "USER", "ADMIN"]
    idempotency: Literal["IDEMPOTENCY_UNKNOWN", "NO_SIDE_EFFECTS", "IDEMPOTENT"]


METHODS: dict[str, Method] = {
    '/storymesh.auth.v1.AccountService/GetAccount': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.auth.v1.AccountService/UpdateAccount': Method('USER', 'IDEMPOTENT'),
    '/storymesh.auth.v1.AccountService/ChangePassword': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.AccountService/StartPasswordReset': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.AccountService/CompletePasswordReset': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.AccountService/StartEmailChange': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.AccountService/CompleteEmailChange': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.AccountService/StopEmailChange': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.AccountService/DeleteAccount': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.KeyService/GetJwks': Method('PUBLIC', 'NO_SIDE_EFFECTS'),
    '/storymesh.auth.v1.KeyService/RotateKeys': Method('ADMIN', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.KeyService/DropKey': Method('ADMIN', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.RegistrationService/CreateRegistration': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.RegistrationService/ResendRegistrationCode': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.RegistrationService/CompleteRegistration': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.SessionService/CreateSession': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.SessionService/RefreshSession': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.SessionService/StartSessionCode': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.SessionService/CompleteSessionCode': Method('PUBLIC', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.auth.v1.SessionService/ListSessions': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.auth.v1.SessionService/RevokeSession': Method('USER', 'IDEMPOTENT'),
    '/storymesh.auth.v1.SessionService/RevokeOtherSessions': Method('USER', 'IDEMPOTENT'),
    '/storymesh.auth.v1.SessionService/Logout': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.notification.v1.BounceService/ReportBounces': Method('PUBLIC', 'IDEMPOTENT'),
    '/storymesh.notification.v1.DeliveryService/ListDeliveries': Method('ADMIN', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.DeliveryService/ExplainNotification': Method('ADMIN', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.DeliveryService/ResendDelivery': Method('ADMIN', 'IDEMPOTENT'),
    '/storymesh.notification.v1.DeliveryService/SettleDelivery': Method('ADMIN', 'IDEMPOTENT'),
    '/storymesh.notification.v1.DeliveryService/ListSuppressions': Method('ADMIN', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.DeliveryService/FindSuppression': Method('ADMIN', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.DeliveryService/DeleteSuppression': Method('ADMIN', 'IDEMPOTENT'),
    '/storymesh.notification.v1.NotificationService/ListNotifications': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.NotificationService/CountUnreadNotifications': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.NotificationService/MarkNotificationRead': Method('USER', 'IDEMPOTENT'),
    '/storymesh.notification.v1.NotificationService/MarkAllNotificationsRead': Method('USER', 'IDEMPOTENT'),
    '/storymesh.notification.v1.NotificationService/DeleteNotification': Method('USER', 'IDEMPOTENT'),
    '/storymesh.notification.v1.NotificationService/WatchNotifications': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.PreferenceService/GetNotificationPreferences': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.PreferenceService/UpdateNotificationPreferences': Method('USER', 'IDEMPOTENT'),
    '/storymesh.notification.v1.PreferenceService/GetUnsubscribePage': Method('PUBLIC', 'NO_SIDE_EFFECTS'),
    '/storymesh.notification.v1.PreferenceService/Unsubscribe': Method('PUBLIC', 'IDEMPOTENT'),
    '/storymesh.ops.v1.DeadLetterService/ListDeadLetters': Method('ADMIN', 'NO_SIDE_EFFECTS'),
    '/storymesh.ops.v1.DeadLetterService/ReplayDeadLetters': Method('ADMIN', 'IDEMPOTENT'),
    '/storymesh.ops.v1.DeadLetterService/DiscardDeadLetters': Method('ADMIN', 'IDEMPOTENT'),
    '/storymesh.story.v1.StoryLinkService/CreateStoryLink': Method('USER', 'IDEMPOTENT'),
    '/storymesh.story.v1.StoryLinkService/ListStoryLinks': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.story.v1.StoryLinkService/RevokeStoryLink': Method('USER', 'IDEMPOTENT'),
    '/storymesh.story.v1.StoryLinkService/GetStoryPage': Method('PUBLIC', 'NO_SIDE_EFFECTS'),
    '/storymesh.story.v1.StoryService/CreateStory': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.story.v1.StoryService/GetStory': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.story.v1.StoryService/ListStories': Method('USER', 'NO_SIDE_EFFECTS'),
    '/storymesh.story.v1.StoryService/CancelStory': Method('USER', 'IDEMPOTENT'),
    '/storymesh.story.v1.StoryService/RetryStory': Method('USER', 'IDEMPOTENCY_UNKNOWN'),
    '/storymesh.story.v1.StoryService/DeleteStory': Method('USER', 'IDEMPOTENT'),
    '/storymesh.story.v1.StoryService/WatchStory': Method('USER', 'NO_SIDE_EFFECTS'),
}
