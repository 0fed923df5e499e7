"""The OpenCLIP models that the project bundles, and the code that trains them."""
