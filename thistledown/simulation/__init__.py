"""A federation in this process: no Ray, no SuperLink, the same bits."""
