"""Small tools that know nothing of the rest: files, progress, precision, randomness, hints."""
