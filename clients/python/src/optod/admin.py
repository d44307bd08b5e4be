"""Users, tokens, backups, draining; and the events and artifacts of a user."""

from __future__ import annotations

import os
from typing import Any, BinaryIO, Iterator, List, Optional, Union

from optod import errors, specs
from optod.operations import Progress
from optod.transport import transfer_timeout, translated
from optod.v1 import admin_pb2, admin_pb2_grpc, artifact_pb2, artifact_pb2_grpc, event_pb2, event_pb2_grpc

__all__ = ["Admin", "Events", "Artifacts"]


class Admin:
    """``client.admin``. All but ``info`` and ``usage`` need the role ADMIN (PermissionDenied)."""

    def __init__(self, client: Any) -> None:
        self._client, self._transport = client, client.transport
        self._stub = admin_pb2_grpc.AdminServiceStub(client.transport.channel)

    def info(self) -> admin_pb2.ServerInfo:
        """Version, who the caller is, services, checks."""
        return self._transport.call(self._stub.GetServerInfo, admin_pb2.GetServerInfoRequest())

    def create_user(self, user_id: str, role: str = "user") -> admin_pb2.User:
        """role: "viewer", "user" or "admin"."""
        request = admin_pb2.CreateUserRequest(user_id=user_id, role=admin_pb2.User.Role.Value(role.upper()))
        return self._transport.call(self._stub.CreateUser, request)

    def list_users(self) -> Iterator[admin_pb2.User]:
        request = admin_pb2.ListUsersRequest()
        while True:
            page = self._transport.call(self._stub.ListUsers, request)
            yield from page.users
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def delete_user(self, name: str) -> admin_pb2.User:
        """Revokes all tokens of users/U; sessions stay."""
        return self._transport.call(self._stub.DeleteUser, admin_pb2.DeleteUserRequest(name=name))

    def create_token(self, user: str, label: str = "", ttl: Optional[float] = None) -> admin_pb2.CreateTokenResponse:
        """ttl: seconds, None = never expires. The secret is in this answer and nowhere else. Sent once, never repeated."""
        request = admin_pb2.CreateTokenRequest(user=user, label=label)
        if ttl is not None:
            request.ttl.CopyFrom(specs.seconds(ttl))
        return self._transport.call(self._stub.CreateToken, request, once=True)

    def list_tokens(self, user: str) -> List[admin_pb2.Token]:
        return list(self._transport.call(self._stub.ListTokens, admin_pb2.ListTokensRequest(user=user)).tokens)

    def revoke_token(self, name: str) -> admin_pb2.Token:
        """Acts on the next call."""
        return self._transport.call(self._stub.RevokeToken, admin_pb2.RevokeTokenRequest(name=name))

    def usage(self, user: str = "", first_day: str = "", last_day: str = "") -> admin_pb2.GetUsageResponse:
        """What was used, by day (UTC), user and model: calls, tokens, micro-dollars, evaluations, seconds of jobs.  Days: YYYY-MM-DD, the last
        included; "" = today.  user: "" = everybody for admins, the caller for others."""
        return self._transport.call(self._stub.GetUsage, admin_pb2.GetUsageRequest(user=user, from_day=first_day, to_day=last_day))

    def backup(self, backup_id: str = "", timeout: float = 600.0, progress: Optional[Progress] = None) -> admin_pb2.BackupResult:
        """A consistent copy of database, blobs and jobs into DIR/backups/<name>; waits until it is there."""
        started = self._transport.call(self._stub.Backup, admin_pb2.BackupRequest(backup_id=backup_id))
        return self._client.operations.run(started, admin_pb2.BackupResult(), timeout, progress)

    def drain(self, grace: Optional[float] = None) -> None:
        """No new work, wait for running calls (grace: seconds), then the server exits."""
        request = admin_pb2.DrainRequest()
        if grace is not None:
            request.grace.CopyFrom(specs.seconds(grace))
        self._transport.call(self._stub.Drain, request, once=True)


class Events:
    """``client.events``: one durable log per user, numbered 1, 2, ... without gaps."""

    def __init__(self, client: Any) -> None:
        self._transport = client.transport
        self._stub = event_pb2_grpc.EventServiceStub(client.transport.channel)

    def list(self, after: int = 0, prefix: str = "", parent: str = "") -> Iterator[event_pb2.Event]:
        """Events after a sequence number, oldest first; prefix: of resource names."""
        while True:
            request = event_pb2.ListEventsRequest(parent=parent, after_sequence=after, page_size=1000, resource_prefix=prefix)
            page = self._transport.call(self._stub.ListEvents, request)
            yield from page.events
            if not page.events or page.events[-1].sequence >= page.last_sequence:
                return
            after = page.events[-1].sequence

    def watch(self, after: int = 0, prefix: str = "", parent: str = "", timeout: Optional[float] = None) -> Iterator[event_pb2.Event]:
        """Events after a sequence number, then live ones.  A broken connection is taken up again after the last event delivered: none is lost,
        none is doubled.  timeout: seconds after which it ends with DeadlineExceeded, None = never.  OutOfRange: older than what is kept."""
        while True:
            request = event_pb2.WatchEventsRequest(parent=parent, after_sequence=after, resource_prefix=prefix)
            call = self._transport.retrying(lambda _: self._start(request, timeout))
            try:
                for event in translated(call):
                    after = event.sequence
                    yield event
                return
            except errors.Unavailable:
                continue
            finally:
                call.cancel()

    def _start(self, request: event_pb2.WatchEventsRequest, timeout: Optional[float]) -> Any:
        call = self._transport.stream(self._stub.WatchEvents, request, timeout)
        call.initial_metadata()      # waits for the server to answer, so that a server that is away is noticed here
        if not call.is_active() and call.code().name == "UNAVAILABLE":
            raise call
        return call


class Artifacts:
    """``client.artifacts``: files by their SHA-256."""

    def __init__(self, client: Any) -> None:
        self._transport = client.transport
        self._stub = artifact_pb2_grpc.ArtifactServiceStub(client.transport.channel)

    def put(self, source: Union[bytes, str, os.PathLike], display_name: str = "", media_type: str = "") -> artifact_pb2.Artifact:
        """Stores bytes, or the file of a path. What is already there costs nothing more."""
        if isinstance(source, bytes):
            return self._write(lambda: iter((source,)), len(source), display_name, media_type)
        path = os.fspath(source)
        return self._write(lambda: _read_file(path), os.path.getsize(path), display_name or os.path.basename(path), media_type)

    def _write(self, read: Any, size: int, display_name: str, media_type: str) -> artifact_pb2.Artifact:
        def messages() -> Iterator[artifact_pb2.WriteArtifactRequest]:
            yield artifact_pb2.WriteArtifactRequest(header=artifact_pb2.WriteArtifactHeader(
                display_name=display_name, media_type=media_type, size_bytes=size))
            for block in read():
                for at in range(0, len(block), 1 << 20):
                    yield artifact_pb2.WriteArtifactRequest(data=block[at:at + (1 << 20)])

        limit = transfer_timeout(size)
        return self._transport.retrying(lambda left: self._transport.stream(self._stub.WriteArtifact, messages(), left), limit)

    def read(self, name: str, offset: int = 0, limit: int = 0) -> bytes:
        """Its bytes from ``offset``; limit 0 = to the end."""
        request = artifact_pb2.ReadArtifactRequest(name=name, offset=offset, limit=limit)
        return b"".join(part.data for part in translated(self._transport.stream(self._stub.ReadArtifact, request)))

    def get(self, name: str) -> artifact_pb2.Artifact:
        return self._transport.call(self._stub.GetArtifact, artifact_pb2.GetArtifactRequest(name=name))

    def list(self, parent: str = "") -> Iterator[artifact_pb2.Artifact]:
        request = artifact_pb2.ListArtifactsRequest(parent=parent)
        while True:
            page = self._transport.call(self._stub.ListArtifacts, request)
            yield from page.artifacts
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def delete(self, name: str) -> None:
        self._transport.call(self._stub.DeleteArtifact, artifact_pb2.DeleteArtifactRequest(name=name))


def _read_file(path: str) -> Iterator[bytes]:
    file: BinaryIO
    with open(path, "rb") as file:
        while True:
            block = file.read(1 << 20)
            if not block:
                return
            yield block
