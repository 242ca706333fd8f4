"""ScienceQA: problems, prompts, letters in answers, the paper's columns and ensembles."""
