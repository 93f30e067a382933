"""The examination of a data folder before anything is trained on it: problems and remedies."""
