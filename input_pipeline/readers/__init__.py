"""One file a data set: from a folder to `input_pipeline.records`."""
