"""The ServerApp: configuration -> strategy -> rounds -> results."""

from server_app.main import app

__all__ = ["app"]
