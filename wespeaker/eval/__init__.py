"""Trial lists, scores, and error rates down to the lowest false-acceptance rate a list can resolve."""
