"""What a run would do and send, in words and bytes, for `thistledown check`."""
