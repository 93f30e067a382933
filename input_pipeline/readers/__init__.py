"""One file a data set: how it is read from a folder, and all else that is known of it."""
