"""Questions with reference answers: right means equal after normalisation."""
