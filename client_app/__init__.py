"""The node's side: what a ClientApp does when a message comes."""

from client_app.main import app

__all__ = ["app"]
