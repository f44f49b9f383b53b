"""Faces for training and verification: what reads, makes, packs and aligns pictures of them."""
