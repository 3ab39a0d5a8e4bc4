"""Publishes one event: python python_client.py 127.0.0.1:50051 tenants/acme order-17-paid"""

import random
import sys
import time
from pathlib import Path

import grpc
from webhooks.v1 import event_pb2, publisher_pb2, publisher_pb2_grpc

CONFIG = Path(__file__).with_name("service_config.json").read_text()  # balances, heeds health, retries
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED)


def publish(stub, request, tries=20):
    for left in reversed(range(tries)):
        try:
            return stub.Publish(request, timeout=10)
        except grpc.RpcError as error:
            if error.code() not in AGAIN or not left:
                raise
            print(error.code().name, "- the same request again", file=sys.stderr)
            time.sleep(random.uniform(0.1, 1.0))


target, tenant, event_id = sys.argv[1:]
event = event_pb2.Event(id=event_id, type="order.paid", data=b'{"order": 17}')
with grpc.insecure_channel(target, [("grpc.service_config", CONFIG)]) as channel:
    stub = publisher_pb2_grpc.PublisherServiceStub(channel)
    response = publish(stub, publisher_pb2.PublishRequest(parent=tenant, events=[event]))
print(response.results[0])
