"""Questions to answers: from an endpoint or a model, many at a time, each on the disk as it comes."""
