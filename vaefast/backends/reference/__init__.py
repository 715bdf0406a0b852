"""Plain PyTorch: right on any device, differentiable to any order, the measure of the others."""
