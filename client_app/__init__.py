"""The node's side: what a ClientApp does with a message."""

from client_app.main import app, stays

__all__ = ["app", "stays"]
