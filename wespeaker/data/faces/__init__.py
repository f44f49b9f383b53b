"""Face images: rendered ones, folders of files, and the training examples made of them."""
