"""Face verification: embeddings of images and their mirror images, pairs of images, pairs of templates."""
