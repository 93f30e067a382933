"""From image ids to pixels: where the files lie, whether they can be read, and how they load."""
