"""AdminService: a look into the fleet, for operators."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime
from uuid import UUID

from webhooks.admin.v1 import admin_pb2, admin_pb2_grpc

from dispatcher.api.convert.names import parse_name
from dispatcher.api.convert.times import duration, timestamp
from dispatcher.api.interceptors import Context, wait_s
from dispatcher.api.ports import InstanceControl
from dispatcher.errors import NotFoundError, UnavailableError
from dispatcher.model import PARTITION_COUNT, Instance, Lease
from dispatcher.store import audit, instances, leases, ping
from dispatcher.store.audit import AuditRecord
from dispatcher.store.database import Database
from dispatcher.store.paging import PageRequest, decode_token, encode_token, page_size

_INSTANCES = ("instances",)
_LEASES = ("leases",)
_PHASES = {"BEGUN": admin_pb2.AuditRecord.PHASE_BEGUN, "ENDED": admin_pb2.AuditRecord.PHASE_ENDED}


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """This instance as it sees itself, and the tables of instances and leases. Both are small: pages are cut here."""

    def __init__(
        self, database: Database, control: InstanceControl, *, page_size_max: int, drain_wait_s: float
    ) -> None:
        """`drain_wait_s` bounds how long Drain waits for what it began."""
        self._database = database
        self._control = control
        self._page_size_max = page_size_max
        self._drain_wait_s = drain_wait_s

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: Context) -> admin_pb2.GetStatusResponse:
        status = self._control.status()
        _check_instance(request.instance, status.instance_id)
        response = admin_pb2.GetStatusResponse(
            version=status.version,
            instance=f"instances/{status.instance_id}",
            start_time=timestamp(status.start_time),
            partitions=sorted(status.partitions),
            in_flight_count=status.in_flight,
            flush_lag=duration(status.flush_lag_s),
            draining=status.draining,
        )
        try:
            response.database_latency.CopyFrom(duration(await ping.measure_latency_s(self._database)))
        except UnavailableError:
            return response  # a database that is away is part of the answer, by the field's absence
        return response

    async def ListInstances(
        self, request: admin_pb2.ListInstancesRequest, context: Context
    ) -> admin_pb2.ListInstancesResponse:
        size = page_size(request.page_size, maximum=self._page_size_max)
        after = decode_token(_INSTANCES, request.page_token, (datetime, UUID))
        found = await instances.read_all(self._database)
        rest = [item for item in found if after is None or (item.start_time, item.instance_id) > after]
        page = rest[:size]
        token = encode_token(_INSTANCES, (page[-1].start_time, page[-1].instance_id)) if len(rest) > size else ""
        return admin_pb2.ListInstancesResponse(instances=map(_instance_message, page), next_page_token=token)

    async def ListLeases(self, request: admin_pb2.ListLeasesRequest, context: Context) -> admin_pb2.ListLeasesResponse:
        size = page_size(request.page_size, default=PARTITION_COUNT, maximum=PARTITION_COUNT)
        after = decode_token(_LEASES, request.page_token, (int,))
        found = await leases.read_all(self._database)
        rest = [item for item in found if after is None or (item.partition,) > after]
        page = rest[:size]
        token = encode_token(_LEASES, (page[-1].partition,)) if len(rest) > size else ""
        return admin_pb2.ListLeasesResponse(leases=map(_lease_message, page), next_page_token=token)

    async def ListAuditRecords(
        self, request: admin_pb2.ListAuditRecordsRequest, context: Context
    ) -> admin_pb2.ListAuditRecordsResponse:
        size = page_size(request.page_size, maximum=self._page_size_max)
        page = await audit.list_page(self._database, PageRequest(size, request.page_token, request.filter))
        return admin_pb2.ListAuditRecordsResponse(
            records=map(_audit_message, page.items), next_page_token=page.next_token
        )

    async def Drain(self, request: admin_pb2.DrainRequest, context: Context) -> admin_pb2.DrainResponse:
        _check_instance(request.instance, self._control.status().instance_id)
        self._control.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s(context, self._drain_wait_s)):
                await self._control.drained()
        return admin_pb2.DrainResponse(instances=[_instance_message(self._control.instance())])


def _check_instance(name: str, own: UUID) -> None:
    """Errors: InvalidRequestError, NotFoundError."""
    if name and parse_name(name, "instances/{instance}", field="instance") != (str(own),):
        raise NotFoundError("instance behind this port", name)


def _instance_message(instance: Instance) -> admin_pb2.Instance:
    return admin_pb2.Instance(
        name=f"instances/{instance.instance_id}",
        address=instance.address,
        version=instance.version,
        start_time=timestamp(instance.start_time),
        heartbeat_time=timestamp(instance.heartbeat_time),
        draining=instance.draining,
        partition_count=instance.partitions,
        in_flight_count=instance.in_flight,
        delivered_count=instance.delivered_total,
        due_count=instance.due_backlog,
        oldest_due_age=duration(instance.due_age_s),
    )


def _audit_message(record: AuditRecord) -> admin_pb2.AuditRecord:
    call = record.call
    return admin_pb2.AuditRecord(
        time=timestamp(record.time),
        audit_id=str(call.audit_id),
        phase=_PHASES.get(record.phase, admin_pb2.AuditRecord.PHASE_UNSPECIFIED),
        principal=call.principal,
        auth_mode=call.auth_mode,
        method=call.method,
        resource=call.resource,
        tenant=call.tenant,
        peer=call.peer,
        request_id=call.request_id,
        trace_id=call.trace_id,
        status=record.status,
    )


def _lease_message(lease: Lease) -> admin_pb2.Lease:
    message = admin_pb2.Lease(name=f"leases/{lease.partition}", partition=lease.partition, epoch=lease.epoch)
    if lease.owner is not None:
        message.owner = f"instances/{lease.owner}"
        message.expire_time.CopyFrom(timestamp(lease.expire_time))
    return message
