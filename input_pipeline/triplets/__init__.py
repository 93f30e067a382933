"""Training triplets from the attributes of a catalogue (docs/method.md, section 12)."""
