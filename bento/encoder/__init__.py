"""CLIP embeddings of texts and images with OpenCLIP models, without a service."""
