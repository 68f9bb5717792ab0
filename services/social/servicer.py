"""Translates the RPCs of the social service into calls of operations, and their results into messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.social.v1 import (
    block_service_pb2,
    block_service_pb2_grpc,
    directory_service_pb2,
    directory_service_pb2_grpc,
    profile_pb2,
    profile_service_pb2_grpc,
)
from storymesh.social.v1 import profile_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.redirects import redirect
from kit.rpc.server import Server
from kit.rpc.timestamps import set_time

from .model import MessagePolicy, Profile, ProfileChange, Relationship, SeenProfile, Sight, Stance
from .model.avatars import AvatarChange
from .operations import Operations
from .operations.avatars import Avatars
from .operations.directory import Directory
from .operations.profiles import Profiles
from .operations.stances import Stances

Context = ServicerContext[Any, Any]

_POLICIES = {
    MessagePolicy.EVERYONE: profile_pb2.MESSAGE_POLICY_EVERYONE,
    MessagePolicy.NOBODY: profile_pb2.MESSAGE_POLICY_NOBODY,
}
_PROTO_POLICIES = {number: policy for policy, number in _POLICIES.items()}


def add_servicers(server: Server, ops: Operations) -> None:
    """Register every service of the contract."""
    avatars = ops.avatars
    server.add(profile_service_pb2_grpc.add_ProfileServiceServicer_to_server, ProfileServicer(ops.profiles, avatars))
    server.add(block_service_pb2_grpc.add_BlockServiceServicer_to_server, BlockServicer(ops.stances, avatars))
    server.add(
        directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server, DirectoryServicer(ops.directory, avatars)
    )


class ProfileServicer(profile_service_pb2_grpc.ProfileServiceServicer):
    """Implements storymesh.social.v1.ProfileService."""

    def __init__(self, profiles: Profiles, avatars: Avatars) -> None:
        self._profiles = profiles
        self._avatars = avatars

    async def GetOwnProfile(self, request: pb.GetOwnProfileRequest, context: Context) -> pb.GetOwnProfileResponse:
        profile = await self._profiles.own(caller_of(context))
        return pb.GetOwnProfileResponse(
            profile=_own(profile, await self._avatars.urls([profile])),
            message_policy=_POLICIES[profile.message_policy],
            avatar_file_id=_id(profile.avatar_file_id),
        )

    async def UpdateProfile(self, request: pb.UpdateProfileRequest, context: Context) -> pb.UpdateProfileResponse:
        change = ProfileChange(
            handle=request.handle if request.HasField("handle") else None,
            display_name=request.display_name if request.HasField("display_name") else None,
            bio=request.bio if request.HasField("bio") else None,
            private=request.private if request.HasField("private") else None,
            message_policy=_PROTO_POLICIES[request.message_policy] if request.HasField("message_policy") else None,
            avatar=_avatar(request) if request.HasField("avatar_file_id") else None,
        )
        profile = await self._profiles.update(caller_of(context), change)
        return pb.UpdateProfileResponse(
            profile=_own(profile, await self._avatars.urls([profile])),
            message_policy=_POLICIES[profile.message_policy],
            avatar_file_id=_id(profile.avatar_file_id),
        )

    async def DeleteProfile(self, request: pb.DeleteProfileRequest, context: Context) -> pb.DeleteProfileResponse:
        await self._profiles.delete(caller_of(context))
        return pb.DeleteProfileResponse()

    async def GetProfile(self, request: pb.GetProfileRequest, context: Context) -> pb.GetProfileResponse:
        caller = caller_of(context)
        seen = await self._profiles.get(caller, UUID(request.user_id))
        return pb.GetProfileResponse(profile=(await _all_seen(self._avatars, [seen], caller.user_id))[0])

    async def GetAvatar(self, request: pb.GetAvatarRequest, context: Context) -> pb.GetAvatarResponse:
        signed = await self._avatars.get(caller_of(context), UUID(request.user_id), request.size)
        await redirect(context, signed.url, kept_for=self._avatars.kept_for(signed))
        response = pb.GetAvatarResponse(url=signed.url)
        set_time(response.expire_time, signed.expires_at)
        return response

    async def GetProfileByHandle(
        self, request: pb.GetProfileByHandleRequest, context: Context
    ) -> pb.GetProfileByHandleResponse:
        caller = caller_of(context)
        seen = await self._profiles.get_by_handle(caller, request.handle)
        return pb.GetProfileByHandleResponse(profile=(await _all_seen(self._avatars, [seen], caller.user_id))[0])

    async def BatchGetProfiles(
        self, request: pb.BatchGetProfilesRequest, context: Context
    ) -> pb.BatchGetProfilesResponse:
        caller = caller_of(context)
        found = await self._profiles.get_many(caller, list(map(UUID, request.user_ids)))
        return pb.BatchGetProfilesResponse(profiles=await _all_seen(self._avatars, found, caller.user_id))


class BlockServicer(block_service_pb2_grpc.BlockServiceServicer):
    """Implements storymesh.social.v1.BlockService."""

    def __init__(self, stances: Stances, avatars: Avatars) -> None:
        self._stances = stances
        self._avatars = avatars

    async def Block(self, request: block_service_pb2.BlockRequest, context: Context) -> block_service_pb2.BlockResponse:
        taken = await self._stances.take(caller_of(context), Stance.BLOCK, UUID(request.user_id))
        return block_service_pb2.BlockResponse(relationship=_relationship(taken))

    async def Unblock(
        self, request: block_service_pb2.UnblockRequest, context: Context
    ) -> block_service_pb2.UnblockResponse:
        left = await self._stances.take_back(caller_of(context), Stance.BLOCK, UUID(request.user_id))
        return block_service_pb2.UnblockResponse(relationship=_relationship(left))

    async def ListBlocks(
        self, request: block_service_pb2.ListBlocksRequest, context: Context
    ) -> block_service_pb2.ListBlocksResponse:
        caller = caller_of(context)
        page = await self._stances.list(caller, Stance.BLOCK, request.page_size, request.page_token)
        shown = await _all_seen(self._avatars, [each.seen for each in page.items], caller.user_id)
        return block_service_pb2.ListBlocksResponse(profiles=shown, next_page_token=page.next_token)

    async def Mute(self, request: block_service_pb2.MuteRequest, context: Context) -> block_service_pb2.MuteResponse:
        taken = await self._stances.take(caller_of(context), Stance.MUTE, UUID(request.user_id))
        return block_service_pb2.MuteResponse(relationship=_relationship(taken))

    async def Unmute(
        self, request: block_service_pb2.UnmuteRequest, context: Context
    ) -> block_service_pb2.UnmuteResponse:
        left = await self._stances.take_back(caller_of(context), Stance.MUTE, UUID(request.user_id))
        return block_service_pb2.UnmuteResponse(relationship=_relationship(left))

    async def ListMutes(
        self, request: block_service_pb2.ListMutesRequest, context: Context
    ) -> block_service_pb2.ListMutesResponse:
        caller = caller_of(context)
        page = await self._stances.list(caller, Stance.MUTE, request.page_size, request.page_token)
        shown = await _all_seen(self._avatars, [each.seen for each in page.items], caller.user_id)
        return block_service_pb2.ListMutesResponse(profiles=shown, next_page_token=page.next_token)


class DirectoryServicer(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Implements storymesh.social.v1.DirectoryService."""

    def __init__(self, directory: Directory, avatars: Avatars) -> None:
        self._directory = directory
        self._avatars = avatars

    async def GetProfiles(
        self, request: directory_service_pb2.GetProfilesRequest, context: Context
    ) -> directory_service_pb2.GetProfilesResponse:
        viewer_id = UUID(request.viewer_id) if request.viewer_id else None
        found = await self._directory.get_many(viewer_id, list(map(UUID, request.user_ids)))
        return directory_service_pb2.GetProfilesResponse(profiles=await _all_seen(self._avatars, found, viewer_id))

    async def CheckContact(
        self, request: directory_service_pb2.CheckContactRequest, context: Context
    ) -> directory_service_pb2.CheckContactResponse:
        allowed = await self._directory.may_contact(UUID(request.sender_id), UUID(request.recipient_id))
        contact = directory_service_pb2.CONTACT_ALLOWED if allowed else directory_service_pb2.CONTACT_REFUSED
        return directory_service_pb2.CheckContactResponse(contact=contact)


async def _all_seen(
    avatars: Avatars, found: Sequence[SeenProfile], viewer_id: UUID | None
) -> list[profile_pb2.Profile]:
    urls = await avatars.urls(each.profile for each in found)
    return [_seen(each, urls, viewer_id) for each in found]


def _own(profile: Profile, urls: Mapping[UUID, str]) -> profile_pb2.Profile:
    message = _card(profile, urls)
    message.bio = profile.bio
    set_time(message.create_time, profile.created_at)
    return message


def _seen(seen: SeenProfile, urls: Mapping[UUID, str], viewer_id: UUID | None) -> profile_pb2.Profile:
    message = _own(seen.profile, urls) if seen.sight is Sight.WHOLE else _card(seen.profile, urls)
    if seen.profile.user_id != viewer_id:
        message.relationship.CopyFrom(_relationship(seen.relationship))
    return message


def _card(profile: Profile, urls: Mapping[UUID, str]) -> profile_pb2.Profile:
    return profile_pb2.Profile(
        user_id=str(profile.user_id),
        handle=profile.handle,
        display_name=profile.display_name,
        private=profile.private,
        avatar_url=urls.get(profile.avatar_file_id, "") if profile.avatar_file_id else "",
    )


def _avatar(request: pb.UpdateProfileRequest) -> AvatarChange:
    return AvatarChange(UUID(request.avatar_file_id) if request.avatar_file_id else None)


def _id(file_id: UUID | None) -> str:
    return str(file_id) if file_id else ""


def _relationship(relationship: Relationship) -> profile_pb2.Relationship:
    return profile_pb2.Relationship(blocking=relationship.blocking, muting=relationship.muting)
