"""Calls of every operator in Triton, as models make them: a file per operator."""
