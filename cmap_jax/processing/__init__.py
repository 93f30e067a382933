"""What a model must know of raw input: text to ids, photographs to pixels."""
