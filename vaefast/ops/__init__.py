"""The public operators: argument checks, the registered operators and their autograd functions."""
