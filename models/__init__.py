"""What a model is: families, sources of weights, caches, and the swap of Hugging Face modules for ours."""
