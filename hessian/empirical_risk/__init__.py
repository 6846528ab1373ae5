"""The loss over a fixed data set, in passes that fit the memory."""
