"""Handlers: read the request, call the service, shape the answer. One file per endpoint family."""
