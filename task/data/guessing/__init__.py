"""What the columns of data are, if nobody has said it."""
