"""Features of images on disk: a frozen encoder's outputs, read in place of pixels."""
