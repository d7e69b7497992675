"""Files from untrusted sources, read within limits."""
