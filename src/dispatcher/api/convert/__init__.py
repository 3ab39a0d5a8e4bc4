"""Protobuf messages to the service's own records and back. Pure; every check of a request is here."""
