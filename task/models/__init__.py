"""The base, and the model that is tuned on it."""

import logging

# bitsandbytes, which peft imports, asks for a package that is not needed, and says in every step that 8 bits are few.
for _name in ("backends.cpu.ops", "autograd._functions"):
    logging.getLogger(f"bitsandbytes.{_name}").setLevel(logging.ERROR)
