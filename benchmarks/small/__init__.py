"""Small calls of every public operator, likelihood and kernel: a file per operator."""
