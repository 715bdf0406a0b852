"""The compiled core vaefast._C: C++ on the CPU, CUDA C++ on a GPU, given plain pointers."""
