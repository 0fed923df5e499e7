"""OpenCLIP models that come with the project, and the scripts that train them."""
