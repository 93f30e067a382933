"""One family of encoders a file."""
