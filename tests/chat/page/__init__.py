"""A package, so that what has its scope ends with the last test here: playwright's loop would break later ones."""
