"""Search in galleries of any size."""
