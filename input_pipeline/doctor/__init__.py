"""What is found wrong or worth knowing in a folder of data, before anything is trained on it."""
