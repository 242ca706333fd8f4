"""The model's arithmetic on a device: tensors of a batch in, sampled tokens out. Knows no requests, files or HTTP."""
