"""A stub for every service that the edge serves. Generated from the contracts by proto/generate.py; do not edit."""

from __future__ import annotations

import grpc.aio
from storymesh.auth.v1 import account_service_pb2_grpc as auth_account_service_pb2_grpc
from storymesh.auth.v1 import key_service_pb2_grpc as auth_key_service_pb2_grpc
from storymesh.auth.v1 import registration_service_pb2_grpc as auth_registration_service_pb2_grpc
from storymesh.auth.v1 import session_service_pb2_grpc as auth_session_service_pb2_grpc
from storymesh.file.v1 import file_service_pb2_grpc as file_file_service_pb2_grpc
from storymesh.notification.v1 import bounce_service_pb2_grpc as notification_bounce_service_pb2_grpc
from storymesh.notification.v1 import delivery_service_pb2_grpc as notification_delivery_service_pb2_grpc
from storymesh.notification.v1 import notification_service_pb2_grpc as notification_notification_service_pb2_grpc
from storymesh.notification.v1 import preference_service_pb2_grpc as notification_preference_service_pb2_grpc
from storymesh.notification.v1 import system_webhook_service_pb2_grpc as notification_system_webhook_service_pb2_grpc
from storymesh.notification.v1 import webhook_service_pb2_grpc as notification_webhook_service_pb2_grpc
from storymesh.ops.v1 import dead_letter_service_pb2_grpc as ops_dead_letter_service_pb2_grpc
from storymesh.ops.v1 import rate_limit_service_pb2_grpc as ops_rate_limit_service_pb2_grpc
from storymesh.social.v1 import block_service_pb2_grpc as social_block_service_pb2_grpc
from storymesh.social.v1 import profile_service_pb2_grpc as social_profile_service_pb2_grpc
from storymesh.story.v1 import story_link_service_pb2_grpc as story_story_link_service_pb2_grpc
from storymesh.story.v1 import story_service_pb2_grpc as story_story_service_pb2_grpc


class Stubs:
    """Each service's methods, typed, over one channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.accounts: auth_account_service_pb2_grpc.AccountServiceAsyncStub = auth_account_service_pb2_grpc.AccountServiceStub(channel)
        self.keys: auth_key_service_pb2_grpc.KeyServiceAsyncStub = auth_key_service_pb2_grpc.KeyServiceStub(channel)
        self.registrations: auth_registration_service_pb2_grpc.RegistrationServiceAsyncStub = auth_registration_service_pb2_grpc.RegistrationServiceStub(channel)
        self.sessions: auth_session_service_pb2_grpc.SessionServiceAsyncStub = auth_session_service_pb2_grpc.SessionServiceStub(channel)
        self.files: file_file_service_pb2_grpc.FileServiceAsyncStub = file_file_service_pb2_grpc.FileServiceStub(channel)
        self.bounces: notification_bounce_service_pb2_grpc.BounceServiceAsyncStub = notification_bounce_service_pb2_grpc.BounceServiceStub(channel)
        self.deliveries: notification_delivery_service_pb2_grpc.DeliveryServiceAsyncStub = notification_delivery_service_pb2_grpc.DeliveryServiceStub(channel)
        self.notifications: notification_notification_service_pb2_grpc.NotificationServiceAsyncStub = notification_notification_service_pb2_grpc.NotificationServiceStub(channel)
        self.preferences: notification_preference_service_pb2_grpc.PreferenceServiceAsyncStub = notification_preference_service_pb2_grpc.PreferenceServiceStub(channel)
        self.system_webhooks: notification_system_webhook_service_pb2_grpc.SystemWebhookServiceAsyncStub = notification_system_webhook_service_pb2_grpc.SystemWebhookServiceStub(channel)
        self.webhooks: notification_webhook_service_pb2_grpc.WebhookServiceAsyncStub = notification_webhook_service_pb2_grpc.WebhookServiceStub(channel)
        self.dead_letters: ops_dead_letter_service_pb2_grpc.DeadLetterServiceAsyncStub = ops_dead_letter_service_pb2_grpc.DeadLetterServiceStub(channel)
        self.rate_limits: ops_rate_limit_service_pb2_grpc.RateLimitServiceAsyncStub = ops_rate_limit_service_pb2_grpc.RateLimitServiceStub(channel)
        self.blocks: social_block_service_pb2_grpc.BlockServiceAsyncStub = social_block_service_pb2_grpc.BlockServiceStub(channel)
        self.profiles: social_profile_service_pb2_grpc.ProfileServiceAsyncStub = social_profile_service_pb2_grpc.ProfileServiceStub(channel)
        self.story_links: story_story_link_service_pb2_grpc.StoryLinkServiceAsyncStub = story_story_link_service_pb2_grpc.StoryLinkServiceStub(channel)
        self.stories: story_story_service_pb2_grpc.StoryServiceAsyncStub = story_story_service_pb2_grpc.StoryServiceStub(channel)
