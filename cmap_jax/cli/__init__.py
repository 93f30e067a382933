"""What a person types and reads: flags, the describe mode, tables."""
