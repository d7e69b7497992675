"""The commands by what they are for: their arguments, and what each calls."""
