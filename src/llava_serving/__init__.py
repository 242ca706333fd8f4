"""LLaVA-13b-delta-v0 behind an Azure Machine Learning endpoint."""
