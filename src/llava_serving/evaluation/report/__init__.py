"""report.html of a LLaVA-Bench run: one file that needs no other."""
