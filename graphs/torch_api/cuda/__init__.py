"""What CUDA would run, chosen by name on tensors of a CPU: attention, dropout, norms, autocast."""
